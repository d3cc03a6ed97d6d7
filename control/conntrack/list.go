// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
)

// List reads all entries of TCP and UDP in zone 0, of IPv4 and IPv6. One that comes or goes meanwhile may be missing or there.
// Error: ErrUnavailable.
func List() (flows []Flow, err error) {
	for range 10 {
		if flows, err = dump(); !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list tracked connections: %w", unavailable(err))
	}
	return flows, nil
}

func dump() ([]Flow, error) {
	req := nl.NewNetlinkRequest(typeGet, unix.NLM_F_DUMP)
	req.AddRawData(header(unix.AF_UNSPEC))
	var flows []Flow
	err := req.ExecuteIter(unix.NETLINK_NETFILTER, typeNew, func(m []byte) bool {
		if f, ok := decode(m); ok {
			flows = append(flows, f)
		}
		return true
	})
	return flows, err
}

const headerSize = 4

// header is struct nfgenmsg, of entries of a family.
func header(family uint8) []byte { return []byte{family, unix.NFNETLINK_V0, 0, 0} }

// family is that of a tuple's addresses.
func (t Tuple) family() uint8 {
	if t.Src.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// attributes are the types, without flags, and values in a list of netlink attributes; it ends where a length is
// wrong. (nl.ParseRouteAttr allocates.)
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			length := int(binary.NativeEndian.Uint16(b))
			if length < unix.SizeofNlAttr || length > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&nl.NLA_TYPE_MASK, b[unix.SizeofNlAttr:length]) {
				return
			}
			b = b[min(len(b), (length+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
		}
	}
}

// decode reads an entry; not ok: not of TCP or UDP in zone 0, or not whole.
func decode(m []byte) (f Flow, ok bool) {
	if len(m) < headerSize {
		return f, false
	}
	var original, reply bool
	for kind, value := range attributes(m[headerSize:]) {
		switch kind {
		case attrOriginal:
			f.Original, f.Protocol, original = decodeTuple(value)
		case attrReply:
			f.Reply, _, reply = decodeTuple(value)
		case attrStatus:
			f.setStatus(number32(value))
		case attrTimeout:
			f.Timeout = time.Duration(number32(value)) * time.Second
		case attrProtoInfo:
			f.TCPState = decodeState(value)
		case attrZone:
			return f, false // the kernel leaves zone 0 out
		}
	}
	return f, original && reply
}

func (f *Flow) setStatus(status uint32) {
	f.SeenReply = status&statusSeenReply != 0
	f.Assured = status&statusAssured != 0
	f.SourceNAT = status&statusSourceNAT != 0
	f.DestinationNAT = status&statusDestNAT != 0
}

func decodeTuple(b []byte) (t Tuple, p dataplane.Protocol, ok bool) {
	var src, dst netip.Addr
	var srcPort, dstPort uint16
	for kind, value := range attributes(b) {
		switch kind {
		case attrTupleIP:
			src, dst = decodeAddresses(value)
		case attrTupleProto:
			p, srcPort, dstPort = decodePorts(value)
		case attrTupleZone:
			return t, p, false // a zone of one direction only
		}
	}
	t = Tuple{netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)}
	return t, p, src.IsValid() && dst.IsValid() && src.Is4() == dst.Is4() && (p == dataplane.TCP || p == dataplane.UDP)
}

func decodeAddresses(b []byte) (src, dst netip.Addr) {
	for kind, value := range attributes(b) {
		switch {
		case kind == attrIPSource && len(value) == 4:
			src = netip.AddrFrom4([4]byte(value))
		case kind == attrIPDestination && len(value) == 4:
			dst = netip.AddrFrom4([4]byte(value))
		case kind == attrIPSource6 && len(value) == 16:
			src = netip.AddrFrom16([16]byte(value))
		case kind == attrIPDestination6 && len(value) == 16:
			dst = netip.AddrFrom16([16]byte(value))
		}
	}
	return src, dst
}

func decodePorts(b []byte) (p dataplane.Protocol, src, dst uint16) {
	for kind, value := range attributes(b) {
		switch {
		case kind == attrProtoNumber && len(value) == 1:
			p = dataplane.Protocol(value[0])
		case kind == attrProtoSource && len(value) == 2:
			src = binary.BigEndian.Uint16(value)
		case kind == attrProtoDestination && len(value) == 2:
			dst = binary.BigEndian.Uint16(value)
		}
	}
	return p, src, dst
}

func decodeState(b []byte) (state uint8) {
	for kind, value := range attributes(b) {
		if kind != attrTCP {
			continue
		}
		for kind, value := range attributes(value) {
			if kind == attrTCPState && len(value) == 1 {
				state = value[0]
			}
		}
	}
	return state
}

func number32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}
