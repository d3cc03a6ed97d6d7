// SPDX-License-Identifier: Apache-2.0

package exceptions

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// chains are the table's, each with the rules that pairs make in it.
var chains = []chain{
	{nftables.Chain{
		Name: "prerouting", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting,
		Priority: nftables.ChainPriorityRef(-250), // after NF_IP_PRI_RAW (-300), before NF_IP_PRI_CONNTRACK (-200)
	}, arriving},
	{nftables.Chain{
		Name: "postrouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityRef(99), // just before NF_IP_PRI_NAT_SRC (100), where MASQUERADE is
	}, leaving},
	{nftables.Chain{
		Name: "unclaimed", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityRef(101), // after NF_IP_PRI_NAT_SRC: what MASQUERADE translates has another source
	}, unclaimed},
}

type chain struct {
	nftables.Chain
	rules func(family, []Pair) []rule
}

// rule is a rule before it is in a chain: its anonymous sets have to be added to the table first.
type rule struct {
	comment string
	parts   []part
}

// part is one match or statement of a rule.
type part struct {
	exprs  []expr.Any
	lookup *lookup // instead of exprs
}

type lookup struct {
	load   expr.Any
	kind   nftables.SetDatatype
	keys   [][]byte
	invert bool
}

// write adds the chain to the table, if pairs make any rules in it.
func (c chain) write(conn *nftables.Conn, table *nftables.Table, f family, pairs []Pair) error {
	rules := c.rules(f, pairs)
	if len(rules) == 0 {
		return nil
	}
	base := c.Chain
	base.Table = table
	conn.AddChain(&base)
	for _, r := range rules {
		var exprs []expr.Any
		for _, p := range r.parts {
			added, err := p.add(conn, table)
			if err != nil {
				return err
			}
			exprs = append(exprs, added...)
		}
		conn.AddRule(&nftables.Rule{Table: table, Chain: &base, Exprs: exprs,
			UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment)})
	}
	return nil
}

func (p part) add(conn *nftables.Conn, table *nftables.Table) ([]expr.Any, error) {
	if p.lookup == nil {
		return p.exprs, nil
	}
	set := &nftables.Set{Table: table, Anonymous: true, Constant: true, KeyType: p.lookup.kind}
	if p.lookup.kind == nftables.TypeIFIndex {
		set.KeyByteOrder = binaryutil.NativeEndian // for who reads the rules
	}
	var elements []nftables.SetElement
	for _, key := range p.lookup.keys {
		elements = append(elements, nftables.SetElement{Key: key})
	}
	if err := conn.AddSet(set, elements); err != nil {
		return nil, err
	}
	return []expr.Any{p.lookup.load,
		&expr.Lookup{SourceRegister: register, SetName: set.Name, SetID: set.ID, Invert: p.lookup.invert}}, nil
}

// translated are the protocols that conenat translates. What is in no list stays the host's own NAT's, if that has it; else the outside
// interface's egress drops it.
func translated(f family) [][]byte {
	return [][]byte{{f.icmp}, {unix.IPPROTO_IPIP}, {unix.IPPROTO_TCP}, {unix.IPPROTO_UDP}, {unix.IPPROTO_IPV6}, {unix.IPPROTO_GRE},
		{unix.IPPROTO_ESP}, {unix.IPPROTO_SCTP}, {unix.IPPROTO_UDPLITE}}
}

// leaving is, for each pair,
// "oif OUTSIDE iif FROM ip saddr INSIDE ip saddr != { EXCEPT } meta l4proto { icmp, tcp, udp, … } snat to ip saddr", or the same of
// ip6, without "iif" where INSIDE is FROM's alone; and for each excluded destination the same with "ip daddr EXCLUDE" in place
// of the protocols.
func leaving(f family, pairs []Pair) (out []rule) {
	for _, p := range pairs {
		if p.Unhooked {
			continue
		}
		match := []part{equal(&expr.Meta{Key: expr.MetaKeyOIF, Register: register}, index(p.Outside))}
		if p.From != 0 { // Linux 5.7: the hook knows where a packet came from
			match = append(match, equal(&expr.Meta{Key: expr.MetaKeyIIF, Register: register}, index(p.From)))
		}
		match = append(match, f.within(p.Inside))
		if len(p.Except) > 0 {
			match = append(match, part{lookup: &lookup{f.load(f.source), f.kind, keys(p.Except), true}})
		}
		protocols := translated(f)
		load := &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}
		identity := do(f.load(f.source), &expr.NAT{Type: expr.NATTypeSourceNAT, Family: f.proto, RegAddrMin: register})
		out = append(out, rule{p.comment(),
			slices.Concat(match, []part{{lookup: &lookup{load, nftables.TypeInetProto, protocols, false}}, identity})})
		for _, d := range p.Exclude {
			if d.Addr().Is4() == p.Inside.Addr().Is4() {
				comment := fmt.Sprintf("to %s (%.8x)", d, sha256.Sum256([]byte(p.comment())))
				out = append(out, rule{comment, slices.Concat(match, []part{in(f.load(f.destination), d.Addr().AsSlice(), d.Bits()), identity})})
			}
		}
	}
	return out
}

// unclaimed is, for each pair, "oifname NAME oif != OUTSIDE ip saddr INSIDE drop": what would leave untranslated by an
// interface that was made anew under its old name; without "oif", while OUTSIDE's hooks are not on. A connection that was
// mapped to itself by leaving stays so in conntrack, which would send it out with its inside address until a daemon has
// put hooks on the new interface.
func unclaimed(f family, pairs []Pair) (out []rule) {
	for _, p := range pairs {
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, p.Name)
		parts := []part{equal(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: register}, name)}
		if !p.Unhooked {
			parts = append(parts, do(&expr.Meta{Key: expr.MetaKeyOIF, Register: register},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: index(p.Outside)}))
		}
		parts = append(parts, f.within(p.Inside), do(&expr.Verdict{Kind: expr.VerdictDrop}))
		out = append(out, rule{p.comment(), parts})
	}
	return out
}

// arriving is "meta mark 0 return" and, for each pair with an external address, "meta mark & MASK == INSIDE
// iif { OUTSIDES } ip daddr { EXTERNAL } ip daddr set meta mark meta mark set 0": a packet to one outside's address may come
// in by another. The mark's bytes in memory are the inside address in network byte order, which is how registers and
// headers have it: nothing is ever swapped. In IPv6 the mark is the inside address's last 32 bits, and the destination has
// those before them already: "ip6 daddr & MASK == INSIDE iif { OUTSIDES } @nh,288,32 0 @nh,288,32 set meta mark".
func arriving(f family, pairs []Pair) (out []rule) {
	mark := &expr.Meta{Key: expr.MetaKeyMARK, Register: register}
	outsides, names := indices(pairs)
	for _, p := range pairs {
		if len(p.External) == 0 {
			continue
		}
		out = append(out, rule{p.comment() + names, append(f.marked(mark, p.Inside),
			cameBy(outsides),
			f.arrived(p.External),
			do(mark, f.write()),
			do(&expr.Immediate{Register: register, Data: make([]byte, 4)},
				&expr.Meta{Key: expr.MetaKeyMARK, Register: register, SourceRegister: true}),
		)})
	}
	if len(out) == 0 {
		return nil
	}
	unmarked := rule{"nothing for conenat", []part{
		equal(mark, make([]byte, 4)), do(&expr.Verdict{Kind: expr.VerdictReturn}),
	}}
	return append([]rule{unmarked}, out...)
}

// cameBy is "iif INDEX", or "iif { INDICES }".
func cameBy(outsides [][]byte) part {
	load := &expr.Meta{Key: expr.MetaKeyIIF, Register: register}
	if len(outsides) == 1 {
		return equal(load, outsides[0])
	}
	return part{lookup: &lookup{load, nftables.TypeIFIndex, outsides, false}}
}

// indices are the outsides of all pairs, each once; names is what a comment says of them if there are several.
func indices(pairs []Pair) (keys [][]byte, names string) {
	var list []int
	for _, p := range pairs {
		if p.Outside != 0 && !slices.Contains(list, p.Outside) {
			list = append(list, p.Outside)
		}
	}
	slices.Sort(list)
	for _, i := range list {
		keys = append(keys, index(i))
	}
	if len(list) > 1 {
		names = fmt.Sprintf(" (by %d: %.4x)", len(list), sha256.Sum256(fmt.Append(nil, list)))
	}
	return keys, names
}

const (
	register       = 1
	checksumOffset = 10 // in the IPv4 header
)

func do(exprs ...expr.Any) part { return part{exprs: exprs} }

func equal(load expr.Any, data []byte) part {
	return do(load, &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data})
}

// within is "ip saddr PREFIX".
func (f family) within(prefix netip.Prefix) part {
	return in(f.load(f.source), prefix.Addr().AsSlice(), prefix.Bits())
}

// in is a match of what is loaded with the first bits of an address, or of a part of one.
func in(load expr.Any, address []byte, bits int) part {
	mask := net.CIDRMask(bits, 128)[:len(address)] // the mask of an address of IPv4 begins as one of IPv6
	return do(load,
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(len(address)), Mask: mask, Xor: make([]byte, len(address))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: address})
}

// index is an interface's index as a register has it.
func index(i int) []byte { return binaryutil.NativeEndian.PutUint32(uint32(i)) }

func keys(addrs []netip.Addr) (out [][]byte) {
	for _, a := range addrs {
		out = append(out, a.AsSlice())
	}
	return out
}
