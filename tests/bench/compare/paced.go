// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/bench/load"
	"github.com/conenat/conenat/tests/bench/report"
)

// pace is how often a burst is sent.
const pace = time.Millisecond

// paced is a load at a rate, by a packet socket on each CPU: a generator sends as fast as it can or not at all.
type paced struct {
	workers []*worker
	ended   atomic.Bool
	done    chan error
}

// worker sends on one CPU.
type worker struct {
	fd, burst int
	frames    [][]byte
	sent      int
	took      time.Duration
}

// startPaced sends so many packets in a second from inside until it is stopped.
func (c *course) startPaced(rate int) (*paced, error) {
	w, err := c.way(report.Load{Sessions: besideSessions, Size: load.MinSize}, false, firstRemote)
	if err != nil {
		return nil, err
	}
	cpus := runtime.NumCPU()
	p := &paced{done: make(chan error, cpus)}
	for cpu := range cpus {
		one := &worker{frames: w.stream.Frames(), burst: max(1, rate/cpus/int(time.Second/pace))}
		if one.fd, err = packetSocket(w); err != nil {
			_, _, stopErr := p.stop()
			return nil, errors.Join(fmt.Errorf("open a packet socket in %s: %w", w.from.Name, err), stopErr)
		}
		p.workers = append(p.workers, one)
		go func() { p.done <- load.OnCPU(cpu, func() error { return one.run(&p.ended) }) }()
	}
	return p, nil
}

// packetSocket sends by a way's interface, and receives nothing: its protocol is 0.
func packetSocket(w way) (fd int, err error) {
	err = w.from.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: w.stream.Interface}); err != nil {
			unix.Close(fd)
		}
		return err
	})
	return fd, err
}

// run sends a burst each millisecond; what it is late for, it leaves out.
func (w *worker) run(ended *atomic.Bool) error {
	begin := time.Now()
	for next := begin; !ended.Load() || w.sent == 0; {
		for range w.burst {
			if _, err := unix.Write(w.fd, w.frames[w.sent%len(w.frames)]); err != nil {
				return fmt.Errorf("send a load: %w", err)
			}
			w.sent++
		}
		if next = next.Add(pace); time.Until(next) > 0 {
			time.Sleep(time.Until(next))
		} else {
			next = time.Now()
		}
	}
	w.took = time.Since(begin)
	return nil
}

// stop says what was sent, in which time.
func (p *paced) stop() (sent int, took time.Duration, err error) {
	p.ended.Store(true)
	for range p.workers {
		err = errors.Join(err, <-p.done)
	}
	for _, w := range p.workers {
		err = errors.Join(err, unix.Close(w.fd))
		sent, took = sent+w.sent, max(took, w.took)
	}
	return sent, took, err
}
