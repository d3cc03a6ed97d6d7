// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

// lab is Figure 3 with a running conenat.
type lab struct {
	*topo.Figure3
	*harness.Conenat
	t                  *testing.T
	family             family.Family // of what the probes send
	host, peer1, peer2 probe.Host
	containers         []probe.Host
}

// quick are timeouts that a test can wait for.
const quick = `
timeouts:
  udp: 2s
  tcp_established: 4s
  tcp_partial_open: 2s
  tcp_closing: 2s
  icmp: 2s
  sweep: 100ms
`

// newLab is newLabIn with IPv4 alone.
func newLab(t *testing.T, cfg topo.Figure3Config, config string, args ...string) *lab {
	t.Helper()
	return newLabIn(family.V4, t, cfg, config, args...)
}

// newLabIn builds the topology with Docker's rules in the host and starts conenat there, with both families if it is IPv6 that is
// tested; config is YAML. Configuration, commands and topology are given in IPv4.
func newLabIn(fam family.Family, t *testing.T, cfg topo.Figure3Config, config string, args ...string) *lab {
	t.Helper()
	cfg.IPv6 = fam == family.V6
	l := bareLab(fam, t, topo.Figure3ForTest(t, cfg))
	if err := topo.DockerRules(t.Context(), l.Host); err != nil {
		t.Fatal(err)
	}
	args = append([]string{"--inside", "docker0"}, args...)
	if config != "" {
		file := filepath.Join(l.Dir(), "conenat.yaml")
		if err := os.WriteFile(file, []byte(fam.Text(config)), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", file)
	}
	l.Conenat = harness.StartIn(fam, t, l.Topo, l.Host, args...)
	for _, c := range append(l.Containers, l.Net2...) {
		l.containers = append(l.containers, l.probe(c))
	}
	return l
}

// bareLab is a lab without conenat, and without containers.
func bareLab(fam family.Family, t *testing.T, f *topo.Figure3) *lab {
	t.Helper()
	l := &lab{Figure3: f, t: t, family: fam}
	l.host, l.peer1, l.peer2 = l.probe(f.Host), l.probe(f.Peer1), l.probe(f.Peer2)
	return l
}

// probe sends from a namespace, in the lab's family.
func (l *lab) probe(ns *topo.NS) probe.Host { return probe.InFamily(l.family, ns) }

// udp opens a socket; the test's end closes it.
func (l *lab) udp(h probe.Host, port uint16) probe.Socket {
	l.t.Helper()
	return probe.Tester{T: l.t}.UDP(h, port)
}

// serve starts a TCP server; the test's end closes it.
func (l *lab) serve(h probe.Host, port uint16) netip.AddrPort {
	l.t.Helper()
	s, err := h.ServeTCP(port)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { s.Close() })
	return netip.AddrPortFrom(l.family.Any(), s.Port())
}

func (l *lab) dial(h probe.Host, server netip.AddrPort) probe.Conn {
	l.t.Helper()
	return probe.Tester{T: l.t}.Dial(h, server)
}

func (l *lab) send(s probe.Socket, to netip.AddrPort, text string) {
	l.t.Helper()
	probe.Tester{T: l.t}.Send(s, to, text)
}

// receives waits for a packet with just that text, and returns whom it is from.
func (l *lab) receives(s probe.Socket, text string) netip.AddrPort {
	l.t.Helper()
	return probe.Tester{T: l.t}.Receives(s, text)
}

// receivesNothing holds after a packet that must arrive behind it has arrived.
func (l *lab) receivesNothing(s probe.Socket, for_ time.Duration) {
	l.t.Helper()
	if p, err := s.Receive(for_); err == nil {
		l.t.Errorf("received %+v, want nothing", p)
	}
}

func (l *lab) eventually(what string, cond func() bool) {
	l.t.Helper()
	err := topo.Poll(l.t.Context(), 20*time.Second, what, func() (bool, error) { return cond(), nil })
	if err != nil {
		l.t.Fatalf("%v; bindings %+v", err, l.Bindings())
	}
}

func (l *lab) bindingOf(protocol, internal string) (harness.Binding, bool) {
	l.t.Helper()
	internal = l.family.Text(internal)
	for _, b := range l.Bindings() {
		if b.Protocol == protocol && b.Internal == internal {
			return b, true
		}
	}
	return harness.Binding{}, false
}

// both are the cases of a table that run in a family. In IPv6 those are enough that differ in what the family has a part in.
func both[T any](fam family.Family, cases map[string]T, names ...string) map[string]T {
	if fam == family.V4 {
		return cases
	}
	chosen := map[string]T{}
	for _, name := range names {
		c, there := cases[name]
		if !there {
			panic("no case " + name)
		}
		chosen[name] = c
	}
	return chosen
}

func at(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }

// excuses are the datagrams that an old kernel loses when hooks are put on for the first time, or taken away: before Linux 6.6
// they need a clsact qdisc, and the kernel stops the transmission of an interface for a moment to add or delete one
// (dev_deactivate in qdisc_graft). By stream, from the first to before the last of a moment.
type excuses map[*probe.UDPStream][][2]int

// excuseClsact is to be called when the daemon is ready: what was sent until then is excused, where there is no TCX.
func excuseClsact(t *testing.T, streams []*probe.UDPStream) excuses {
	t.Helper()
	if !require.Running(t).Before(require.Version{Major: 6, Minor: 6}) {
		return nil
	}
	e := excuses{}
	for _, s := range streams {
		e[s] = append(e[s], [2]int{0, s.Sent()})
	}
	return e
}

// during excuses what is sent while do takes the hooks away, or was on its way before, if what was sent at the start is excused.
func (e excuses) during(streams []*probe.UDPStream, do func()) {
	if e == nil {
		do()
		return
	}
	before := map[*probe.UDPStream]int{}
	for _, s := range streams {
		before[s] = s.Sent() - 1
	}
	do()
	for _, s := range streams {
		e[s] = append(e[s], [2]int{before[s], s.Sent()})
	}
}

// leave are those of the lost datagrams that are not excused.
func (e excuses) leave(s *probe.UDPStream, lost []int) []int {
	return slices.DeleteFunc(lost, func(number int) bool {
		return slices.ContainsFunc(e[s], func(moment [2]int) bool { return moment[0] <= number && number < moment[1] })
	})
}
