// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/bpf"
)

// longestPrefix is that of RFC 6296: what is longer leaves nothing of the subnet, and the interface identifier makes up for it.
const longestPrefix = 64

// checkMode refuses what RFC 6296 cannot map.
func (n Network) checkMode() error {
	switch n.Mode {
	case ModeNAT, ModeRouted:
		if n.ExternalPrefix.IsValid() {
			return fmt.Errorf("external prefix %s is for mode %s, and the network's is %s", n.ExternalPrefix, ModeNPTv6, n.Mode)
		}
		return nil
	case ModeNPTv6:
		return CheckExternalPrefix(only(n.Prefixes, ipv6.hasPrefix), n.ExternalPrefix)
	}
	return fmt.Errorf("unknown mode %d", n.Mode)
}

// CheckExternalPrefix says what of a network's prefixes of IPv6 cannot become the external one (ModeNPTv6).
func CheckExternalPrefix(inside []netip.Prefix, external netip.Prefix) error {
	switch {
	case !external.IsValid():
		return fmt.Errorf("mode %s: no external prefix is given", ModeNPTv6)
	case !external.Addr().Is6() || external.Addr().Is4In6() || external != external.Masked() || external.Addr().Zone() != "":
		return fmt.Errorf("external prefix %s: want one of IPv6, with zeros behind its bits", external)
	case external.Bits() > longestPrefix || external.Bits() == 0:
		return fmt.Errorf("external prefix %s: want 1 to %d bits (RFC 6296)", external, longestPrefix)
	case len(inside) != 1:
		return fmt.Errorf("mode %s: want just one IPv6 prefix inside for %s, not %v", ModeNPTv6, external, inside)
	case inside[0].Bits() != external.Bits():
		return fmt.Errorf("external prefix %s is not as long as %s, which it is to take the place of", external, inside[0])
	case inside[0].Overlaps(external):
		return fmt.Errorf("external prefix %s is the inside one", external)
	}
	return nil
}

// adjustment is what makes an address with the external prefix sum up to what it did with the internal one (RFC 6296 section
// 3.1), in network byte order.
func adjustment(internal, external netip.Prefix) uint16 {
	return onesAdd(wordSum(internal.Masked().Addr()), ^wordSum(external.Addr()))
}

// wordSum is the ones' complement sum of an address's words, as they lie in memory.
func wordSum(a netip.Addr) (sum uint16) {
	b := a.As16()
	for i := 0; i < len(b); i += 2 {
		sum = onesAdd(sum, binary.NativeEndian.Uint16(b[i:]))
	}
	return sum
}

func onesAdd(a, b uint16) uint16 {
	sum := uint32(a) + uint32(b)
	return uint16(sum&0xffff + sum>>16)
}

// reached are the prefixes that its hosts have outside, of the family that this is the part of.
func (n Network) reached() []netip.Prefix {
	switch n.Mode {
	case ModeNPTv6:
		return []netip.Prefix{n.ExternalPrefix}
	case ModeRouted:
		return n.Prefixes
	}
	return nil
}

// putReached makes these the prefixes by which the network is reached from outside, and no others. The table of excluded destinations
// has them under the outside's number. Errors: ErrAddressTaken.
func (f *family) putReached(known names, id uint16, prefixes []netip.Prefix) error {
	for key, owner := range known.exclusions {
		if key.Zone != bpf.ZoneOutside {
			continue
		}
		there := prefixOfKey(f.ipVersion, key)
		switch overlapping := slices.IndexFunc(prefixes, there.Overlaps); {
		case uint16(owner) != id && overlapping >= 0:
			return fmt.Errorf("prefix %s: %w: network %s is reached by %s", prefixes[overlapping], ErrAddressTaken, known.zone(uint16(owner)), there)
		case uint16(owner) == id && !slices.Contains(prefixes, there):
			if err := f.Exclusions.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("be reached by %s no more: %w", there, err)
			}
		}
	}
	for _, p := range prefixes {
		if err := f.Exclusions.Put(exclusionKey(bpf.ZoneOutside, p), uint32(id)); err != nil {
			return fmt.Errorf("be reached by %s: %w", p, err)
		}
	}
	return nil
}

// endOtherMode ends what a network has of the mode that it had: its dynamic bindings. Static ones of the host's addresses go on.
func (f *family) endOtherMode(id uint16) error {
	return f.killAll(func(b binding) bool {
		return b.Zone == id && (b.Flags&bpf.BindingStatic == 0 || b.External == b.Internal)
	})
}
