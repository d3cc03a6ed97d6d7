// SPDX-License-Identifier: Apache-2.0

package exceptions

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

const (
	tableName = "conenat"
	chainName = "postrouting"
)

// priority is just before NF_IP_PRI_NAT_SRC (100), where MASQUERADE is.
var priority = nftables.ChainPriorityRef(99)

// Pair is packets of an inside prefix that leave by an outside interface.
type Pair struct {
	Inside  netip.Prefix
	Outside string // interface name
}

// comment identifies a rule: what stands in the kernel is compared by it.
func (p Pair) comment() string { return fmt.Sprintf("%s by %s", p.Inside, p.Outside) }

// Table is the table in the network namespace of the thread that calls its methods. The zero value is ready.
type Table struct{}

// Ensure makes the table hold one rule for each pair; no pairs, no table.
func (Table) Ensure(pairs []Pair) error {
	pairs = normal(pairs)
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	have, exists, err := current(conn)
	if err != nil {
		return fmt.Errorf("read nftables table ip %s: %w", tableName, err)
	}
	want := comments(pairs)
	if exists == (len(want) > 0) && slices.Equal(have, want) {
		return nil
	}
	if err := write(conn, pairs); err != nil {
		return fmt.Errorf("write nftables table ip %s: %w", tableName, err)
	}
	return nil
}

// Remove takes the table away, and says whether there was one.
func (t Table) Remove() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	_, exists, err := current(conn)
	if unsupported(err) || (err == nil && !exists) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read nftables table ip %s: %w", tableName, err)
	}
	return true, t.Ensure(nil)
}

// unsupported: a kernel without nftables has no table of ours.
func unsupported(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

func normal(pairs []Pair) []Pair {
	pairs = slices.SortedFunc(slices.Values(pairs), func(a, b Pair) int {
		return cmp.Or(a.Inside.Compare(b.Inside), cmp.Compare(a.Outside, b.Outside))
	})
	return slices.Compact(pairs)
}

func comments(pairs []Pair) (out []string) {
	for _, p := range pairs {
		out = append(out, p.comment())
	}
	return out
}

// current reads the comments of the rules that stand.
func current(conn *nftables.Conn) (found []string, exists bool, err error) {
	table, err := conn.ListTableOfFamily(tableName, nftables.TableFamilyIPv4)
	if errors.Is(err, unix.ENOENT) || (err == nil && table == nil) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	rules, err := conn.GetRules(table, &nftables.Chain{Name: chainName, Table: table})
	if errors.Is(err, unix.ENOENT) {
		return nil, true, nil
	}
	for _, r := range rules {
		comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		found = append(found, comment)
	}
	return found, true, err
}

// write replaces the table in one transaction. Adding it first makes deleting it succeed in any case.
func write(conn *nftables.Conn, pairs []Pair) error {
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}
	conn.AddTable(table)
	conn.DelTable(table)
	if len(pairs) == 0 {
		return conn.Flush()
	}
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{Name: chainName, Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: priority})
	for _, p := range pairs {
		if err := addRule(conn, chain, p); err != nil {
			return err
		}
	}
	return conn.Flush()
}

func addRule(conn *nftables.Conn, chain *nftables.Chain, p Pair) error {
	protocols := &nftables.Set{Table: chain.Table, Anonymous: true, Constant: true, KeyType: nftables.TypeInetProto}
	err := conn.AddSet(protocols, []nftables.SetElement{
		{Key: []byte{unix.IPPROTO_ICMP}}, {Key: []byte{unix.IPPROTO_TCP}}, {Key: []byte{unix.IPPROTO_UDP}},
	})
	if err != nil {
		return err
	}
	conn.AddRule(&nftables.Rule{
		Table: chain.Table, Chain: chain,
		Exprs:    append(match(p, protocols), identity()...),
		UserData: userdata.AppendString(nil, userdata.TypeComment, p.comment()),
	})
	return nil
}

const register = 1

// match is "ip saddr INSIDE oifname OUTSIDE meta l4proto { icmp, tcp, udp }".
func match(p Pair, protocols *nftables.Set) []expr.Any {
	mask := netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), p.Inside.Bits()).Masked().Addr()
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, p.Outside)
	return []expr.Any{
		loadSource(),
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 4, Mask: mask.AsSlice(), Xor: binaryutil.NativeEndian.PutUint32(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: p.Inside.Masked().Addr().AsSlice()},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: name},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Lookup{SourceRegister: register, SetName: protocols.Name, SetID: protocols.ID},
	}
}

// identity is "snat to ip saddr".
func identity() []expr.Any {
	return []expr.Any{
		loadSource(),
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: register},
	}
}

func loadSource() expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
}
