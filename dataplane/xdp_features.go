// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
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

// xdpFeatures are what drivers of this network namespace say that they can do just now, by interface; none before Linux 6.3, which
// does not say.
func xdpFeatures() (map[uint32]uint64, error) {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask for generic netlink's %s: %w", netdevFamily, err)
	}
	messages, err := dumpDevices(family.ID)
	if err != nil {
		return nil, fmt.Errorf("ask what drivers can do at XDP: %w", err)
	}
	all := map[uint32]uint64{}
	for _, m := range messages {
		attrs, err := nl.ParseRouteAttrAsMap(m.Data[nl.SizeofGenlmsg:])
		if err != nil {
			return nil, fmt.Errorf("read what drivers can do at XDP: %w", err)
		}
		index, features := attrs[netdevIfIndex].Value, attrs[netdevXDPFeatures].Value
		if len(index) == 4 && len(features) == 8 {
			all[binary.NativeEndian.Uint32(index)] = binary.NativeEndian.Uint64(features)
		}
	}
	return all, nil
}

// dumpDevices is a request's Execute, which takes this family's first message for the only one: it is not marked as one of several.
func dumpDevices(family uint16) (all []syscall.NetlinkMessage, err error) {
	socket, err := nl.Subscribe(unix.NETLINK_GENERIC)
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	request := nl.NewNetlinkRequest(int(family), unix.NLM_F_DUMP)
	request.AddData(genericHeader{netdevGetDevice, netdevVersion})
	if err := socket.Send(request); err != nil {
		return nil, err
	}
	for {
		messages, _, err := socket.Receive()
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			switch {
			case m.Header.Type == unix.NLMSG_DONE:
				return all, nil
			case m.Header.Type == unix.NLMSG_ERROR:
				return nil, unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
			case m.Header.Type == family && len(m.Data) >= nl.SizeofGenlmsg:
				all = append(all, m)
			}
		}
	}
}

// deafPorts are those whose container's end takes no frames of XDP any more, although packets are sent there: somebody has switched
// its GRO off.
func deafPorts(raw []bpf.Link) (map[uint32]bool, error) {
	if !slices.ContainsFunc(raw, receivesXDP) {
		return nil, nil
	}
	all, err := xdpFeatures()
	if err != nil {
		return nil, err
	}
	deaf := map[uint32]bool{}
	for _, l := range raw {
		if features, known := all[l.Ifindex]; known && receivesXDP(l) && features&xdpFeatureTransmit == 0 {
			deaf[l.Ifindex] = true
		}
	}
	return deaf, nil
}

func receivesXDP(l bpf.Link) bool { return l.Flags&bpf.LinkXDPPeer != 0 }

// genericHeader is struct genlmsghdr. nl.Genlmsg is two bytes short of it, and this family looks at what is reserved.
type genericHeader [nl.SizeofGenlmsg]byte

// Len is the header's, in bytes.
func (h genericHeader) Len() int { return len(h) }

// Serialize is what goes to the kernel.
func (h genericHeader) Serialize() []byte { return h[:] }

// checkRedirects refuses an interface of which frames that are redirected would be lost without a word.
func checkRedirects(l Link) error {
	all, err := xdpFeatures()
	features, known := all[uint32(l.IfIndex)]
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
