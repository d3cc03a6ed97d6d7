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
	value := ethtoolValue{command: unix.ETHTOOL_STXCSUM}
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
		return fmt.Errorf("set transmit checksum offload of %s in namespace %s to %v: %w", name, ns.Name, on, err)
	}
	return nil
}

// ethtoolValue is struct ethtool_value (include/uapi/linux/ethtool.h).
type ethtoolValue struct{ command, data uint32 }

// ifreqData is struct ifreq (include/uapi/linux/if.h) with ifr_data.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}
