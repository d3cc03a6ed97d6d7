// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/require"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Spec{
		"virtio-net-pci":          {"virtio-net-pci", 1},
		"virtio-net-pci,queues=4": {"virtio-net-pci", 4},
		"e1000e":                  {"e1000e", 1},
		"igb,queues=1":            {"igb", 1},
	} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "igb,", "igb,queues=2", "virtio-net-pci,queues=0", "virtio-net-pci,queues=9", "igb,id=x", "igb mac"} {
		if got, err := Parse(text); err == nil || !strings.Contains(err.Error(), "wire \""+text+"\"") {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	if specs, err := ParseAll(make([]string, maxWires+1)); err == nil {
		t.Errorf("%d wires were taken", len(specs))
	}
}

func TestArgs(t *testing.T) {
	specs := []Spec{{"virtio-net-pci", 2}, {"e1000e", 1}}
	want := []string{
		"-netdev", "tap,id=wire0a,fds=7:8", "-device", "virtio-net-pci,netdev=wire0a,mac=02:76:6d:74:00:00,romfile=,mq=on,vectors=6",
		"-netdev", "tap,id=wire0b,fds=9:10", "-device", "virtio-net-pci,netdev=wire0b,mac=02:76:6d:74:00:01,romfile=,mq=on,vectors=6",
		"-netdev", "tap,id=wire1a,fds=11", "-device", "e1000e,netdev=wire1a,mac=02:76:6d:74:01:00,romfile=",
		"-netdev", "tap,id=wire1b,fds=12", "-device", "e1000e,netdev=wire1b,mac=02:76:6d:74:01:01,romfile=",
	}
	if diff := cmp.Diff(want, Args(specs, 7)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	const environment = "virtio-net-pci 2 02:76:6d:74:00:00 02:76:6d:74:00:01,e1000e 1 02:76:6d:74:01:00 02:76:6d:74:01:01"
	if got := Environment(specs); got != environment {
		t.Errorf("%s=%q", Variable, got)
	}
}

// TestWire sends a frame over each wire, with what the card says of it: that it is to be segmented.
func TestWire(t *testing.T) {
	require.Root(t)
	files, err := Open([]Spec{{"a", 1}, {"b", 2}})
	if err != nil {
		t.Fatal(err)
	}
	defer Close(files)
	if len(files) != 6 {
		t.Fatalf("%d descriptors, want 2 of the one wire and 4 of the other", len(files))
	}
	for _, f := range files {
		offloads := unix.TUN_F_CSUM | unix.TUN_F_TSO4 // what a card does that can do that
		if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETOFFLOAD, offloads); err != nil {
			t.Fatal(err)
		}
	}
	first, second := segments("first"), segments("second")
	if _, err := files[0].Write(first); err != nil {
		t.Fatal(err)
	}
	receives(t, files[1:2], first)
	if _, err := files[2].Write(second); err != nil {
		t.Fatal(err)
	}
	receives(t, files[4:], second)
	receivesNothing(t, files[:4])
}

// segments is a broadcast TCP packet of 4000 bytes behind struct virtio_net_hdr: its checksum is partial, and it is
// to be sent in segments of 1000.
func segments(text string) []byte {
	const ipHeader, tcpHeader, payload = 20, 20, 4000
	frame := []byte{1 /* NEEDS_CSUM */, 1 /* TCPV4 */, 54, 0, 1000 % 256, 1000 / 256, 34, 0, 16, 0}
	frame = append(frame, bytes.Repeat([]byte{0xff}, 6)...)
	frame = append(frame, 2, 0, 0, 0, 0, 1, 8, 0)
	const length = ipHeader + tcpHeader + payload
	frame = append(frame, 0x45, 0, length/256, length%256, 0, 1, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2)
	frame = append(frame, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0)
	return append(frame, append([]byte(text), make([]byte, payload-len(text))...)...)
}

func receives(t *testing.T, queues []*os.File, want []byte) {
	t.Helper()
	f := readable(t, queues, 5*time.Second)
	if f == nil {
		t.Fatal("no frame came")
	}
	got := make([]byte, 1<<16)
	n, err := f.Read(got)
	if err != nil || !bytes.Equal(got[:n], want) {
		t.Errorf("%s got %d bytes, %v: %x, want %d: %x", f.Name(), n, err, got[:min(n, 80)], len(want), want[:80])
	}
}

func receivesNothing(t *testing.T, queues []*os.File) {
	t.Helper()
	if f := readable(t, queues, 0); f != nil {
		got := make([]byte, 1<<16)
		n, err := f.Read(got)
		t.Errorf("%s got %x, %v", f.Name(), got[:n], err)
	}
}

// readable waits for one of the queues to have a frame.
func readable(t *testing.T, queues []*os.File, wait time.Duration) *os.File {
	t.Helper()
	var polled []unix.PollFd
	for _, f := range queues {
		polled = append(polled, unix.PollFd{Fd: int32(f.Fd()), Events: unix.POLLIN})
	}
	deadline := time.Now().Add(wait)
	n, err := unix.Poll(polled, int(wait.Milliseconds()))
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll(polled, int(max(0, time.Until(deadline)).Milliseconds()))
	}
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		return nil
	}
	for i, p := range polled {
		if p.Revents&unix.POLLIN != 0 {
			return queues[i]
		}
	}
	return nil
}

// TestNothingIsLeft: the kernel says so when the namespace is gone, to those who have a name for it.
func TestNothingIsLeft(t *testing.T) {
	require.Root(t)
	gone, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_NSID)
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	files, err := Open([]Spec{{"a", 2}})
	if err != nil {
		t.Fatal(err)
	}
	defer Close(files)
	if _, err := netlink.LinkByName("tap0a"); err == nil {
		t.Error("the wire is in the caller's namespace")
	}
	id := nameNamespace(t, files[0])
	Close(files)
	if err := gone.SetReceiveTimeout(&unix.Timeval{Sec: 20}); err != nil {
		t.Fatal(err)
	}
	for {
		messages, _, err := gone.Receive()
		if err != nil {
			t.Fatalf("the wires' namespace is still there: %v", err)
		}
		for _, m := range messages {
			if m.Header.Type == unix.RTM_DELNSID && bytes.Contains(m.Data, nl.NewRtAttr(unix.NETNSA_NSID, nl.Uint32Attr(uint32(id))).Serialize()) {
				return
			}
		}
	}
}

// nameNamespace gives the namespace of a TAP device an ID in this one.
func nameNamespace(t *testing.T, tap *os.File) (id int) {
	t.Helper()
	ns, _, errno := unix.Syscall(unix.SYS_IOCTL, tap.Fd(), unix.TUNGETDEVNETNS, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	defer unix.Close(int(ns))
	if err := netlink.SetNetNsIdByFd(int(ns), -1); err != nil {
		t.Fatal(err)
	}
	id, err := netlink.GetNetNsIdByFd(int(ns))
	if err != nil {
		t.Fatal(err)
	}
	return id
}
