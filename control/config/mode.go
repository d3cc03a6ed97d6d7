// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/conenat/conenat/dataplane"
)

// ParseExternalPrefix takes what a network's prefix may become outside (RFC 6296).
func ParseExternalPrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is6() || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is no prefix of IPv6: want ADDR/BITS, such as 2001:db8:1::/48", s)
	}
	// One of the same length inside is what only the host knows.
	return p, dataplane.CheckExternalPrefix([]netip.Prefix{netip.PrefixFrom(netip.IPv6Unspecified(), p.Bits())}, p)
}

// CheckMode refuses a mode without its external prefix, and an external prefix without its mode.
func CheckMode(mode dataplane.Mode, prefix netip.Prefix) error {
	switch {
	case mode == dataplane.ModeNPTv6 && !prefix.IsValid():
		return fmt.Errorf("mode %s wants an external prefix beside it", mode)
	case mode != dataplane.ModeNPTv6 && prefix.IsValid():
		return fmt.Errorf("external prefix %s wants mode %s beside it", prefix, dataplane.ModeNPTv6)
	}
	return nil
}

// mode is what becomes of a network's addresses, others being the ones that the file has named before.
func (b *builder) mode(n NetworkValues, others map[string]Network) (mode dataplane.Mode, prefix netip.Prefix) {
	errs, at := len(b.errs), n.Name
	if n.Mode.Given() {
		var err error
		if mode, err = dataplane.ParseMode(n.Mode.Text); err != nil {
			b.refuse(n.Mode, "%w", err)
		}
		at = n.Mode
	}
	if n.ExternalPrefix.Given() {
		var err error
		if prefix, err = ParseExternalPrefix(n.ExternalPrefix.Text); err != nil {
			b.refuse(n.ExternalPrefix, "%w", err)
		}
		at = n.ExternalPrefix
	}
	if len(b.errs) > errs {
		return mode, prefix
	}
	if err := CheckMode(mode, prefix); err != nil {
		b.refuse(at, "network %s: %w", n.Name.Text, err)
	}
	for _, name := range slices.Sorted(maps.Keys(others)) {
		if other := others[name].ExternalPrefix; prefix.IsValid() && other.Overlaps(prefix) {
			b.refuse(at, "external prefix %s of network %s is network %s's, which has %s", prefix, n.Name.Text, name, other)
		}
	}
	return mode, prefix
}
