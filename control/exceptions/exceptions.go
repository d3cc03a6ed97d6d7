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
	Outside  int        // interface index: one that is made anew under its old name is another interface; 0: it is away
	Name     string     // of the outside interface
	External netip.Addr // where packets from outside are addressed to; zero: there is none now
	Except   []netip.Addr
	// Except are inside addresses that conenat leaves to the host's NAT.

	// Unhooked: the hooks that translate what leaves are not on yet, and it stays the host's NAT's.
	Unhooked bool
}

// comment identifies a rule: what stands in the kernel is compared by it, so all that a rule is made of is in it.
// nft(8) refuses comments of more than 128 bytes, hence a digest of the addresses.
func (p Pair) comment() string {
	c := fmt.Sprintf("%s by %s (%d)", p.Inside, p.Name, p.Outside)
	if p.External.IsValid() {
		c += fmt.Sprintf(" as %s", p.External)
	}
	if len(p.Except) > 0 {
		c += fmt.Sprintf(", %d excepted (%.8x)", len(p.Except), sha256.Sum256(fmt.Append(nil, p.Except)))
	}
	if p.Unhooked {
		c += ", inward"
	}
	return c
}

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

// Name is the table's, in the family ip.
func (t Table) Name() string { return cmp.Or(t.name, defaultName) }

// Ensure makes the table hold the rules of these pairs and no others; no pairs, no table.
func (t Table) Ensure(pairs []Pair) error {
	pairs = normal(pairs)
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	have, exists, err := t.current(conn)
	if err != nil {
		return fmt.Errorf("read nftables table ip %s: %w", t.Name(), err)
	}
	want := comments(pairs)
	if exists == (len(want) > 0) && slices.Equal(have, want) {
		return nil
	}
	if err := t.write(conn, pairs); err != nil {
		return fmt.Errorf("write nftables table ip %s: %w", t.Name(), err)
	}
	return nil
}

// Remove takes the table away, and says whether there was one.
func (t Table) Remove() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	_, exists, err := t.current(conn)
	if unsupported(err) || (err == nil && !exists) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read nftables table ip %s: %w", t.Name(), err)
	}
	return true, t.Ensure(nil)
}

// unsupported: a kernel without nftables has no table of ours.
func unsupported(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

// normal is in order and without doubles, so that equal wishes have equal comments.
func normal(pairs []Pair) []Pair {
	out := slices.Clone(pairs)
	for i, p := range out {
		out[i].Inside = p.Inside.Masked()
		out[i].Except = slices.Compact(slices.SortedFunc(slices.Values(p.Except), netip.Addr.Compare))
	}
	slices.SortFunc(out, func(a, b Pair) int {
		return cmp.Or(a.Inside.Compare(b.Inside), cmp.Compare(a.Outside, b.Outside), cmp.Compare(a.comment(), b.comment()))
	})
	return slices.CompactFunc(out, func(a, b Pair) bool { return a.comment() == b.comment() })
}

// comments are those of all rules, chain by chain.
func comments(pairs []Pair) (out []string) {
	for _, c := range chains {
		for _, r := range c.rules(pairs) {
			out = append(out, r.comment)
		}
	}
	return out
}

// current reads the comments of the rules that stand.
func (t Table) current(conn *nftables.Conn) (found []string, exists bool, err error) {
	table, err := conn.ListTableOfFamily(t.Name(), nftables.TableFamilyIPv4)
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
func (t Table) write(conn *nftables.Conn, pairs []Pair) error {
	table := &nftables.Table{Name: t.Name(), Family: nftables.TableFamilyIPv4}
	conn.AddTable(table)
	conn.DelTable(table)
	if len(pairs) == 0 {
		return conn.Flush()
	}
	conn.AddTable(table)
	for _, c := range chains {
		if err := c.write(conn, table, pairs); err != nil {
			return err
		}
	}
	return conn.Flush()
}
