// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// field is what a register was loaded with.
type field int

const (
	unknown field = iota
	inName
	outName
	inIndex
	outIndex
	source
	destination
	protocol
	port
	netfilterFamily
	etherType
	addressType // of the destination
	connState
)

// loaded is a register's content.
type loaded struct {
	field  field
	length int    // bytes
	bits   int    // of an address that was masked; 0: not masked
	mask   []byte // of anything else that was
	text   string // in nft's words
}

// load is an expression that fills a register, or writes to the packet or its conntrack entry.
func (d *decoder) load(name string, f *fields) {
	switch name {
	case "meta":
		if f[unix.NFTA_META_SREG] != nil {
			d.effect("meta " + metaText(number(f[unix.NFTA_META_KEY])) + " set")
			d.rule.partial = true
			return
		}
		d.set(f[unix.NFTA_META_DREG], loadMeta(number(f[unix.NFTA_META_KEY])))
	case "payload":
		if f[unix.NFTA_PAYLOAD_SREG] != nil {
			d.effect("payload set")
			d.rule.partial = true
			return
		}
		d.set(f[unix.NFTA_PAYLOAD_DREG], d.reader.family.loadPayload(number(f[unix.NFTA_PAYLOAD_BASE]),
			number(f[unix.NFTA_PAYLOAD_OFFSET]), number(f[unix.NFTA_PAYLOAD_LEN])))
	case "ct":
		d.conntrack(f)
	case "fib":
		l := loaded{length: 4, text: "fib"}
		if number(f[unix.NFTA_FIB_RESULT]) == unix.NFT_FIB_RESULT_ADDRTYPE && number(f[unix.NFTA_FIB_FLAGS]) == unix.NFTA_FIB_F_DADDR {
			l.field, l.text = addressType, "fib daddr type"
		}
		d.set(f[unix.NFTA_FIB_DREG], l)
	case "exthdr":
		if f[exthdrSource] != nil {
			d.effect("exthdr set")
			d.rule.partial = true
			return
		}
		d.set(f[unix.NFTA_EXTHDR_DREG], loaded{text: name})
	case "hash", "xfrm":
		d.set(f[2], loaded{text: name}) // NFTA_HASH_DREG, and NFTA_XFRM_DREG is 1
		d.set(f[1], loaded{text: name})
	default: // the destination register is the first attribute, or the second
		for _, kind := range []uint16{1, 2} {
			d.set(f[kind], loaded{text: name})
		}
	}
}

const exthdrSource = 7 // NFTA_EXTHDR_SREG of linux/netfilter/nf_tables.h

func (d *decoder) conntrack(f *fields) {
	if f[unix.NFTA_CT_SREG] != nil {
		d.effect("ct set")
		d.rule.partial = true
		return
	}
	l := loaded{length: 4, text: "ct"}
	switch number(f[unix.NFTA_CT_KEY]) {
	case unix.NFT_CT_STATE:
		l.field, l.text = connState, "ct state"
	case unix.NFT_CT_STATUS:
		l.text = "ct status"
	case unix.NFT_CT_MARK:
		l.text = "ct mark"
	}
	d.set(f[unix.NFTA_CT_DREG], l)
}

// loadMeta: the keys of enum nft_meta_keys that decide something here.
func loadMeta(key uint32) loaded {
	l := loaded{length: 4, text: "meta " + metaText(key)}
	switch key {
	case unix.NFT_META_IIFNAME:
		l.field, l.length = inName, unix.IFNAMSIZ
	case unix.NFT_META_OIFNAME:
		l.field, l.length = outName, unix.IFNAMSIZ
	case unix.NFT_META_IIF:
		l.field = inIndex
	case unix.NFT_META_OIF:
		l.field = outIndex
	case unix.NFT_META_L4PROTO:
		l.field, l.length = protocol, 1
	case unix.NFT_META_NFPROTO:
		l.field, l.length = netfilterFamily, 1
	case unix.NFT_META_PROTOCOL:
		l.field, l.length = etherType, 2
	}
	return l
}

func metaText(key uint32) string {
	names := map[uint32]string{unix.NFT_META_MARK: "mark", unix.NFT_META_PRIORITY: "priority", unix.NFT_META_SKUID: "skuid",
		unix.NFT_META_PKTTYPE: "pkttype", unix.NFT_META_IIFGROUP: "iifgroup", unix.NFT_META_OIFGROUP: "oifgroup",
		unix.NFT_META_NFTRACE: "nftrace", unix.NFT_META_LEN: "length", unix.NFT_META_IIFTYPE: "iiftype"}
	if name, ok := names[key]; ok {
		return name
	}
	return fmt.Sprint(key)
}

// loadPayload: a header's addresses and protocol, and the destination port of TCP and UDP (RFC 791, 8200, 768, 9293).
func (f *family) loadPayload(base, offset, length uint32) loaded {
	l := loaded{length: int(length), text: fmt.Sprintf("@%s,%d,%d", payloadBase(base), offset*8, length*8)}
	switch {
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && offset == f.protocolAt && length == 1:
		l.field = protocol
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && offset == f.sourceAt && length <= f.size:
		l.field = source
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && offset == f.destinationAt && length <= f.size:
		l.field = destination
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && offset == 2 && length == 2:
		l.field = port
	case base == unix.NFT_PAYLOAD_LL_HEADER && offset == 12 && length == 2:
		l.field = etherType
	}
	return l
}

func payloadBase(base uint32) string {
	switch base {
	case unix.NFT_PAYLOAD_LL_HEADER:
		return "ll"
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		return "nh"
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		return "th"
	}
	return "ih"
}

// add makes a match on what is loaded part of a rule; not ok: it says nothing that the model has words for.
func (d *decoder) add(r *rule, l loaded, negated bool, elements []element) (ok bool) {
	for _, e := range elements {
		if e.low == nil || e.high == nil {
			return false
		}
	}
	switch l.field {
	case inName, outName:
		return r.addNames(l, negated, elements)
	case inIndex, outIndex:
		return d.addIndexes(r, l, negated, elements)
	case source, destination:
		return r.addAddresses(d.reader.family, l, negated, elements)
	case protocol:
		r.protocols = append(r.protocols, protocols{negated, octets(elements)})
		return true
	case port:
		return r.addPorts(negated, elements)
	case netfilterFamily:
		r.never = r.never || negated == slices.Contains(octets(elements), d.reader.family.nfproto)
		return true
	case etherType:
		return r.addEtherType(d.reader.family, negated, elements)
	case addressType:
		if !negated && len(elements) == 1 && bytes.Equal(elements[0].low, elements[0].high) && native(elements[0].low) == unix.RTN_LOCAL {
			r.local = true
			return true
		}
	}
	return false
}

func native(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func octets(elements []element) (out []uint8) {
	for _, e := range elements {
		if len(e.low) == 0 || len(e.high) == 0 {
			continue
		}
		for v := int(e.low[0]); v <= int(e.high[0]); v++ {
			out = append(out, uint8(v))
		}
	}
	return out
}

// addNames: a name that does not fill the comparison up to a zero is a prefix, and so is a range of a set.
func (r *rule) addNames(l loaded, negated bool, elements []element) bool {
	var patterns []string
	for _, e := range elements {
		p := text(e.low)
		switch high := text(e.high); {
		case bytes.Equal(e.low, e.high) && len(p) == len(e.low):
			p += "*"
		case bytes.Equal(e.low, e.high):
		case strings.HasPrefix(high, p) && strings.ReplaceAll(high[len(p):], "\xff", "") == "":
			p += "*"
		default:
			return false
		}
		patterns = append(patterns, p)
	}
	if l.field == inName {
		r.in = append(r.in, names{negated, patterns})
	} else {
		r.out = append(r.out, names{negated, patterns})
	}
	return true
}

func (d *decoder) addIndexes(r *rule, l loaded, negated bool, elements []element) bool {
	var patterns []string
	for _, e := range elements {
		i := slices.IndexFunc(d.reader.links, func(l link) bool { return uint32(l.index) == native(e.low) })
		if i < 0 || !bytes.Equal(e.low, e.high) {
			return false
		}
		patterns = append(patterns, d.reader.links[i].name)
	}
	if l.field == inIndex {
		r.in = append(r.in, names{negated, patterns})
	} else {
		r.out = append(r.out, names{negated, patterns})
	}
	return true
}

func (r *rule) addAddresses(f *family, l loaded, negated bool, elements []element) bool {
	var list []netip.Prefix
	for _, e := range elements {
		if len(e.low) > int(f.size) || len(e.high) > int(f.size) {
			return false
		}
		low, high := make([]byte, f.size), bytes.Repeat([]byte{0xff}, int(f.size))
		copy(low, e.low)
		copy(high, e.high)
		first, _ := netip.AddrFromSlice(low)
		last, _ := netip.AddrFromSlice(high)
		if l.bits > 0 {
			if first != last {
				return false
			}
			list = append(list, netip.PrefixFrom(first, l.bits))
			continue
		}
		list = append(list, rangePrefixes(first, last)...)
	}
	if l.field == source {
		r.src = append(r.src, addrs{negated, list})
	} else {
		r.dst = append(r.dst, addrs{negated, list})
	}
	return true
}

// rangePrefixes are the fewest prefixes that make up a range of addresses.
func rangePrefixes(low, high netip.Addr) (out []netip.Prefix) {
	for from := low; from.IsValid() && from.Compare(high) <= 0; {
		p := netip.PrefixFrom(from, from.BitLen())
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(from, p.Bits()-1)
			if wider.Masked().Addr() != from || lastOf(wider).Compare(high) > 0 {
				break
			}
			p = wider
		}
		out = append(out, p)
		from = lastOf(p).Next() // not valid behind the last of all
	}
	return out
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		b[i] |= byte(0xff >> min(8, max(0, p.Bits()-8*i)))
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

func (r *rule) addPorts(negated bool, elements []element) bool {
	var list []portRange
	for _, e := range elements {
		if len(e.low) != 2 || len(e.high) != 2 {
			return false
		}
		list = append(list, portRange{binary.BigEndian.Uint16(e.low), binary.BigEndian.Uint16(e.high)})
	}
	r.ports = append(r.ports, ports{negated, list})
	return true
}

// addEtherType: a match on what is neither the family nor a frame that may bear it (VLAN, PPPoE) matches no packet of ours.
func (r *rule) addEtherType(f *family, negated bool, elements []element) bool {
	if len(elements) != 1 || len(elements[0].low) != 2 || !bytes.Equal(elements[0].low, elements[0].high) {
		return false
	}
	switch kind := binary.BigEndian.Uint16(elements[0].low); {
	case kind == f.etherType:
		return !negated
	case slices.Contains(f.otherTypes, kind):
		r.never = r.never || !negated
		return true
	}
	return false
}

var ctStates = []struct {
	bit  uint32 // NF_CT_STATE_BIT of linux/netfilter/nf_conntrack_common.h
	name string
}{{1, "invalid"}, {2, "established"}, {4, "related"}, {8, "new"}, {64, "untracked"}}

// unknownMatch prints a match that is not followed.
func (d *decoder) unknownMatch(l loaded, negated bool, low, high []byte) string {
	states := low
	if l.text == "ct state" && l.mask != nil {
		states, negated = l.mask, !negated // "& mask != 0" is how nft writes a list of states
	}
	if l.text == "ct state" {
		var list []string
		for _, s := range ctStates {
			if native(states)&s.bit != 0 {
				list = append(list, s.name)
			}
		}
		return "ct state " + not(negated, "!= ") + strings.Join(list, ",")
	}
	d.rule.partial = true
	out := l.text
	if l.mask != nil {
		out += fmt.Sprintf(" & 0x%x", l.mask)
	}
	out += not(negated, " !=")
	if bytes.Equal(low, high) {
		return fmt.Sprintf("%s 0x%x", out, low)
	}
	return fmt.Sprintf("%s 0x%x-0x%x", out, low, high)
}

// lookupText names the set, as nft does.
func (d *decoder) lookupText(s *set, key int, negated bool) string {
	what := "key"
	if key >= 0 && !d.concat(s, key) {
		what = d.reader.family.fieldText(d.registers[key])
	}
	return what + " " + not(negated, "!= ") + "@" + s.id.name
}

func (f *family) fieldText(l loaded) string {
	names := map[field]string{inName: "iifname", outName: "oifname", inIndex: "iif", outIndex: "oif", source: f.word + " saddr",
		destination: f.word + " daddr", protocol: "meta l4proto", port: "th dport"}
	if name, ok := names[l.field]; ok {
		return name
	}
	return l.text
}
