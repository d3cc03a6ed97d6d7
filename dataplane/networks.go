// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/conenat/conenat/bpf"
)

// HostNetwork is the network's name of the host's own packets whose source port a binding holds.
const HostNetwork = "host"

// maxName is NAT_NAME_LEN less the final 0.
const maxName = 15

// maxLabel is NAT_LABEL_LEN less the final 0.
const maxLabel = bpf.LabelLen - 1

// names is a picture of zones with their excluded destinations, realms, owners, and the sets of external addresses that
// they have.
type names struct {
	zones      []bpf.Zone
	exclusions map[bpf.ExclusionKey]uint32
	realms     []bpf.Realm
	owners     map[bpf.OwnerKey]bpf.Owner
	sets       map[uint32]bpf.Set
	version    ipVersion
}

// names are read once until something of them changes: this process is the only one that writes them.
func (f *family) names() (names, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known != nil {
		return *f.known, nil
	}
	n, err := f.readNames()
	if err == nil {
		f.known = &n
	}
	return n, err
}

// forgetNames is called after each write of what names has.
func (f *family) forgetNames() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known = nil
}

func (f *family) readNames() (names, error) {
	n := names{version: f.ipVersion}
	var err error
	if n.zones, err = f.Zones.Elements(bpf.Zones); err != nil {
		return n, fmt.Errorf("read networks: %w", err)
	}
	if n.exclusions, err = f.Exclusions.Dump(); err != nil {
		return n, fmt.Errorf("read excluded destinations: %w", err)
	}
	if n.realms, err = f.Realms.Elements(bpf.Realms); err != nil {
		return n, fmt.Errorf("read outsides: %w", err)
	}
	if n.owners, err = f.Owners.Dump(); err != nil {
		return n, fmt.Errorf("read owners: %w", err)
	}
	if n.sets, err = f.Sets.Dump(); err != nil {
		return n, fmt.Errorf("read sets of external addresses: %w", err)
	}
	return n, nil
}

func nameOf(raw [16]int8) string { return text(raw[:]) }

// text is a C string.
func text(raw []int8) string {
	var b []byte
	for _, c := range raw {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}

func rawName(s string) (raw [16]int8) {
	for i := range min(len(s), maxName) {
		raw[i] = int8(s[i])
	}
	return raw
}

// zone is what a zone is called in bindings, sessions and events.
func (n names) zone(id uint16) string {
	if id == bpf.ZoneHost {
		return HostNetwork
	}
	if int(id) >= len(n.zones) {
		return ""
	}
	return shownZone(n.zones[id])
}

func shownZone(z bpf.Zone) string {
	if z.Label[0] != 0 {
		return text(z.Label[:])
	}
	return nameOf(z.Name)
}

func (n names) zoneName(id uint16) string {
	if int(id) >= len(n.zones) {
		return ""
	}
	return nameOf(n.zones[id].Name)
}

// filtering is filtering_of of owner.h.
func (n names) filtering(zone uint16, internal bpf.Addr, l4 int) Behavior {
	if zone == bpf.ZoneHost {
		return AddressDependent
	}
	if int(zone) >= len(n.zones) {
		return AddressAndPortDependent
	}
	owner := n.owners[bpf.OwnerKey{Address: internal, Zone: zone}]
	if owner.Flags&bpf.OwnerFiltering != 0 {
		return Behavior(owner.Filtering[l4])
	}
	return Behavior(n.zones[zone].Filtering[l4])
}

// zoneID finds a network by name; free is the lowest identifier that none has, 0 when all are taken.
func (n names) zoneID(name string) (id, free uint16) {
	for i := bpf.ZoneLast; i > 0; i-- {
		switch nameOf(n.zones[i].Name) {
		case name:
			id = uint16(i)
		case "":
			free = uint16(i)
		}
	}
	return id, free
}

func (n names) realmID(name string) (id int, free int) {
	id, free = -1, -1
	for i := len(n.realms) - 1; i >= 0; i-- {
		switch nameOf(n.realms[i].Name) {
		case name:
			id = i
		case "":
			free = i
		}
	}
	return id, free
}

func checkName(kind, name string) error {
	if name == "" || len(name) > maxName || name == HostNetwork {
		return fmt.Errorf("%s %q: want a name of 1 to %d bytes that is not %q", kind, name, maxName, HostNetwork)
	}
	return nil
}

// PutNetwork makes a network, or changes the one of that name. Bindings that live stay as they are, but for those at
// external addresses that a changed Network.External leaves out: they end. The first network that has IPv6 has its packet path loaded.
func (d *Dataplane) PutNetwork(n Network) error {
	if err := checkName("network", n.Name); err != nil {
		return err
	}
	defer d.writes.hold()()
	if err := d.putNetwork(n); err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	return nil
}

func (d *Dataplane) putNetwork(n Network) error {
	if err := n.check(); err != nil {
		return err
	}
	known, err := d.ipv4.names()
	if err != nil {
		return err
	}
	id, free := known.zoneID(n.Name)
	if id == 0 {
		id = free
	}
	if id == 0 {
		return fmt.Errorf("%w: %d networks are there already", ErrFull, bpf.ZoneLast)
	}
	families, err := d.familiesFor(n.addresses())
	if err != nil {
		return err
	}
	for _, f := range families {
		if err := f.putNetwork(id, n.part(f.ipVersion)); err != nil {
			return err
		}
	}
	return nil
}

// putNetwork is given a family's part of the network.
func (f *family) putNetwork(id uint16, n Network) error {
	zone, err := rawZone(n)
	if err != nil {
		return err
	}
	known, err := f.names()
	if err != nil {
		return err
	}
	if zone.Set, err = f.internSet(n.External); err != nil {
		return err
	}
	defer f.forgetNames()
	if err := f.exclude(known, id, n.Exclude); err != nil {
		return err
	}
	if err := f.putReached(known, id, n.reached()); err != nil {
		return err
	}
	if err := f.putZone(known, id, zone); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if (zone.Flags^known.zones[id].Flags)&(bpf.ZoneNPTv6|bpf.ZoneRouted) != 0 {
		if err := f.endOtherMode(id); err != nil {
			return err
		}
	}
	if zone.Set == known.zones[id].Set {
		return nil
	}
	f.forgetNames()
	return f.networkMoved(id)
}

// check refuses what PutNetwork cannot write, before anything is changed.
func (n Network) check() error {
	if len(n.Prefixes) == 0 {
		return fmt.Errorf("has no prefixes; want 1 to %d of IPv4, of IPv6 or of each", bpf.Prefixes)
	}
	for _, a := range n.addresses() {
		if err := checkAddress(a); err != nil {
			return err
		}
	}
	if n.Address.Is6() || n.Address6.Is4() {
		return fmt.Errorf("addresses %s of IPv4 and %s of IPv6: each is the other one's", n.Address, n.Address6)
	}
	for _, v := range []ipVersion{ipv4, ipv6} {
		part := n.part(v)
		if _, err := rawZone(part); err != nil {
			return err
		}
		if _, err := rawSet(part.External); err != nil {
			return err
		}
	}
	return n.checkMode()
}

// addresses are all that it has, and of its prefixes one each.
func (n Network) addresses() (list []netip.Addr) {
	for _, p := range slices.Concat(n.Prefixes, n.Exclude) {
		list = append(list, p.Addr())
	}
	for _, a := range []netip.Addr{n.Address, n.Address6} {
		if a.IsValid() {
			list = append(list, a)
		}
	}
	return append(list, n.External...)
}

// part is what it has of one IP version; its own address there is in Address.
func (n Network) part(v ipVersion) Network {
	n.Prefixes, n.Exclude, n.External = only(n.Prefixes, v.hasPrefix), only(n.Exclude, v.hasPrefix), only(n.External, v.has)
	if v == ipv6 {
		n.Address = n.Address6
	} else if n.Mode == ModeNPTv6 {
		n.Mode, n.ExternalPrefix = ModeNAT, netip.Prefix{}
	}
	n.Address6 = netip.Addr{}
	return n
}

// with is an IPv4 part and IPv6's as one.
func (n Network) with(part6 Network) Network {
	n.Prefixes, n.Exclude = slices.Concat(n.Prefixes, part6.Prefixes), slices.Concat(n.Exclude, part6.Exclude)
	n.External, n.Address6 = slices.Concat(n.External, part6.External), part6.Address
	n.Mode, n.ExternalPrefix = max(n.Mode, part6.Mode), part6.ExternalPrefix
	return n
}

// rawZone is given the part of one IP version.
func rawZone(n Network) (bpf.Zone, error) {
	zone := bpf.Zone{Name: rawName(n.Name), Ifindex: uint32(n.IfIndex), Prefixes: uint8(len(n.Prefixes))}
	if len(n.Label) > maxLabel {
		return zone, fmt.Errorf("label %q: want at most %d bytes", n.Label, maxLabel)
	}
	for i := range len(n.Label) {
		zone.Label[i] = int8(n.Label[i])
	}
	if n.Isolated {
		zone.Flags |= bpf.ZoneIsolated
	}
	if len(n.Exclude) > 0 {
		zone.Flags |= bpf.ZoneExcludes
	}
	if err := rawReplies(n, &zone); err != nil {
		return zone, err
	}
	if len(n.Prefixes) > bpf.Prefixes {
		return zone, fmt.Errorf("has %d prefixes of one IP version; want at most %d", len(n.Prefixes), bpf.Prefixes)
	}
	for i, p := range n.Prefixes {
		zone.Prefix[i].Address = rawAddr(p.Masked().Addr())
		zone.Prefix[i].Mask = rawMask(p)
	}
	if n.Mode == ModeRouted {
		zone.Flags |= bpf.ZoneRouted
	}
	if n.Mode == ModeNPTv6 {
		zone.Flags |= bpf.ZoneNPTv6
		zone.External, zone.Adjustment = rawAddr(n.ExternalPrefix.Addr()), adjustment(n.Prefixes[0], n.ExternalPrefix)
	}
	for i := range bpf.Protocols {
		mapping, filtering := n.Mapping[i], n.Filtering[i]
		if mapping > AddressAndPortDependent {
			return zone, fmt.Errorf("unknown mapping %d", mapping)
		}
		if filtering > AddressAndPortDependent {
			return zone, fmt.Errorf("unknown filtering %d", filtering)
		}
		zone.Mapping[i], zone.Filtering[i] = uint8(mapping), uint8(filtering)
	}
	copy(zone.Mac[:], n.Gateway)
	l := &zone.Limits
	l.HostPorts, l.HostSessions = n.Limits.HostPorts, n.Limits.HostSessions
	l.ZonePorts, l.ZoneSessions = n.Limits.NetworkPorts, n.Limits.NetworkSessions
	zone.Block = n.BlockSize
	return zone, checkBlockSize(n.BlockSize)
}

// rawReplies is what the network's hosts are told, and by whom.
func rawReplies(n Network, zone *bpf.Zone) error {
	if n.MSSClamp {
		zone.Flags |= bpf.ZoneMSSClamp
	}
	if n.Refusal > RefuseAdminProhibited {
		return fmt.Errorf("unknown refusal %d", n.Refusal)
	}
	zone.Refusal = uint8(n.Refusal)
	zone.Gateway = rawAddr(n.Address)
	return nil
}

func rawMask(p netip.Prefix) bpf.Addr {
	full := slices.Repeat([]byte{0xff}, p.Addr().BitLen()/8)
	ones, _ := netip.AddrFromSlice(full)
	return rawAddr(netip.PrefixFrom(ones, p.Bits()).Masked().Addr())
}

func maskBits(mask bpf.Addr) (n int) {
	for _, b := range addrOf(mask).AsSlice() {
		n += bits.OnesCount8(b)
	}
	return n
}

// Networks are those that were put and not removed.
func (d *Dataplane) Networks() ([]Network, error) {
	var parts [][]Network
	for _, f := range d.families() {
		known, err := f.names()
		if err != nil {
			return nil, err
		}
		parts = append(parts, known.networks())
	}
	var out []Network
	for id, n := range parts[0] {
		if n.Name == "" {
			continue
		}
		for _, more := range parts[1:] {
			n = n.with(more[id])
		}
		out = append(out, n)
	}
	return out, nil
}

// networks are by their number what a family has of them.
func (n names) networks() []Network {
	excluded := n.excluded()
	list := make([]Network, len(n.zones))
	for id, z := range n.zones {
		if z.Name[0] != 0 {
			list[id] = networkOf(n.version, z)
			list[id].Exclude, list[id].External = excluded[uint16(id)], n.external(z.Set)
		}
	}
	return list
}

func networkOf(v ipVersion, z bpf.Zone) Network {
	n := Network{Name: nameOf(z.Name), Label: text(z.Label[:]), IfIndex: int(z.Ifindex), Isolated: z.Flags&bpf.ZoneIsolated != 0,
		Refusal: Refusal(z.Refusal), MSSClamp: z.Flags&bpf.ZoneMSSClamp != 0, Address: addrOf(z.Gateway)}
	if z.Mac != [6]uint8{} {
		n.Gateway = append(n.Gateway, z.Mac[:]...)
	}
	for _, p := range z.Prefix[:min(int(z.Prefixes), bpf.Prefixes)] {
		n.Prefixes = append(n.Prefixes, v.prefix(p.Address, maskBits(p.Mask)))
	}
	for i := range bpf.Protocols {
		n.Mapping[i], n.Filtering[i] = Behavior(z.Mapping[i]), Behavior(z.Filtering[i])
	}
	n.Limits = Limits{HostPorts: z.Limits.HostPorts, HostSessions: z.Limits.HostSessions,
		NetworkPorts: z.Limits.ZonePorts, NetworkSessions: z.Limits.ZoneSessions}
	n.BlockSize = z.Block
	if z.Flags&bpf.ZoneRouted != 0 {
		n.Mode = ModeRouted
	}
	if z.Flags&bpf.ZoneNPTv6 != 0 {
		n.Mode, n.ExternalPrefix = ModeNPTv6, v.prefix(z.External, maskBits(z.Prefix[0].Mask))
	}
	return n
}

// RemoveNetwork ends a network with its bindings and sessions. Its links must be detached before.
func (d *Dataplane) RemoveNetwork(name string) error {
	defer d.writes.hold()()
	if err := d.removeNetwork(name); err != nil {
		return fmt.Errorf("remove network %s: %w", name, err)
	}
	return nil
}

// removeNetwork leaves IPv4's part, which has the name, to the end.
func (d *Dataplane) removeNetwork(name string) error {
	known, err := d.ipv4.names()
	if err != nil {
		return err
	}
	id, _ := known.zoneID(name)
	if id == 0 {
		return ErrNotFound
	}
	if err := d.refuseLinked(id, false); err != nil {
		return err
	}
	for _, f := range slices.Backward(d.families()) {
		if err := f.removeNetwork(id); err != nil {
			return err
		}
	}
	return nil
}

func (f *family) removeNetwork(id uint16) error {
	if err := f.killAll(func(b binding) bool { return b.Zone == id }); err != nil {
		return err
	}
	if err := f.removeOwners(id); err != nil {
		return err
	}
	known, err := f.names()
	if err != nil {
		return err
	}
	defer f.forgetNames()
	if err := f.exclude(known, id, nil); err != nil {
		return err
	}
	if err := f.putReached(known, id, nil); err != nil {
		return err
	}
	if err := f.putZone(known, id, bpf.Zone{}); err != nil {
		return err
	}
	f.forgetNames()
	return f.settleAddresses()
}

// refuseLinked is an error while an interface still has hooks for the owner.
func (d *Dataplane) refuseLinked(owner uint16, outside bool) error {
	links, err := d.rawLinks()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Owner == owner && (l.Kind == bpf.LinkOutside) == outside {
			return fmt.Errorf("interface %d still has its hooks: detach it first", l.Ifindex)
		}
	}
	return nil
}
