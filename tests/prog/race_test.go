// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/require"
)

// Each CPU sends so many packets, or for so long: half a second is enough for them, and ten are in software emulation.
const (
	hammerPackets = 20000
	hammerTime    = 2 * time.Second
)

// hammer is one sender: a program, an interface, and its i-th frame.
type hammer struct {
	program *ebpf.Program
	dev     string
	frame   func(i int) []byte
}

// hammers runs each sender on a CPU of its own, in the rig's network namespace, and meanwhile does something
// else again and again on the rig's own thread.
func (r *rig) hammers(meanwhile func() error, senders ...hammer) {
	r.t.Helper()
	var ns int
	r.must("open network namespace", func() (err error) {
		ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	defer unix.Close(ns)
	errs := make(chan error, len(senders))
	start := make(chan struct{})
	for i, h := range senders {
		go func() { errs <- r.hammerOn(i, ns, h, start) }()
	}
	var done sync.WaitGroup
	stop := make(chan struct{})
	done.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := r.do(meanwhile); err != nil {
					r.t.Errorf("meanwhile: %v", err)
					return
				}
				time.Sleep(time.Millisecond)
			}
		}
	})
	close(start)
	for range senders {
		if err := <-errs; err != nil {
			r.t.Errorf("send: %v", err)
		}
	}
	close(stop)
	done.Wait()
}

// hammerOn never unlocks its thread: it ends with the goroutine, and no other one finds itself elsewhere.
func (r *rig) hammerOn(cpu, ns int, h hammer, start chan struct{}) error {
	runtime.LockOSThread()
	pinThread(cpu)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the rig's network namespace: %w", err)
	}
	<-start
	end := time.Now().Add(hammerTime)
	for i := 0; i < hammerPackets && time.Now().Before(end); i++ {
		if _, err := r.run(h.program, h.dev, h.frame(i)); err != nil {
			return err
		}
	}
	return nil
}

// shortTimeouts let every session end while packets come. Who opens one has put both its halves into the table by
// then: the CPUs of a virtual machine stand still for tens of milliseconds when their host is busy.
func shortTimeouts(s *dataplane.Settings) {
	lifetime := patience.For(40 * time.Millisecond)
	for _, d := range []*time.Duration{&s.UDPTimeout, &s.TCPEstablishedTimeout, &s.TCPPartialOpenTimeout, &s.TCPClosingTimeout, &s.ICMPTimeout} {
		*d = lifetime
	}
	s.SweepPeriod = 5 * time.Millisecond
}

// freeze lets nothing expire, so that the tables can be read while the kernel's timer runs. A go of the timer that
// began before is over when a sweep is: only one walks at a time.
func (r *rig) freeze() {
	r.t.Helper()
	r.must("freeze", func() error {
		s, err := r.dp.Settings()
		if err != nil {
			return err
		}
		long := dataplane.DefaultSettings()
		long.PortLow, long.PortHigh, long.SessionsPerBinding = s.PortLow, s.PortHigh, s.SessionsPerBinding
		return errors.Join(r.dp.Configure(long), r.dp.Sweep())
	})
}

// settled checks the tables as they are, and that nothing remains once everything has expired: no entry of
// any table is lost to the sweeper.
func (r *rig) settled() {
	r.t.Helper()
	r.freeze()
	r.consistent()
	r.uniqueOwners()
	for _, never := range []string{"dropped_rewrite", "dropped_malformed", "passed_no_link"} {
		if n := r.count(never); n != 0 {
			r.t.Errorf("%s: %d", never, n)
		}
	}
	r.must("thaw", func() error {
		s, err := r.dp.Settings()
		shortTimeouts(&s)
		return errors.Join(err, r.dp.Configure(s))
	})
	r.drained()
}

// drained sweeps until the tables are empty, or for so long that they should be.
func (r *rig) drained() {
	r.t.Helper()
	for deadline := time.Now().Add(patience.For(5 * time.Second)); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var u dataplane.Usage
		r.must("sweep", func() (err error) {
			u, err = r.dp.Usage()
			return errors.Join(err, r.dp.Sweep())
		})
		if u.Sessions == 0 && u.Bindings == 0 {
			break
		}
	}
	r.empty()
}

// uniqueOwners: each external and each internal endpoint is of one binding.
func (r *rig) uniqueOwners() {
	r.t.Helper()
	r.must("bindings", func() error {
		seen := map[string]bool{}
		all, err := r.dp.Bindings()
		for _, b := range all {
			for _, key := range []string{fmt.Sprint(b.Protocol, " external ", b.External), fmt.Sprint(b.Protocol, b.Network, " internal ", b.Internal)} {
				if seen[key] {
					r.t.Errorf("%s has two bindings", key)
				}
				seen[key] = true
			}
		}
		return err
	})
}

// frames are prebuilt, so that what is measured against each other is the packet path.
func frames(n int, spec func(i int) Spec) func(int) []byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = spec(i).Bytes()
	}
	return func(i int) []byte { return out[i%n] }
}

func endpointOf(addr string, port int) string { return fmt.Sprintf("%s:%d", addr, port) }

// TestRaces: two CPUs at once, and the sweeper between them.
func TestRaces(t *testing.T) {
	require.Long(t, "hammers for seconds")
	for name, c := range map[string]struct {
		options []option
		senders func(*bpf.Objects) []hammer
	}{
		"OneEndpointManyRemotes": {nil, oneEndpoint},
		"ManyEndpointsFewPorts":  {[]option{withPorts(40000, 40003)}, fewPorts},
		"SameFirstPacket":        {nil, sameFirstPacket},
		"BothDirections":         {[]option{withFiltering(dataplane.EndpointIndependent)}, bothDirections},
		"Hairpins":               {nil, hairpins},
		"HostAndContainer":       {[]option{withPorts(40000, 40007)}, hostAndContainer},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, append(c.options, withRealClock(), withSettings(shortTimeouts))...)
			r.hammers(r.dp.Sweep, c.senders(r.dp.Objects())...)
			r.settled()
		})
	}
}

func oneEndpoint(o *bpf.Objects) []hammer {
	towards := func(remote string) hammer {
		return hammer{o.NatInside, "p1", frames(997, func(i int) Spec {
			return fromContainer(UDP(c1+":5000", endpointOf(remote, 1+i), "x"))
		})}
	}
	return []hammer{towards(peer1), towards(peer2)}
}

func fewPorts(o *bpf.Objects) []hammer {
	from := func(addr string) hammer {
		return hammer{o.NatInside, "p1", frames(997, func(i int) Spec {
			return fromContainer(UDP(endpointOf(addr, 40000+i%7), endpointOf(peer1, 1+i%3), "x"))
		})}
	}
	return []hammer{from(c1), from(c2)}
}

func sameFirstPacket(o *bpf.Objects) []hammer {
	same := hammer{o.NatInside, "p1", frames(2000, func(i int) Spec {
		return fromContainer(pickProtocol(i, endpointOf(c1, 5000+i/3), peer1+":1"))
	})}
	return []hammer{same, same}
}

func pickProtocol(i int, src, dst string) Spec {
	return packetOf([]string{"udp", "tcp", "icmp"}[i%3], src, dst)
}

func bothDirections(o *bpf.Objects) []hammer {
	out := hammer{o.NatInside, "p1", frames(500, func(i int) Spec {
		return fromContainer(UDP(endpointOf(c1, 5000+i%50), endpointOf(peer1, 1+i/50), "x"))
	})}
	in := hammer{o.NatOutsideIngress, "eth0", frames(500, func(i int) Spec {
		return fromOutside(UDP(endpointOf(peer1, 1+i/50), endpointOf(external, 5000+i%50), "x"))
	})}
	return []hammer{out, in}
}

func hairpins(o *bpf.Objects) []hammer {
	pair := func(from, to string, dev string) hammer {
		return hammer{o.NatInside, dev, frames(600, func(i int) Spec {
			if i%4 == 0 {
				return fromContainer(UDP(endpointOf(from, 5000+i%5), endpointOf(peer1, 1), "x"))
			}
			return fromContainer(UDP(endpointOf(from, 5000+i%5), endpointOf(external, 5000+i%9), "x"))
		})}
	}
	return []hammer{pair(c1, c2, "p1"), pair(c2, c1, "p2")}
}

func hostAndContainer(o *bpf.Objects) []hammer {
	host := hammer{o.NatOutsideEgress, "eth0", frames(600, func(i int) Spec {
		return fromOutside(UDP(endpointOf(external, 40000+i%8), endpointOf(peer1, 1+i%3), "x"))
	})}
	container := hammer{o.NatInside, "p1", frames(600, func(i int) Spec {
		return fromContainer(UDP(endpointOf(c1, 40000+i%11), endpointOf(peer2, 1+i%3), "x"))
	})}
	return []hammer{host, container}
}

// TestKillUnderFire: forwards that come and go while packets open sessions through them. The tables are
// small, so that the walks that end sessions meet those that are being opened.
func TestKillUnderFire(t *testing.T) {
	require.Long(t, "hammers for seconds")
	// A session that a walk missed ends with the timer's next one.
	r := newRig(t, withRealClock(), withSmallTables(), withSettings(func(s *dataplane.Settings) { s.SweepPeriod = 5 * time.Millisecond }))
	forward := dataplane.Forward{Protocol: dataplane.UDP, External: Endpoint(external + ":5000"), Internal: Endpoint(c1 + ":5000")}
	kills := 0
	comeAndGo := func() error {
		for range 100 {
			if _, err := r.dp.AddForward(forward); errors.Is(err, dataplane.ErrPortTaken) {
				return nil
			} else if err != nil {
				return err
			}
			if err := r.dp.RemoveForward(forward.Protocol, forward.External); err != nil {
				return err
			}
			kills++
		}
		return nil
	}
	send := func(remote string) hammer {
		return hammer{r.dp.Objects().NatOutsideIngress, "eth0", frames(3000, func(i int) Spec {
			return fromOutside(UDP(endpointOf(remote, 1+i), external+":5000", "x"))
		})}
	}
	for range 5 {
		r.hammers(comeAndGo, send(peer1), send(peer2))
	}
	r.drained()
	if n := r.count("translated_inbound"); n == 0 || kills == 0 {
		t.Errorf("%d packets came through %d forwards", n, kills)
	}
	t.Logf("%d forwards, %d packets through them", kills, r.count("translated_inbound"))
}
