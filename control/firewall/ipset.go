// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ipset reads struct xt_set_info at the beginning of a set match: index, dimensions, flags. The kernel keeps
// the set's index, and Docker 27's rules are only told by its name.
func (r *rule) ipset(revision uint32, info []byte) bool {
	if revision == 0 || len(info) < 4 {
		return false
	}
	name, err := ipsetName(binary.NativeEndian.Uint16(info))
	if err != nil {
		return false
	}
	const inverse = 1
	dimensions, flags := int(info[2]), info[3]
	direction := ""
	for i := 1; i <= dimensions; i++ {
		side := "dst"
		if flags&(1<<i) != 0 {
			side = "src"
		}
		if i > 1 {
			direction += ","
		}
		direction += side
	}
	r.extra = append(r.extra, fmt.Sprintf("-m set %s--match-set %s %s", not(flags&inverse != 0, "! "), name, direction))
	return true
}

// ipsetName asks the kernel for the name of an ipset, as iptables does (SO_IP_SET of linux/netfilter/ipset/ip_set.h).
func ipsetName(index uint16) (string, error) {
	const (
		option         = 83 // SO_IP_SET
		getVersion     = 0x100
		getNameByIndex = 0x7
	)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	version := struct{ op, version uint32 }{op: getVersion}
	if err := sockoptInOut(fd, option, unsafe.Pointer(&version), unsafe.Sizeof(version)); err != nil {
		return "", fmt.Errorf("ask for ipset's version: %w", err)
	}
	request := struct { // ip_set_req_get_set: the union holds a name or an index
		op, version uint32
		set         [32]byte
	}{op: getNameByIndex, version: version.version}
	binary.NativeEndian.PutUint16(request.set[:], index)
	if err := sockoptInOut(fd, option, unsafe.Pointer(&request), unsafe.Sizeof(request)); err != nil {
		return "", fmt.Errorf("ask for the name of ipset %d: %w", index, err)
	}
	name, _, _ := bytes.Cut(request.set[:], []byte{0})
	return string(name), nil
}

// sockoptInOut is a getsockopt whose value is also its question.
func sockoptInOut(fd, option int, value unsafe.Pointer, size uintptr) error {
	length := uint32(size)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_IP, uintptr(option),
		uintptr(value), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
