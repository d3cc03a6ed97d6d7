// SPDX-License-Identifier: Apache-2.0

package exceptions

import (
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func pair(prefix, out string) Pair { return Pair{netip.MustParsePrefix(prefix), out} }

func TestNormalIsSortedAndWithoutDoubles(t *testing.T) {
	got := comments(normal([]Pair{pair("172.18.0.0/16", "eth0"), pair("172.17.0.0/16", "eth1"), pair("172.17.0.0/16", "eth0"), pair("172.18.0.0/16", "eth0")}))
	want := []string{"172.17.0.0/16 by eth0", "172.17.0.0/16 by eth1", "172.18.0.0/16 by eth0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// ruleset is what nft prints, in a new network namespace that the test's thread is in.
func ruleset(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "-s", "-y", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v: %s", err, out)
	}
	return string(out)
}

func TestTable(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft, to read the rules with")
	}
	runtime.LockOSThread() // and never unlocked: the namespace ends with the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("nft", "add table ip other").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	other := ruleset(t)
	ensure := func(pairs ...Pair) {
		t.Helper()
		if err := (Table{}).Ensure(pairs); err != nil {
			t.Fatal(err)
		}
	}

	ensure(pair("172.17.0.0/16", "eth0"), pair("10.0.0.5/32", "eth0"))
	want := other + `table ip conenat {
	chain postrouting {
		type nat hook postrouting priority 99; policy accept;
		ip saddr 10.0.0.5 oifname "eth0" meta l4proto { icmp, tcp, udp } snat to ip saddr comment "10.0.0.5/32 by eth0"
		ip saddr 172.17.0.0/16 oifname "eth0" meta l4proto { icmp, tcp, udp } snat to ip saddr comment "172.17.0.0/16 by eth0"
	}
}
`
	if diff := cmp.Diff(want, ruleset(t)); diff != "" {
		t.Error(diff)
	}

	handles := func() string {
		out, _ := exec.Command("nft", "-a", "list", "table", "ip", "conenat").Output()
		return string(out)
	}
	before := handles()
	ensure(pair("10.0.0.5/32", "eth0"), pair("172.17.0.0/16", "eth0"))
	if diff := cmp.Diff(before, handles()); diff != "" {
		t.Errorf("the same pairs again wrote the table anew:\n%s", diff)
	}

	ensure(pair("172.17.0.0/16", "eth1"))
	if got := ruleset(t); strings.Contains(got, "eth0") || !strings.Contains(got, `oifname "eth1"`) {
		t.Errorf("after a change:\n%s", got)
	}

	for _, want := range []bool{true, false} {
		if was, err := (Table{}).Remove(); err != nil || was != want {
			t.Errorf("remove: %v %v, want %v", was, err, want)
		}
	}
	if diff := cmp.Diff(other, ruleset(t)); diff != "" {
		t.Errorf("after removal: %s", diff)
	}
	ensure()
	if diff := cmp.Diff(other, ruleset(t)); diff != "" {
		t.Errorf("after nothing: %s", diff)
	}
}
