// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Range is external addresses of one family that follow each other: one of them, a prefix's, or those from one to another.
type Range struct{ First, Last netip.Addr }

// Single is one address, which is wanted whether an interface has it or not.
func (r Range) Single() bool { return r.First == r.Last }

// Contains says whether an address is one of the range's.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// String is "ADDR" or "ADDR-ADDR".
func (r Range) String() string {
	if r.Single() {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// InRanges says whether an address is of any of the ranges.
func InRanges(list []Range, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(r Range) bool { return r.Contains(a) })
}

// ParseRange takes an address, a prefix, or "ADDR-ADDR".
func ParseRange(s string) (Range, error) {
	r, err := parseRange(s)
	if err != nil {
		return Range{}, fmt.Errorf("%q are no external addresses: want ADDR, ADDR/BITS or ADDR-ADDR, as 203.0.113.8-203.0.113.15", s)
	}
	for _, a := range []netip.Addr{r.First, r.Last} {
		if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return Range{}, fmt.Errorf("external address %s cannot be reached from outside: give unicast addresses of an outside interface", a)
		}
	}
	if r.Last.Less(r.First) {
		return Range{}, fmt.Errorf("external addresses %s end before they begin", r)
	}
	return r, nil
}

func parseRange(s string) (r Range, err error) {
	first, last, dash := strings.Cut(s, "-")
	switch {
	case dash:
		if r.First, err = netip.ParseAddr(strings.TrimSpace(first)); err == nil {
			r.Last, err = netip.ParseAddr(strings.TrimSpace(last))
		}
		if err == nil && r.First.BitLen() != r.Last.BitLen() {
			err = fmt.Errorf("of two families")
		}
		return r, err
	case strings.Contains(s, "/"):
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return r, err
		}
		r.First = p.Masked().Addr()
		r.Last = lastOf(p)
		return r, nil
	}
	r.First, err = netip.ParseAddr(s)
	r.Last = r.First
	return r, err
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b) // of a valid length
	return a
}

// ParseRanges takes ranges with commas between them, as labels have them.
func ParseRanges(s string) (list []Range, err error) {
	for part := range strings.SplitSeq(s, ",") {
		if list, err = addRange(list, strings.TrimSpace(part)); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// addRange leaves the list as it is where the text is no range, or one that is there already.
func addRange(list []Range, text string) ([]Range, error) {
	r, err := ParseRange(text)
	if err == nil && slices.Contains(list, r) {
		err = fmt.Errorf("external address %s is given twice", r)
	}
	if err != nil {
		return list, err
	}
	return append(list, r), nil
}

func (b *builder) external(values []Value) (list []Range) {
	for _, v := range values {
		var err error
		if list, err = addRange(list, v.Text); err != nil {
			b.refuse(v, "%w", err)
		}
	}
	return list
}
