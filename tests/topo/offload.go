// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TransmitOffload switches an interface's checksum offload for what it sends, and segmentation with it (ethtool -K
// NAME tx). It is on in a new veth: packets then carry half a checksum that nobody verifies. Switched off at the
// sender, the receiver verifies what the code under test made of the checksum.
func (ns *NS) TransmitOffload(name string, on bool) error {
	_, err := ns.ethtool(name, "set transmit checksum offload", unix.ETHTOOL_STXCSUM, on)
	return err
}

// SetGRO switches an interface's receive offload: without it, and without an XDP program, a veth takes no frames that somebody
// redirects to its other end by XDP.
func (ns *NS) SetGRO(name string, on bool) error {
	_, err := ns.ethtool(name, "set GRO", unix.ETHTOOL_SGRO, on)
	return err
}

// GRO says whether it is on.
func (ns *NS) GRO(name string) (bool, error) {
	return ns.ethtool(name, "read GRO", unix.ETHTOOL_GGRO, false)
}

func (ns *NS) ethtool(name, what string, command uint32, on bool) (bool, error) {
	value := ethtoolValue{command: command}
	if on {
		value.data = 1
	}
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		request := ifreqData{data: unsafe.Pointer(&value)}
		copy(request.name[:unix.IFNAMSIZ-1], name)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("%s of %s in namespace %s (%v): %w", what, name, ns.Name, on, err)
	}
	return value.data != 0, nil
}

// ethtoolValue is struct ethtool_value (include/uapi/linux/ethtool.h).
type ethtoolValue struct{ command, data uint32 }

// ifreqData is struct ifreq (include/uapi/linux/if.h) with ifr_data.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}
