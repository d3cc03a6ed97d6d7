// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

func TestMain(m *testing.M) { os.Exit(topo.Main(m)) }

var compareIP = cmpopts.EquateComparable(netip.AddrPort{})

func tuple(src, dst string) Tuple {
	return Tuple{netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)}
}

// flow is of a connection that nobody translates.
func flow(p dataplane.Protocol, src, dst string) Flow {
	f := Flow{Protocol: p, Original: tuple(src, dst), Reply: tuple(dst, src), SeenReply: true, Assured: true, Timeout: 100 * time.Second}
	if p == dataplane.TCP {
		f.TCPState = established
	}
	return f
}

// inNamespace runs the test on a thread in a new network namespace, which ends with the thread.
func inNamespace(t testing.TB) {
	t.Helper()
	require.Root(t)
	runtime.LockOSThread() // and never unlocked: the thread ends with the test's goroutine
	must(t, unix.Unshare(unix.CLONE_NEWNET))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listed is List without what changes by itself: the seconds that have passed.
func listed(t testing.TB) []Flow {
	t.Helper()
	flows, err := List()
	must(t, err)
	for i, f := range flows {
		if f.Timeout <= 95*time.Second || f.Timeout > 100*time.Second {
			t.Errorf("%v expires in %v", f.Original, f.Timeout)
		}
		flows[i].Timeout = 100 * time.Second
	}
	slices.SortFunc(flows, func(a, b Flow) int { return a.Original.Src.Compare(b.Original.Src) })
	return flows
}

func TestSeedIsListed(t *testing.T) {
	inNamespace(t)
	snat := flow(dataplane.TCP, "172.17.0.2:1003", "203.0.113.1:80")
	snat.SourceNAT, snat.Reply.Dst = true, netip.MustParseAddrPort("198.51.100.1:40000")
	dnat := flow(dataplane.UDP, "203.0.113.1:1004", "198.51.100.1:53")
	dnat.DestinationNAT, dnat.Reply.Src = true, netip.MustParseAddrPort("172.17.0.2:5353")
	both := flow(dataplane.TCP, "172.17.0.2:1005", "198.51.100.1:80") // hairpin
	both.SourceNAT, both.DestinationNAT = true, true
	both.Reply = tuple("172.17.0.3:8080", "172.17.0.1:1005")
	closing := flow(dataplane.TCP, "172.17.0.2:1006", "203.0.113.1:80")
	closing.TCPState = 4 // FIN_WAIT
	want := []Flow{
		flow(dataplane.TCP, "172.17.0.2:1001", "203.0.113.1:80"),
		flow(dataplane.UDP, "172.17.0.2:1002", "203.0.113.1:53"),
		snat, both, closing, dnat,
	}
	must(t, seed(want))
	if diff := cmp.Diff(want, listed(t), compareIP); diff != "" {
		t.Error(diff)
	}
	must(t, seed(want)) // once more
	if diff := cmp.Diff(want, listed(t), compareIP); diff != "" {
		t.Error(diff)
	}
	reversed := want[0]
	reversed.Original, reversed.Reply = reversed.Reply, reversed.Original
	must(t, seed([]Flow{reversed})) // the same connection
	if got := listed(t); len(got) != len(want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
}

// seed is Replace, where all are made.
func seed(flows []Flow) error {
	_, err := Replace(flows)
	return err
}

// An entry that is there is afterwards as a new one would be, whoever opened it.
func TestReplaceRenews(t *testing.T) {
	inNamespace(t)
	for _, p := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP} {
		old := flow(p, "172.17.0.2:1001", "203.0.113.1:80")
		want := old
		old.Timeout = 10 * time.Second
		if p == dataplane.TCP {
			old.TCPState = 4 // FIN_WAIT
		}
		want.Original, want.Reply = want.Reply, want.Original
		must(t, seed([]Flow{old}))
		must(t, seed([]Flow{want}))
		got := slices.DeleteFunc(listed(t), func(f Flow) bool { return f.Protocol != p })
		if diff := cmp.Diff([]Flow{want}, got, compareIP); diff != "" {
			t.Errorf("%s: %s", p, diff)
		}
	}
}

// TestReplace: whatever entries have a flow's endpoints, the flow's own is there afterwards, and nobody else's is gone.
func TestReplace(t *testing.T) {
	plain := func(p dataplane.Protocol) Flow { return flow(p, "172.17.0.2:1001", "203.0.113.1:80") }
	masqueraded := func(p dataplane.Protocol) Flow {
		f := plain(p)
		f.SourceNAT, f.Reply.Dst = true, netip.MustParseAddrPort("198.51.100.1:40000")
		return f
	}
	published := func(p dataplane.Protocol) Flow {
		f := flow(p, "203.0.113.1:80", "198.51.100.1:40000")
		f.DestinationNAT, f.Reply.Src = true, plain(p).Original.Src
		return f
	}
	hosts := func(p dataplane.Protocol) Flow { return flow(p, "198.51.100.1:40000", "203.0.113.1:80") }
	kinds := map[string]func(dataplane.Protocol) Flow{"plain": plain, "masqueraded": masqueraded, "published": published, "hosts": hosts}
	for old, before := range kinds {
		for name, after := range map[string]func(dataplane.Protocol) Flow{"plain": plain, "masqueraded": masqueraded, "published": published} {
			if old == "hosts" && name == "plain" {
				continue // two connections
			}
			t.Run(old+"To"+name, func(t *testing.T) {
				inNamespace(t)
				other := flow(dataplane.UDP, "172.17.0.2:1002", "203.0.113.1:80")
				must(t, seed([]Flow{before(dataplane.TCP), before(dataplane.UDP), other}))
				want := []Flow{after(dataplane.TCP), after(dataplane.UDP), other}
				if made, err := Replace(want[:2]); made != 2 || err != nil {
					t.Errorf("made %d, %v", made, err)
				}
				if diff := cmp.Diff(sorted(want), sorted(listed(t)), compareIP); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

// TestForget: just those entries go, whichever NAT they have; one that is gone already is no error.
func TestForget(t *testing.T) {
	inNamespace(t)
	masqueraded := flow(dataplane.TCP, "172.17.0.2:1001", "203.0.113.1:80")
	masqueraded.SourceNAT, masqueraded.Reply.Dst = true, netip.MustParseAddrPort("198.51.100.1:40000")
	published := flow(dataplane.UDP, "203.0.113.1:80", "198.51.100.1:40001")
	published.DestinationNAT, published.Reply.Src = true, netip.MustParseAddrPort("172.17.0.2:53")
	other := flow(dataplane.UDP, "172.17.0.2:1002", "203.0.113.1:80")
	must(t, seed([]Flow{masqueraded, published, other}))
	for range 2 {
		must(t, Forget([]Flow{masqueraded, published}))
		if diff := cmp.Diff([]Flow{other}, listed(t), compareIP); diff != "" {
			t.Error(diff)
		}
	}
}

func sorted(flows []Flow) []Flow {
	return slices.SortedFunc(slices.Values(flows), func(a, b Flow) int {
		return strings.Compare(fmt.Sprint(a.Protocol, a.Original), fmt.Sprint(b.Protocol, b.Original))
	})
}

func TestReplaceDefaults(t *testing.T) {
	inNamespace(t)
	bare := func(p dataplane.Protocol) Flow {
		return Flow{Protocol: p, Original: tuple("172.17.0.2:1001", "203.0.113.1:80"), Reply: tuple("203.0.113.1:80", "172.17.0.2:1001")}
	}
	must(t, seed([]Flow{bare(dataplane.TCP), bare(dataplane.UDP)}))
	flows, err := List()
	must(t, err)
	want := map[dataplane.Protocol]Flow{
		dataplane.TCP: {TCPState: established, Timeout: defaultTimeoutTCP}, dataplane.UDP: {Timeout: defaultTimeoutUDP},
	}
	for _, f := range flows {
		w := want[f.Protocol]
		delete(want, f.Protocol)
		if !f.SeenReply || !f.Assured || f.TCPState != w.TCPState || f.Timeout > w.Timeout || f.Timeout < w.Timeout-5*time.Second {
			t.Errorf("%+v, want %+v", f, w)
		}
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

// Those that can be made are made; the error says what of the others.
func TestReplaceThatFails(t *testing.T) {
	good := flow(dataplane.UDP, "172.17.0.2:1001", "203.0.113.1:53")
	late := flow(dataplane.UDP, "172.17.0.2:1002", "203.0.113.1:53")
	icmp, mixed, portless := good, good, good
	icmp.Protocol = dataplane.ICMP
	mixed.Reply.Src = netip.MustParseAddrPort("[2001:db8::1]:53")
	portless.Original.Src = netip.MustParseAddrPort("172.17.0.2:0")
	tests := []struct {
		name string
		bad  Flow
	}{
		{"icmp", icmp},
		{"two_families", mixed},
		{"no_port", portless},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			must(t, seed([]Flow{good}))
			if made, err := Replace([]Flow{tt.bad, late}); err == nil || made != 1 {
				t.Errorf("made %d, %v", made, err)
			}
			if diff := cmp.Diff([]Flow{good, late}, listed(t), compareIP); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWithoutPermission(t *testing.T) {
	inNamespace(t)
	header, data := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	must(t, unix.Capget(&header, &data[0]))
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN // of this thread, which ends with the test
	must(t, unix.Capset(&header, &data[0]))
	if _, err := List(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("List: %v", err)
	}
	many := make([]Flow, 10)
	for i := range many {
		many[i] = flow(dataplane.UDP, "172.17.0.2:1001", "203.0.113.1:53")
	}
	if err := seed(many); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Replace: %v", err)
	}
}

func TestUnavailable(t *testing.T) {
	for errno, want := range map[unix.Errno]bool{
		unix.EPERM: true, unix.EINVAL: true, unix.EPROTONOSUPPORT: true, unix.ENOMEM: false, unix.ENOBUFS: false,
	} {
		if err := unavailable(errno); errors.Is(err, ErrUnavailable) != want || !errors.Is(err, errno) {
			t.Errorf("%v becomes %v", errno, err)
		}
	}
	if err := unavailable(nil); err != nil {
		t.Error(err)
	}
}

// What the kernel could never send is no flow, and no panic.
func TestDecodeOfCutMessages(t *testing.T) {
	var m message
	m.add(flow(dataplane.TCP, "172.17.0.2:1001", "203.0.113.1:80"), 1)
	whole := m.bytes[unix.SizeofNlMsghdr:]
	if f, ok := decode(whole); !ok || f.Original != tuple("172.17.0.2:1001", "203.0.113.1:80") {
		t.Fatalf("whole message: %+v %v", f, ok)
	}
	for n := range 60 {
		if f, ok := decode(whole[:n]); ok {
			t.Errorf("%d bytes are %+v", n, f)
		}
	}
	for n := range whole {
		broken := slices.Clone(whole)
		broken[n] ^= 0xff
		decode(broken) // whatever it is
	}
}

// Flows of another zone or protocol are not this namespace's plain connections.
func TestDecodeLeavesOut(t *testing.T) {
	build := func(change func(m *message)) []byte {
		m := message{bytes: header(unix.AF_INET)}
		m.flow(flow(dataplane.UDP, "172.17.0.2:1001", "203.0.113.1:53"))
		change(&m)
		return m.bytes
	}
	if _, ok := decode(build(func(*message) {})); !ok {
		t.Error("plain flow left out")
	}
	if f, ok := decode(build(func(m *message) { m.number16(attrZone, 7) })); ok {
		t.Errorf("zone 7: %+v", f)
	}
	sctp := message{bytes: header(unix.AF_INET)}
	sctp.flow(flow(132, "172.17.0.2:1001", "203.0.113.1:53"))
	if f, ok := decode(sctp.bytes); ok {
		t.Errorf("SCTP: %+v", f)
	}
}
