// SPDX-License-Identifier: Apache-2.0

package exceptions

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
)

const defaultName = "conenat"

// Pair is packets between an inside prefix and an outside interface.
type Pair struct {
	Inside   netip.Prefix
	Outside  int          // interface index: one that is made anew under its old name is another interface; 0: it is away
	Name     string       // of the outside interface
	External []netip.Addr // where packets from outside are addressed to; empty: nowhere now
	Except   []netip.Addr
	// All of one family. Except are inside addresses that conenat leaves to the host's NAT.

	Exclude []netip.Prefix // destinations that nobody translates, whatever the protocol; those of the other family mean nothing
	From    int            // inside interface index, where another network has the same addresses; else 0

	// Unhooked: the hooks that translate what leaves are not on yet, and it stays the host's NAT's.
	Unhooked bool
}

// comment identifies a rule: what stands in the kernel is compared by it, so all that a rule is made of is in it.
// nft(8) refuses comments of more than 128 bytes, hence a digest of the addresses, and of all where those are IPv6's.
func (p Pair) comment() string {
	c := fmt.Sprintf("%s by %s (%d)", p.Inside, p.Name, p.Outside)
	switch len(p.External) {
	case 0:
	case 1:
		c += fmt.Sprintf(" as %s", p.External[0])
	default:
		c += fmt.Sprintf(" as %d: %.4x", len(p.External), sha256.Sum256(fmt.Append(nil, p.External)))
	}
	if len(p.Except) > 0 {
		c += fmt.Sprintf(", %d excepted (%.8x)", len(p.Except), sha256.Sum256(fmt.Append(nil, p.Except)))
	}
	if len(p.Exclude) > 0 {
		c += fmt.Sprintf(", %d excluded (%.8x)", len(p.Exclude), sha256.Sum256(fmt.Append(nil, p.Exclude)))
	}
	if p.From != 0 {
		c += fmt.Sprintf(", from %d", p.From)
	}
	if p.Unhooked {
		c += ", inward"
	}
	if len(c) > maxComment {
		c = fmt.Sprintf("%s by %s (%.8x)", p.Inside, p.Name, sha256.Sum256([]byte(c)))
	}
	return c
}

// maxComment leaves room for what is put behind a pair's comment.
const maxComment = 100

// Table is the table in the network namespace of the thread that calls its methods. The zero value is the table
// of a daemon with the default state directory.
type Table struct{ name string }

// New is the table of the daemon with a state directory: two daemons with different ones share no table.
func New(stateDir string) Table {
	dir := filepath.Clean(stateDir)
	if dir == dataplane.DefaultStateDir {
		return Table{}
	}
	return Table{name: fmt.Sprintf("%s-%.4x", defaultName, sha256.Sum256([]byte(dir)))}
}

// Name is the table's, in the families ip and ip6.
func (t Table) Name() string { return cmp.Or(t.name, defaultName) }

// Ensure makes the tables of both families hold the rules of these pairs and no others; no pairs, no table.
func (t Table) Ensure(pairs []Pair) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	pairs = normal(pairs)
	var errs []error
	for _, f := range families {
		errs = append(errs, t.ensure(conn, f, f.of(pairs)))
	}
	return errors.Join(errs...)
}

func (t Table) ensure(conn *nftables.Conn, f family, pairs []Pair) error {
	have, exists, err := t.current(conn, f)
	if err != nil {
		return fmt.Errorf("read nftables table %s %s: %w", f.name, t.Name(), err)
	}
	want := comments(f, pairs)
	if exists == (len(want) > 0) && slices.Equal(have, want) {
		return nil
	}
	if err := t.write(conn, f, pairs); err != nil {
		return fmt.Errorf("write nftables table %s %s: %w", f.name, t.Name(), err)
	}
	return nil
}

// Remove takes the tables away, and says whether there was one.
func (t Table) Remove() (removed bool, err error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	for _, f := range families {
		_, exists, err := t.current(conn, f)
		if err == nil && exists {
			removed, err = true, t.write(conn, f, nil)
		}
		if err != nil && !unsupported(err) {
			return removed, fmt.Errorf("remove nftables table %s %s: %w", f.name, t.Name(), err)
		}
	}
	return removed, nil
}

// unsupported: a kernel without nftables has no table of ours.
func unsupported(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

// normal is in order and without doubles, so that equal wishes have equal comments.
func normal(pairs []Pair) []Pair {
	out := slices.Clone(pairs)
	for i, p := range out {
		out[i].Inside = p.Inside.Masked()
		out[i].Except = slices.Compact(slices.SortedFunc(slices.Values(p.Except), netip.Addr.Compare))
		out[i].Exclude = slices.Compact(slices.SortedFunc(slices.Values(p.Exclude), netip.Prefix.Compare))
	}
	slices.SortFunc(out, func(a, b Pair) int {
		return cmp.Or(a.Inside.Compare(b.Inside), cmp.Compare(a.Outside, b.Outside), cmp.Compare(a.comment(), b.comment()))
	})
	return slices.CompactFunc(out, func(a, b Pair) bool { return a.comment() == b.comment() })
}

// comments are those of all rules, chain by chain.
func comments(f family, pairs []Pair) (out []string) {
	for _, c := range chains {
		for _, r := range c.rules(f, pairs) {
			out = append(out, r.comment)
		}
	}
	return out
}

// current reads the comments of the rules that stand.
func (t Table) current(conn *nftables.Conn, f family) (found []string, exists bool, err error) {
	table, err := conn.ListTableOfFamily(t.Name(), f.table)
	if errors.Is(err, unix.ENOENT) || (err == nil && table == nil) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	for _, c := range chains {
		rules, err := conn.GetRules(table, &nftables.Chain{Name: c.Name, Table: table})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, true, err
		}
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			found = append(found, comment)
		}
	}
	return found, true, nil
}

// write replaces the table in one transaction. Adding it first makes deleting it succeed in any case.
func (t Table) write(conn *nftables.Conn, f family, pairs []Pair) error {
	table := &nftables.Table{Name: t.Name(), Family: f.table}
	conn.AddTable(table)
	conn.DelTable(table)
	if len(pairs) == 0 {
		return conn.Flush()
	}
	conn.AddTable(table)
	for _, c := range chains {
		if err := c.write(conn, table, f, pairs); err != nil {
			return err
		}
	}
	return conn.Flush()
}
