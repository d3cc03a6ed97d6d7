// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/bpf"
)

// ipVersion is 4 or 6.
type ipVersion uint8

const (
	ipv4 ipVersion = 4
	ipv6 ipVersion = 6
)

func (v ipVersion) String() string { return fmt.Sprintf("IPv%d", uint8(v)) }

func (v ipVersion) has(a netip.Addr) bool { return a.Is4() == (v == ipv4) }

func (v ipVersion) hasPrefix(p netip.Prefix) bool { return v.has(p.Addr()) }

func (v ipVersion) unspecified() netip.Addr {
	if v == ipv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// prefix has the unspecified address where the tables have zeros.
func (v ipVersion) prefix(raw bpf.Addr, bits int) netip.Prefix {
	a := addrOf(raw)
	if !a.IsValid() {
		a = v.unspecified()
	}
	return netip.PrefixFrom(a, bits)
}

// checkAddress refuses what the tables cannot tell from another address.
func checkAddress(a netip.Addr) error {
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
		return fmt.Errorf("%s is neither an IPv4 address nor an IPv6 one without a zone", a)
	}
	return nil
}

// family is what there is of one address family: its tables, and the program that works on them when it is asked. Networks,
// outsides and links have the same numbers in all families: those that IPv4's tables know them by.
type family struct {
	*bpf.Tables
	ipVersion
	d        *Dataplane
	control  *ebpf.Program
	capacity Capacity

	mu    sync.Mutex
	known *names // nil: to be read
}

// families are those that are loaded, IPv4's first.
func (d *Dataplane) families() []*family {
	list := []*family{d.ipv4}
	if f := d.ipv6.Load(); f != nil {
		list = append(list, f)
	}
	return list
}

// each does the same in all families, and stops at the first error.
func (d *Dataplane) each(do func(*family) error) error {
	for _, f := range d.families() {
		if err := do(f); err != nil {
			return err
		}
	}
	return nil
}

// loadedOf is an address's family; nil: nothing of it is loaded, so that there is nothing of it.
func (d *Dataplane) loadedOf(a netip.Addr) *family {
	if a.Is4() {
		return d.ipv4
	}
	return d.ipv6.Load()
}

// of is an address's family, loaded when it is first asked for. The caller holds d.writes.
func (d *Dataplane) of(a netip.Addr) (*family, error) {
	if f := d.loadedOf(a); f != nil {
		return f, nil
	}
	return d.loadIPv6()
}

// familiesFor are all that are loaded, with those of the addresses among them. The caller holds d.writes.
func (d *Dataplane) familiesFor(list []netip.Addr) ([]*family, error) {
	if i := slices.IndexFunc(list, ipv6.has); i >= 0 {
		if _, err := d.of(list[i]); err != nil {
			return nil, err
		}
	}
	return d.families(), nil
}

// only are those for which keep is true.
func only[T any](list []T, keep func(T) bool) (out []T) {
	for _, v := range list {
		if keep(v) {
			out = append(out, v)
		}
	}
	return out
}
