// SPDX-License-Identifier: Apache-2.0

package exceptions

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// family is what differs between the tables ip and ip6.
type family struct {
	name  string
	table nftables.TableFamily
	proto uint32
	icmp  byte
	kind  nftables.SetDatatype
	is    func(netip.Addr) bool

	// In the header.
	source, destination, size uint32
}

var (
	ipv4 = family{name: "ip", table: nftables.TableFamilyIPv4, proto: unix.NFPROTO_IPV4, icmp: unix.IPPROTO_ICMP,
		kind: nftables.TypeIPAddr, is: netip.Addr.Is4, source: 12, destination: 16, size: 4}
	ipv6 = family{name: "ip6", table: nftables.TableFamilyIPv6, proto: unix.NFPROTO_IPV6, icmp: unix.IPPROTO_ICMPV6,
		kind: nftables.TypeIP6Addr, is: netip.Addr.Is6, source: 8, destination: 24, size: 16}

	families = []family{ipv4, ipv6}
)

// of are the pairs of the family.
func (f family) of(pairs []Pair) (out []Pair) {
	for _, p := range pairs {
		if f.is(p.Inside.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

// load is the address at an offset in the header.
func (f family) load(offset uint32) expr.Any { return loadPart(offset, f.size) }

func loadPart(offset, size uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
}

// A mark holds markBits of an inside address: all of one of IPv4, the last ones of one of IPv6. There the outside interface's
// ingress has written the bits before them into the destination already, and zeros behind: with the external address's own
// last bits that might be another container's address, such as fd00::2 on a host that is 2001:db8::2, which a rule of
// Docker's raw table drops. The transport's checksum is that of the whole inside address from then on.
const markBits = 32

// marked matches what the mark and the destination tell of the inside address with a prefix.
func (f family) marked(mark expr.Any, inside netip.Prefix) (parts []part) {
	address := inside.Addr().AsSlice()
	rest := int(f.size)*8 - markBits
	if bits := min(inside.Bits(), rest); bits > 0 {
		parts = append(parts, in(loadPart(f.destination, uint32(rest/8)), address[:rest/8], bits))
	}
	if bits := max(0, inside.Bits()-rest); bits > 0 || rest == 0 {
		parts = append(parts, in(mark, address[rest/8:], bits))
	}
	return parts
}

// arrived matches what the ingress has left in the destination where the mark goes: an external address, or in IPv6 zeros.
func (f family) arrived(external []netip.Addr) part {
	load := loadPart(f.destination+f.size-markBits/8, markBits/8)
	switch {
	case f.size > markBits/8:
		return equal(load, make([]byte, markBits/8))
	case len(external) == 1:
		return equal(load, external[0].AsSlice())
	}
	return part{lookup: &lookup{load, f.kind, keys(external), false}}
}

// write puts the mark into the destination's last bits. In IPv4 the checksums of the header and of the transport follow. In IPv6
// they must not: nf_tables would correct the sum of a packet that the network card has summed up (CHECKSUM_COMPLETE) for
// the address alone, and no header's checksum makes up for that.
func (f family) write() expr.Any {
	out := &expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: register, Base: expr.PayloadBaseNetworkHeader,
		Offset: f.destination + f.size - markBits/8, Len: markBits / 8,
	}
	if f.table == nftables.TableFamilyIPv4 {
		out.CsumType, out.CsumOffset, out.CsumFlags = expr.CsumTypeInet, checksumOffset, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR
	}
	return out
}
