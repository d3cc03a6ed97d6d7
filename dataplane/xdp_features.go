// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// From include/uapi/linux/netdev.h (Linux 6.3).
const (
	netdevFamily       = "netdev"
	netdevVersion      = 1
	netdevGetDevice    = 1
	netdevIfIndex      = 1
	netdevXDPFeatures  = 3
	xdpFeatureRedirect = 1 << 1 // what comes in can be redirected
	xdpFeatureTransmit = 1 << 2 // what is redirected to it is sent; of a veth: the other end takes it
)

// xdpFeatures are what a driver says that it can do just now; known is false before Linux 6.3, which does not say.
func xdpFeatures(ifindex int) (features uint64, known bool, err error) {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("ask for generic netlink's %s: %w", netdevFamily, err)
	}
	request := nl.NewNetlinkRequest(int(family.ID), 0)
	request.AddData(genericHeader{netdevGetDevice, netdevVersion})
	request.AddData(nl.NewRtAttr(netdevIfIndex, nl.Uint32Attr(uint32(ifindex))))
	messages, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err == nil && len(messages) == 0 {
		err = unix.ENODATA
	}
	if err != nil {
		return 0, false, fmt.Errorf("ask what the driver can do at XDP: %w", err)
	}
	attrs, err := nl.ParseRouteAttrAsMap(messages[0][nl.SizeofGenlmsg:])
	if err != nil {
		return 0, false, fmt.Errorf("read what the driver can do at XDP: %w", err)
	}
	if value := attrs[netdevXDPFeatures].Value; len(value) == 8 {
		return binary.NativeEndian.Uint64(value), true, nil
	}
	return 0, false, nil
}

// genericHeader is struct genlmsghdr. nl.Genlmsg is two bytes short of it, and this family looks at what is reserved.
type genericHeader [nl.SizeofGenlmsg]byte

// Len is the header's, in bytes.
func (h genericHeader) Len() int { return len(h) }

// Serialize is what goes to the kernel.
func (h genericHeader) Serialize() []byte { return h[:] }

// checkRedirects refuses an interface of which frames that are redirected would be lost without a word.
func checkRedirects(l Link) error {
	features, known, err := xdpFeatures(l.IfIndex)
	switch {
	case err != nil || !known:
		return err
	case l.Kind == InsidePort && features&xdpFeatureTransmit == 0:
		return errors.New("the container's end takes no frames of XDP, although its GRO is on")
	case l.Kind != InsidePort && features&xdpFeatureRedirect == 0:
		return fmt.Errorf("driver %s has native XDP, but redirects nothing", driverOf(l.Name))
	case l.Kind != InsidePort && features&xdpFeatureTransmit == 0:
		return fmt.Errorf("driver %s has native XDP, but sends nothing that is redirected to it (a veth does where GRO is on at its other end)", driverOf(l.Name))
	}
	return nil
}
