// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
)

// TCP states (include/net/tcp_states.h), whose bits are a request's idiag_states. A UDP socket that is connected
// is in the first one; one that is not is in TCP_CLOSE, and the packet path finds it. TIME_WAIT is left out: what it
// reserves would outlive it by hours.
const (
	stateEstablished   = 1
	stateBoundInactive = 13 // bound, neither connected nor listening; Linux 6.8 and later list them, under this bit

	connectedStates = 1<<stateEstablished | 1<<2 /* SYN_SENT */ | 1<<3 /* SYN_RECV */ | 1<<4 | 1<<5 /* FIN_WAIT */ |
		1<<8 /* CLOSE_WAIT */ | 1<<9 /* LAST_ACK */ | 1<<11 /* CLOSING */
)

// Layout of struct inet_diag_req_v2 and struct inet_diag_msg (include/uapi/linux/inet_diag.h).
const (
	diagRequestSize = 56
	diagMessageSize = 72
	skV6Only        = 11 // INET_DIAG_SKV6ONLY, u8
)

var socketQueries = []struct {
	protocol dataplane.Protocol
	family   uint8
	states   uint32
}{
	{dataplane.TCP, unix.AF_INET, connectedStates | 1<<stateBoundInactive},
	{dataplane.TCP, unix.AF_INET6, connectedStates | 1<<stateBoundInactive},
	{dataplane.UDP, unix.AF_INET, 1 << stateEstablished},
	{dataplane.UDP, unix.AF_INET6, 1 << stateEstablished},
}

// unspecified are the wildcards that a socket of IPv6 is bound to which takes IPv4 too.
var unspecified = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}

// Sockets are the local endpoints of the host's connected TCP and UDP sockets and of its TCP sockets that are
// bound only, each once, without those that only the host itself can reach. A socket that is bound to :: and takes
// IPv4 too is there twice, as one of each family. Linux before 6.8 does not list sockets that are bound only, and nothing else does: there, they are
// missing. Nor is a socket that is bound later announced.
func (h *Host) Sockets() ([]Socket, error) {
	var out []Socket
	for _, q := range socketQueries {
		found, err := retry(func() ([]Socket, error) { return listSockets(q.protocol, q.family, q.states) })
		if err != nil && q.family == unix.AF_INET {
			return nil, fmt.Errorf("list the host's %s sockets: %w", q.protocol, err)
		}
		out = append(out, found...) // an error for IPv6: a kernel without it has no such sockets
	}
	slices.SortFunc(out, func(a, b Socket) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.Local.Compare(b.Local))
	})
	return slices.Compact(out), nil
}

func listSockets(protocol dataplane.Protocol, family uint8, states uint32) ([]Socket, error) {
	request := make([]byte, diagRequestSize)
	request[0], request[1] = family, uint8(protocol)
	binary.NativeEndian.PutUint32(request[4:], states)
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.AddRawData(request)
	messages, err := req.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	if err != nil {
		return nil, err
	}
	var out []Socket
	for _, m := range messages {
		out = append(out, parseSocket(protocol, m)...)
	}
	return out, nil
}

// parseSocket reads a struct inet_diag_msg; none: a socket that no packet from outside can be for.
func parseSocket(protocol dataplane.Protocol, m []byte) (out []Socket) {
	if len(m) < diagMessageSize {
		return nil
	}
	port := binary.BigEndian.Uint16(m[4:])
	addr := netip.AddrFrom4([4]byte(m[8:12]))
	if m[0] == unix.AF_INET6 {
		addr = netip.AddrFrom16([16]byte(m[8:24])).Unmap()
	}
	if port == 0 || addr.IsLoopback() || (addr.Is6() && addr.IsLinkLocalUnicast()) || talksToItself(m, addr) {
		return nil
	}
	local := []netip.Addr{addr}
	if addr == netip.IPv6Unspecified() && !v6Only(m[diagMessageSize:]) {
		local = unspecified
	}
	for _, a := range local {
		out = append(out, Socket{Protocol: protocol, Local: netip.AddrPortFrom(a, port)})
	}
	return out
}

// talksToItself: the remote address is the local one, so no packet of it ever leaves.
func talksToItself(m []byte, local netip.Addr) bool {
	remote := netip.AddrFrom4([4]byte(m[24:28]))
	if m[0] == unix.AF_INET6 {
		remote = netip.AddrFrom16([16]byte(m[24:40])).Unmap()
	}
	return remote == local && !local.IsUnspecified()
}

func v6Only(attributes []byte) bool {
	attrs, err := nl.ParseRouteAttrAsMap(attributes)
	value := attrs[skV6Only].Value
	return err == nil && len(value) > 0 && value[0] != 0
}
