// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/topo"
)

// talk is round trips of one byte between two namespaces. The sockets block: what the Go runtime does between a packet and a
// goroutine is not to be in it.
type talk struct {
	protocol       string
	client, server *topo.NS
	at, to         netip.AddrPort // where the server is, and what the client calls
	time           time.Duration
}

// receiveTimeout is after how long a byte counts as lost; the server looks as often for the end.
const receiveTimeout = 200 * time.Millisecond

// connectWithin bounds TCP's handshake.
const connectWithin = 5 * time.Second

// samples are at least one.
func (t talk) samples() ([]time.Duration, error) {
	client, server, err := t.connect()
	if err != nil {
		return nil, fmt.Errorf("%s from %s to %s: %w", t.protocol, t.client.Name, t.to, err)
	}
	defer unix.Close(client)
	var stop atomic.Bool
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer unix.Close(server)
		done <- echo(server, &stop)
	}()
	samples, err := ask(client, t.time)
	stop.Store(true)
	err = errors.Join(err, <-done)
	if err == nil && len(samples) == 0 {
		err = errors.New("no answer")
	}
	if err != nil {
		return nil, fmt.Errorf("%s round trips from %s to %s: %w", t.protocol, t.client.Name, t.to, err)
	}
	return samples, nil
}

// connect returns the descriptors of both ends.
func (t talk) connect() (client, server int, err error) {
	var ends [2]net.Conn
	if t.protocol == "udp" {
		ends[1], err = t.server.ListenUDP(t.at)
		if err == nil {
			defer ends[1].Close()
			ends[0], err = t.client.DialUDP(netip.AddrPort{}, t.to)
		}
	} else {
		ends, err = t.connectTCP()
	}
	if err != nil {
		return 0, 0, err
	}
	defer ends[0].Close()
	if ends[1] != nil && t.protocol != "udp" {
		defer ends[1].Close()
	}
	if client, err = blocking(ends[0]); err != nil {
		return 0, 0, err
	}
	if server, err = blocking(ends[1]); err != nil {
		unix.Close(client)
	}
	return client, server, err
}

func (t talk) connectTCP() (ends [2]net.Conn, err error) {
	listener, err := t.server.ListenTCP(t.at)
	if err != nil {
		return ends, err
	}
	defer listener.Close()
	if err := listener.SetDeadline(time.Now().Add(connectWithin)); err != nil {
		return ends, err
	}
	dialled := make(chan error, 1)
	go func() {
		conn, err := t.client.DialTCP(netip.AddrPort{}, t.to)
		ends[0] = conn
		dialled <- err
	}()
	conn, err := listener.Accept()
	if err != nil {
		return ends, errors.Join(err, <-dialled)
	}
	if err := <-dialled; err != nil {
		conn.Close()
		return ends, err
	}
	ends[1] = conn
	return ends, nil
}

// blocking is a descriptor of its own, which the Go runtime does not wait for.
func blocking(conn net.Conn) (fd int, err error) {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return -1, err
	}
	controlErr := raw.Control(func(own uintptr) {
		if fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = unix.SetNonblock(fd, false)
		}
	})
	if err = errors.Join(controlErr, err); err != nil {
		return -1, err
	}
	timeout := unix.NsecToTimeval(receiveTimeout.Nanoseconds())
	return fd, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
}

// echo answers until it is stopped, or the other end closes.
func echo(fd int, stop *atomic.Bool) error {
	var b [16]byte
	for !stop.Load() {
		n, from, err := unix.Recvfrom(fd, b[:], 0)
		switch {
		case isTimeout(err):
			continue
		case err != nil:
			return fmt.Errorf("receive: %w", err)
		case n == 0:
			return nil
		}
		if from == nil {
			_, err = unix.Write(fd, b[:n])
		} else {
			err = unix.Sendto(fd, b[:n], 0, from)
		}
		if err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
	return nil
}

func isTimeout(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) }

// answerWithin is how long the first answer may take on a machine that is busy.
const answerWithin = 10 * time.Second

// ask sends a byte and waits for it, for a time, or longer until it has one sample. The first round trip opens the session, and
// does not count.
func ask(fd int, d time.Duration) (samples []time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var sent, got [1]byte
	opened, begin := false, time.Now()
	for time.Since(begin) < d || len(samples) == 0 && time.Since(begin) < answerWithin {
		sent[0]++
		before := time.Now()
		if _, err := unix.Write(fd, sent[:]); err != nil {
			return samples, fmt.Errorf("send: %w", err)
		}
		for got[0] = sent[0] - 1; got[0] != sent[0]; { // an answer that was lost may come late
			n, err := unix.Read(fd, got[:])
			if isTimeout(err) {
				break
			}
			if err != nil || n == 0 {
				return samples, fmt.Errorf("receive %d bytes: %w", n, err)
			}
		}
		if took := time.Since(before); opened && got[0] == sent[0] {
			samples = append(samples, took)
		}
		opened = opened || got[0] == sent[0]
	}
	return samples, nil
}
