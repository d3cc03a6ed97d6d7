// SPDX-License-Identifier: Apache-2.0

package exceptions

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

func TestMain(m *testing.M) { os.Exit(topo.Main(m)) }

func pair(prefix, out string, index int) Pair {
	return Pair{Inside: netip.MustParsePrefix(prefix), Name: out, Outside: index}
}

func addrs(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

func TestNormalIsSortedAndWithoutDoubles(t *testing.T) {
	excepting := func(except ...string) Pair {
		p := pair("172.19.0.0/16", "eth0", 2)
		p.Except = addrs(except...)
		return p
	}
	got := comments(ipv4, normal([]Pair{
		pair("172.18.0.0/16", "eth0", 2), pair("172.17.0.0/16", "eth1", 3), pair("172.17.3.4/16", "eth0", 2), pair("172.18.0.0/16", "eth0", 2),
		excepting("172.19.0.3", "172.19.0.2", "172.19.0.3"), excepting("172.19.0.2", "172.19.0.3"),
	}))
	want := []string{"172.17.0.0/16 by eth0 (2)", "172.17.0.0/16 by eth1 (3)", "172.18.0.0/16 by eth0 (2)",
		excepting("172.19.0.2", "172.19.0.3").comment()}
	want = append(want, want...) // a rule in postrouting, and one in unclaimed
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Two rules that differ have different comments, for they are compared by them; and nft(8) takes them.
func TestCommentSaysAll(t *testing.T) {
	base := func(change func(*Pair)) string {
		p := Pair{netip.MustParsePrefix("172.17.0.0/16"), 2, "eth0", addrs("198.51.100.1"), addrs("172.17.0.9"), nil, 0, false}
		change(&p)
		return p.comment()
	}
	tests := map[string]func(*Pair){
		"same":            func(*Pair) {},
		"inside":          func(p *Pair) { p.Inside = netip.MustParsePrefix("172.17.0.0/17") },
		"outside":         func(p *Pair) { p.Outside = 3 },
		"external":        func(p *Pair) { p.External = addrs("198.51.100.2") },
		"externals":       func(p *Pair) { p.External = addrs("198.51.100.1", "198.51.100.2") },
		"no_external":     func(p *Pair) { p.External = nil },
		"except":          func(p *Pair) { p.Except = addrs("172.17.0.8") },
		"except_another":  func(p *Pair) { p.Except = addrs("172.17.0.8", "172.17.0.9") },
		"nothing_except":  func(p *Pair) { p.Except = nil },
		"exclude":         func(p *Pair) { p.Exclude = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} },
		"exclude_another": func(p *Pair) { p.Exclude = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/9")} },
		"from":            func(p *Pair) { p.From = 7 },
		"IPv6": func(p *Pair) {
			p.Inside, p.External = netip.MustParsePrefix("fd00:1234:5678:9abc:def0:1234:5678:0/112"), addrs("2001:db8:1234:5678:9abc:def0:1234:5678")
			p.Name, p.Outside = strings.Repeat("w", unix.IFNAMSIZ-1), 1<<31-1
		},
		"another_IPv6": func(p *Pair) {
			p.Inside, p.External = netip.MustParsePrefix("fd00:1234:5678:9abc:def0:1234:5678:0/112"), addrs("2001:db8:1234:5678:9abc:def0:1234:5679")
			p.Name, p.Outside = strings.Repeat("w", unix.IFNAMSIZ-1), 1<<31-1
		},
		"longest_of_name": func(p *Pair) { p.Name, p.Outside = strings.Repeat("w", unix.IFNAMSIZ-1), 1<<31-1 },
	}
	seen := map[string]string{}
	for name, change := range tests {
		comment := base(change)
		if other, ok := seen[comment]; ok {
			t.Errorf("%s and %s have the comment %q", name, other, comment)
		}
		seen[comment] = name
		if len(comment)+len(" (by 100: 00000000)") >= 128 {
			t.Errorf("%s: comment of %d bytes", name, len(comment))
		}
	}
}

func TestTablesOfStateDirectories(t *testing.T) {
	tests := []struct{ dir, want string }{
		{"/sys/fs/bpf/conenat", "conenat"},
		{"/sys/fs/bpf//conenat/", "conenat"},
		{"/sys/fs/bpf/other", "conenat-50519f47"},
		{"/sys/fs/bpf/x/../other", "conenat-50519f47"},
	}
	for _, tt := range tests {
		if got := New(tt.dir).Name(); got != tt.want {
			t.Errorf("%s: table %s, want %s", tt.dir, got, tt.want)
		}
	}
	if got := (Table{}).Name(); got != "conenat" {
		t.Errorf("zero table %s", got)
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
	require.Root(t)
	require.Program(t, "nft") // to read the rules with
	runtime.LockOSThread()    // and never unlocked: the namespace ends with the thread
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

	bridge := pair("172.17.0.0/16", "lo", 1)
	bridge.External, bridge.Except = addrs("198.51.100.1"), addrs("172.17.0.9", "172.17.0.8")
	single := pair("10.0.0.5/32", "lo", 1)
	single.From, single.Exclude = 1, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	ensure(bridge, single)
	want := other + `table ip conenat {
	chain prerouting {
		type filter hook prerouting priority -250; policy accept;
		meta mark 0x00000000 return comment "nothing for conenat"
		meta mark & MASK == INSIDE iif "lo" ip daddr 198.51.100.1 ip daddr set meta mark meta mark set 0x00000000 comment "BRIDGE"
	}

	chain postrouting {
		type nat hook postrouting priority 99; policy accept;
		oif "lo" iif "lo" ip saddr 10.0.0.5 meta l4proto { icmp, ipencap, tcp, udp, ipv6, gre, esp, sctp, udplite } snat to ip saddr comment "SINGLE"
		oif "lo" iif "lo" ip saddr 10.0.0.5 ip daddr 192.0.2.0/24 snat to ip saddr comment "EXCLUDED"
		oif "lo" ip saddr 172.17.0.0/16 ip saddr != { 172.17.0.8, 172.17.0.9 } meta l4proto { icmp, ipencap, tcp, udp, ipv6, gre, esp, sctp, udplite } snat to ip saddr comment "BRIDGE"
	}

	chain unclaimed {
		type filter hook postrouting priority 101; policy accept;
		oifname "lo" oif != "lo" ip saddr 10.0.0.5 drop comment "SINGLE"
		oifname "lo" oif != "lo" ip saddr 172.17.0.0/16 drop comment "BRIDGE"
	}
}
`
	hex := func(bytes ...byte) string { return fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32(bytes)) }
	want = strings.NewReplacer("MASK", hex(255, 255, 0, 0), "INSIDE", hex(172, 17, 0, 0), "BRIDGE", normal([]Pair{bridge})[0].comment(),
		"SINGLE", normal([]Pair{single})[0].comment(), "EXCLUDED", leaving(ipv4, normal([]Pair{single}))[1].comment).Replace(want)
	if diff := cmp.Diff(want, ruleset(t)); diff != "" {
		t.Error(diff)
	}

	handles := func() string {
		out, _ := exec.Command("nft", "-a", "list", "table", "ip", "conenat").Output()
		return string(out)
	}
	before := handles()
	ensure(single, bridge)
	if diff := cmp.Diff(before, handles()); diff != "" {
		t.Errorf("the same pairs again wrote the table anew:\n%s", diff)
	}

	changed := bridge
	changed.External = addrs("198.51.100.2")
	ensure(changed)
	if got := ruleset(t); strings.Contains(got, "198.51.100.1") || !strings.Contains(got, "ip daddr 198.51.100.2") {
		t.Errorf("after a change:\n%s", got)
	}

	another := New("/sys/fs/bpf/other")
	if err := another.Ensure([]Pair{single}); err != nil {
		t.Fatal(err)
	}
	if got := ruleset(t); !strings.Contains(got, "table ip "+another.Name()) || !strings.Contains(got, "ip daddr 198.51.100.2") {
		t.Errorf("with another daemon's table:\n%s", got)
	}
	for _, table := range []Table{another, {}} {
		for _, want := range []bool{true, false} {
			if was, err := table.Remove(); err != nil || was != want {
				t.Errorf("remove %s: %v %v, want %v", table.Name(), was, err, want)
			}
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
