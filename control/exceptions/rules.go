// SPDX-License-Identifier: Apache-2.0

package exceptions

import (
	"crypto/sha256"
	"fmt"
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
	rules func([]Pair) []rule
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
func (c chain) write(conn *nftables.Conn, table *nftables.Table, pairs []Pair) error {
	rules := c.rules(pairs)
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

// leaving is, for each pair,
// "oif OUTSIDE ip saddr INSIDE ip saddr != { EXCEPT } meta l4proto { icmp, tcp, udp } snat to ip saddr".
func leaving(pairs []Pair) (out []rule) {
	for _, p := range pairs {
		if p.Unhooked {
			continue
		}
		r := rule{p.comment(), []part{
			equal(&expr.Meta{Key: expr.MetaKeyOIF, Register: register}, index(p.Outside)),
			in(loadAddress(sourceOffset), p.Inside),
		}}
		if len(p.Except) > 0 {
			r.parts = append(r.parts, part{lookup: &lookup{loadAddress(sourceOffset), nftables.TypeIPAddr, keys(p.Except), true}})
		}
		protocols := [][]byte{{unix.IPPROTO_ICMP}, {unix.IPPROTO_TCP}, {unix.IPPROTO_UDP}}
		load := &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}
		r.parts = append(r.parts, part{lookup: &lookup{load, nftables.TypeInetProto, protocols, false}}, do(
			loadAddress(sourceOffset),
			&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: register},
		))
		out = append(out, r)
	}
	return out
}

// unclaimed is, for each pair, "oifname NAME oif != OUTSIDE ip saddr INSIDE drop": what would leave untranslated by an
// interface that was made anew under its old name; without "oif", while OUTSIDE's hooks are not on. A connection that was
// mapped to itself by leaving stays so in conntrack, which would send it out with its inside address until a daemon has
// put hooks on the new interface.
func unclaimed(pairs []Pair) (out []rule) {
	for _, p := range pairs {
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, p.Name)
		parts := []part{equal(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: register}, name)}
		if !p.Unhooked {
			parts = append(parts, do(&expr.Meta{Key: expr.MetaKeyOIF, Register: register},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: index(p.Outside)}))
		}
		parts = append(parts, in(loadAddress(sourceOffset), p.Inside), do(&expr.Verdict{Kind: expr.VerdictDrop}))
		out = append(out, rule{p.comment(), parts})
	}
	return out
}

// arriving is "meta mark 0 return" and, for each pair with an external address, "meta mark & MASK == INSIDE
// iif { OUTSIDES } ip daddr EXTERNAL ip daddr set meta mark meta mark set 0": a packet to one outside's address may come
// in by another. The mark's bytes in memory are the inside address in network byte order, which is how registers and
// headers have it: nothing is ever swapped.
func arriving(pairs []Pair) (out []rule) {
	mark := &expr.Meta{Key: expr.MetaKeyMARK, Register: register}
	outsides, names := indices(pairs)
	for _, p := range pairs {
		if !p.External.IsValid() {
			continue
		}
		out = append(out, rule{p.comment() + names, []part{
			in(mark, p.Inside),
			cameBy(outsides),
			equal(loadAddress(destinationOffset), p.External.AsSlice()),
			do(mark, &expr.Payload{
				OperationType: expr.PayloadWrite, SourceRegister: register,
				Base: expr.PayloadBaseNetworkHeader, Offset: destinationOffset, Len: 4,
				CsumType: expr.CsumTypeInet, CsumOffset: checksumOffset, CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR,
			}),
			do(&expr.Immediate{Register: register, Data: make([]byte, 4)},
				&expr.Meta{Key: expr.MetaKeyMARK, Register: register, SourceRegister: true}),
		}})
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
	register = 1

	// In the IPv4 header.
	checksumOffset    = 10
	sourceOffset      = 12
	destinationOffset = 16
)

func do(exprs ...expr.Any) part { return part{exprs: exprs} }

func equal(load expr.Any, data []byte) part {
	return do(load, &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data})
}

// in is a match of a loaded address with a prefix.
func in(load expr.Any, prefix netip.Prefix) part {
	mask := netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), prefix.Bits()).Masked().Addr()
	return do(load,
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 4, Mask: mask.AsSlice(), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: prefix.Addr().AsSlice()})
}

func loadAddress(offset uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

// index is an interface's index as a register has it.
func index(i int) []byte { return binaryutil.NativeEndian.PutUint32(uint32(i)) }

func keys(addrs []netip.Addr) (out [][]byte) {
	for _, a := range addrs {
		out = append(out, a.AsSlice())
	}
	return out
}
