// SPDX-License-Identifier: Apache-2.0

package drivers

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's names of what a card and its driver do (net/ethtool/common.c).
const (
	txChecksum   = "tx-checksum-ip-generic"
	txSegments   = "tx-tcp-segmentation"
	txGSO        = "tx-generic-segmentation" // by the kernel, in the driver's place
	rxChecksum   = "rx-checksum"
	rxGRO        = "rx-gro"                // by the kernel
	rxSegments   = "rx-gro-hw"             // virtio: what the sender's card would have cut arrives whole
	rxUDPForward = "rx-udp-gro-forwarding" // datagrams of one flow become one packet
)

// From include/uapi/linux/ethtool.h.
const (
	getStringSetInfo = 0x37
	getStrings       = 0x1b
	getFeatures      = 0x3a
	setFeatures      = 0x3b
	stringsFeatures  = 4
	stringLength     = 32
)

// ethtool asks the driver of a card; the request is a struct of ethtool.h, and holds the answer then.
func (n *nic) ethtool(request []byte) error {
	return n.ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		ifreq := struct { // with ifr_data
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&request[0])}
		copy(ifreq.name[:unix.IFNAMSIZ-1], n.name)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
			return fmt.Errorf("ask ethtool of %s for %#x: %w", n.name, request[0], errno)
		}
		return nil
	})
}

// words are a request that begins with these, in the machine's byte order, and has more bytes for the answer.
func words(more int, first ...uint32) []byte {
	b := make([]byte, 4*len(first), 4*len(first)+more)
	for i, w := range first {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return append(b, make([]byte, more)...)
}

// featureNames are in the order of their bits.
func (n *nic) featureNames() ([]string, error) {
	info := words(4, getStringSetInfo, 0, 1<<stringsFeatures, 0) // struct ethtool_sset_info
	if err := n.ethtool(info); err != nil {
		return nil, err
	}
	count := binary.NativeEndian.Uint32(info[16:])
	set := words(int(count)*stringLength, getStrings, stringsFeatures, count) // struct ethtool_gstrings
	if err := n.ethtool(set); err != nil {
		return nil, err
	}
	var names []string
	for name := range slices.Chunk(set[12:], stringLength) {
		names = append(names, string(bytes.TrimRight(name, "\x00")))
	}
	return names, nil
}

// features are those that are on.
func (n *nic) features() (map[string]bool, error) {
	names, err := n.featureNames()
	if err != nil {
		return nil, err
	}
	const block = 16 // struct ethtool_get_features_block: available, requested, active, never_changed
	blocks := (len(names) + 31) / 32
	answer := words(blocks*block, getFeatures, uint32(blocks))
	if err := n.ethtool(answer); err != nil {
		return nil, err
	}
	on := map[string]bool{}
	for i, name := range names {
		active := binary.NativeEndian.Uint32(answer[8+block*(i/32)+8:])
		on[name] = active&(1<<(i%32)) != 0
	}
	return on, nil
}

// request asks for features to be on or off; what depends on them follows. An e1000e resets itself for some of them: it is
// waited for.
func (n *nic) request(want map[string]bool) error {
	names, err := n.featureNames()
	if err != nil {
		return err
	}
	const block = 8 // struct ethtool_set_features_block: valid, requested
	blocks := (len(names) + 31) / 32
	request := words(blocks*block, setFeatures, uint32(blocks))
	for i, name := range names {
		on, asked := want[name]
		if !asked {
			continue
		}
		at, bit := 8+block*(i/32), uint32(1)<<(i%32)
		set := func(at int) {
			binary.NativeEndian.PutUint32(request[at:], binary.NativeEndian.Uint32(request[at:])|bit)
		}
		set(at)
		if on {
			set(at + 4)
		}
	}
	if err := n.ethtool(request); err != nil {
		return err
	}
	return n.carrier()
}

// set switches features on or off until the test's end, and looks whether they are. What the driver does not let be switched is
// left: which that is, is for the caller to know.
func (n *nic) set(t *testing.T, on bool, names ...string) {
	t.Helper()
	before, err := n.features()
	if err != nil {
		t.Fatal(err)
	}
	want, restore := map[string]bool{}, map[string]bool{}
	for _, name := range names {
		want[name] = on
	}
	for name, was := range before { // also what depends on what is set
		if was {
			restore[name] = true
		} else if want[name] {
			restore[name] = false
		}
	}
	if err := n.request(want); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.request(restore); err != nil {
			t.Errorf("give card %s its features back: %v", n.name, err)
		}
	})
	n.check(t, want)
}

// check fails unless the features are on or off as wanted.
func (n *nic) check(t *testing.T, want map[string]bool) {
	t.Helper()
	got, err := n.features()
	if err != nil {
		t.Fatal(err)
	}
	for name, on := range want {
		if got[name] != on {
			t.Fatalf("%s, %s: %s is %v", n.name, n.model, name, got[name])
		}
	}
}
