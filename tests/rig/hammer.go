// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/patience"
)

// Each CPU sends so many packets, or for so long: half a second is enough for them, and ten are in software emulation.
const (
	hammerPackets = 20000
	hammerTime    = 2 * time.Second
)

// Hammer is one sender: a program, an interface, and its i-th frame.
type Hammer struct {
	Program *ebpf.Program
	Dev     string
	Frame   func(i int) []byte
}

// Hammers runs each sender on a CPU of its own, in the rig's network namespace, and meanwhile does something
// else again and again on the rig's own thread.
func (r *Rig) Hammers(meanwhile func() error, senders ...Hammer) {
	r.T.Helper()
	var ns int
	r.Must("open network namespace", func() (err error) {
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
				if err := r.Do(meanwhile); err != nil {
					r.T.Errorf("meanwhile: %v", err)
					return
				}
				time.Sleep(time.Millisecond)
			}
		}
	})
	close(start)
	for range senders {
		if err := <-errs; err != nil {
			r.T.Errorf("send: %v", err)
		}
	}
	close(stop)
	done.Wait()
}

// hammerOn never unlocks its thread: it ends with the goroutine, and no other one finds itself elsewhere.
func (r *Rig) hammerOn(cpu, ns int, h Hammer, start chan struct{}) error {
	runtime.LockOSThread()
	pinThread(cpu)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the rig's network namespace: %w", err)
	}
	<-start
	end := time.Now().Add(hammerTime)
	for i := 0; i < hammerPackets && time.Now().Before(end); i++ {
		if _, err := r.Run(h.Program, h.Dev, h.Frame(i)); err != nil {
			return err
		}
	}
	return nil
}

// ShortTimeouts let every session end while packets come. Who opens one has put both its halves into the table by
// then: the CPUs of a virtual machine stand still for tens of milliseconds when their host is busy.
func ShortTimeouts(s *dataplane.Settings) {
	lifetime := patience.For(40 * time.Millisecond)
	for _, d := range []*time.Duration{&s.UDPTimeout, &s.TCPEstablishedTimeout, &s.TCPPartialOpenTimeout, &s.TCPClosingTimeout, &s.ICMPTimeout} {
		*d = lifetime
	}
	s.SweepPeriod = 5 * time.Millisecond
}

// freeze lets nothing expire, so that the tables can be read while the kernel's timer runs. A go of the timer that
// began before is over when a sweep is: only one walks at a time.
func (r *Rig) freeze() {
	r.T.Helper()
	r.Must("freeze", func() error {
		s, err := r.DP.Settings()
		if err != nil {
			return err
		}
		long := dataplane.DefaultSettings()
		long.PortLow, long.PortHigh, long.SessionsPerBinding = s.PortLow, s.PortHigh, s.SessionsPerBinding
		return errors.Join(r.DP.Configure(long), r.DP.Sweep())
	})
}

// Settled checks the tables as they are, and that nothing remains once everything has expired: no entry of
// any table is lost to the sweeper.
func (r *Rig) Settled() {
	r.T.Helper()
	r.freeze()
	r.Consistent()
	r.uniqueOwners()
	for _, never := range []string{"dropped_rewrite", "dropped_malformed", "passed_no_link"} {
		if n := r.Count(never); n != 0 {
			r.T.Errorf("%s: %d", never, n)
		}
	}
	r.Must("thaw", func() error {
		s, err := r.DP.Settings()
		ShortTimeouts(&s)
		return errors.Join(err, r.DP.Configure(s))
	})
	r.Drained()
}

// Drained sweeps until the tables are empty, or for so long that they should be.
func (r *Rig) Drained() {
	r.T.Helper()
	for deadline := time.Now().Add(patience.For(5 * time.Second)); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var u dataplane.Usage
		r.Must("sweep", func() (err error) {
			u, err = r.DP.Usage()
			return errors.Join(err, r.DP.Sweep())
		})
		if u.Sessions == 0 && u.Bindings == 0 {
			break
		}
	}
	r.Empty()
}

// uniqueOwners: each external endpoint is of one binding, without ports towards a remote, and so is each internal one towards a remote.
func (r *Rig) uniqueOwners() {
	r.T.Helper()
	r.Must("bindings", func() error {
		seen := map[string]bool{}
		all, err := r.DP.Bindings()
		for _, b := range all {
			external := fmt.Sprint(b.Protocol, " external ", b.External)
			if !b.Protocol.HasPorts() {
				external += fmt.Sprint(" towards ", b.Remote)
			}
			for _, key := range []string{external, fmt.Sprint(b.Protocol, b.Network, " internal ", b.Internal, b.Remote)} {
				if seen[key] {
					r.T.Errorf("%s has two bindings", key)
				}
				seen[key] = true
			}
		}
		return err
	})
}
