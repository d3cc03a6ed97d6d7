// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"

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
}

// names are read once until something of them changes: this process is the only one that writes them.
func (d *Dataplane) names() (names, error) {
	d.knownMu.Lock()
	defer d.knownMu.Unlock()
	if d.known != nil {
		return *d.known, nil
	}
	n, err := d.readNames()
	if err == nil {
		d.known = &n
	}
	return n, err
}

// forgetNames is called after each write of what names has.
func (d *Dataplane) forgetNames() {
	d.knownMu.Lock()
	defer d.knownMu.Unlock()
	d.known = nil
}

func (d *Dataplane) readNames() (names, error) {
	var n names
	var err error
	if n.zones, err = dumpArray[bpf.Zone](d.objs.Zones4, bpf.Zones); err != nil {
		return n, fmt.Errorf("read networks: %w", err)
	}
	if n.exclusions, err = dumpHash[bpf.ExclusionKey, uint32](d.objs.Exclusions4); err != nil {
		return n, fmt.Errorf("read excluded destinations: %w", err)
	}
	if n.realms, err = dumpArray[bpf.Realm](d.objs.Realms4, bpf.Realms); err != nil {
		return n, fmt.Errorf("read outsides: %w", err)
	}
	if n.owners, err = dumpHash[bpf.OwnerKey, bpf.Owner](d.objs.Owners4); err != nil {
		return n, fmt.Errorf("read owners: %w", err)
	}
	if n.sets, err = dumpHash[uint32, bpf.Set](d.objs.Sets4); err != nil {
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
func (n names) filtering(zone uint16, internal uint32, l4 int) Behavior {
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
// external addresses that a changed Network.External leaves out: they end.
func (d *Dataplane) PutNetwork(n Network) error {
	if err := checkName("network", n.Name); err != nil {
		return err
	}
	zone, err := rawZone(n)
	if err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	defer d.writes.hold()()
	known, err := d.names()
	if err != nil {
		return err
	}
	id, free := known.zoneID(n.Name)
	if id == 0 {
		id = free
	}
	if id == 0 {
		return fmt.Errorf("network %s: %w: %d networks are there already", n.Name, ErrFull, bpf.ZoneLast)
	}
	if zone.Set, err = d.internSet(n.External); err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	defer d.forgetNames()
	if err := d.exclude(known, id, n.Exclude); err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	if err := d.putZone(known.zones, id, zone); err != nil {
		return fmt.Errorf("write network %s: %w", n.Name, err)
	}
	if zone.Set == known.zones[id].Set {
		return nil
	}
	d.forgetNames()
	if err := d.networkMoved(id); err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	return nil
}

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
	if len(n.Prefixes) == 0 || len(n.Prefixes) > bpf.Prefixes {
		return zone, fmt.Errorf("has %d prefixes; want 1 to %d", len(n.Prefixes), bpf.Prefixes)
	}
	for i, p := range n.Prefixes {
		if !p.Addr().Is4() {
			return zone, fmt.Errorf("prefix %s is not IPv4", p)
		}
		zone.Prefix[i].Address = rawAddr(p.Masked().Addr())
		zone.Prefix[i].Mask = rawMask(p.Bits())
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
	if !n.Address.IsValid() {
		return nil
	}
	if !n.Address.Is4() {
		return fmt.Errorf("address %s is not IPv4", n.Address)
	}
	zone.Gateway = rawAddr(n.Address)
	return nil
}

func rawMask(bits int) uint32 {
	full := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return rawAddr(netip.PrefixFrom(full, bits).Masked().Addr())
}

func maskBits(mask uint32) int {
	bits := 0
	for _, b := range addrOf(mask).As4() {
		for ; b != 0; b <<= 1 {
			bits++
		}
	}
	return bits
}

// Networks are those that were put and not removed.
func (d *Dataplane) Networks() ([]Network, error) {
	known, err := d.names()
	if err != nil {
		return nil, err
	}
	var out []Network
	excluded := known.excluded()
	for id, z := range known.zones {
		if z.Name[0] != 0 {
			n := networkOf(z)
			n.Exclude = excluded[uint16(id)]
			n.External = known.external(z.Set)
			out = append(out, n)
		}
	}
	return out, nil
}

func networkOf(z bpf.Zone) Network {
	n := Network{Name: nameOf(z.Name), Label: text(z.Label[:]), IfIndex: int(z.Ifindex), Isolated: z.Flags&bpf.ZoneIsolated != 0,
		Refusal: Refusal(z.Refusal), MSSClamp: z.Flags&bpf.ZoneMSSClamp != 0}
	if z.Gateway != 0 {
		n.Address = addrOf(z.Gateway)
	}
	if z.Mac != [6]uint8{} {
		n.Gateway = append(n.Gateway, z.Mac[:]...)
	}
	for _, p := range z.Prefix[:min(int(z.Prefixes), bpf.Prefixes)] {
		n.Prefixes = append(n.Prefixes, netip.PrefixFrom(addrOf(p.Address), maskBits(p.Mask)))
	}
	for i := range bpf.Protocols {
		n.Mapping[i], n.Filtering[i] = Behavior(z.Mapping[i]), Behavior(z.Filtering[i])
	}
	n.Limits = Limits{HostPorts: z.Limits.HostPorts, HostSessions: z.Limits.HostSessions,
		NetworkPorts: z.Limits.ZonePorts, NetworkSessions: z.Limits.ZoneSessions}
	n.BlockSize = z.Block
	return n
}

// RemoveNetwork ends a network with its bindings and sessions. Its links must be detached before.
func (d *Dataplane) RemoveNetwork(name string) error {
	defer d.writes.hold()()
	known, err := d.names()
	if err != nil {
		return err
	}
	id, _ := known.zoneID(name)
	if id == 0 {
		return fmt.Errorf("remove network %s: %w", name, ErrNotFound)
	}
	if err := d.refuseLinked(name, uint16(id), false); err != nil {
		return err
	}
	if err := d.killAll(func(b binding) bool { return b.Zone == id }); err != nil {
		return fmt.Errorf("remove network %s: %w", name, err)
	}
	if err := d.removeOwners(id); err != nil {
		return fmt.Errorf("remove network %s: %w", name, err)
	}
	defer d.forgetNames()
	err = d.putZone(known.zones, id, bpf.Zone{})
	if err == nil {
		err = d.exclude(known, id, nil)
	}
	if err != nil {
		return fmt.Errorf("remove network %s: %w", name, err)
	}
	d.forgetNames()
	if err := d.settleAddresses(); err != nil {
		return fmt.Errorf("remove network %s: %w", name, err)
	}
	return nil
}

// refuseLinked is an error while an interface still has hooks for the owner.
func (d *Dataplane) refuseLinked(name string, owner uint16, outside bool) error {
	links, err := d.rawLinks()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Owner == owner && (l.Kind == bpf.LinkOutside) == outside {
			return fmt.Errorf("remove %s: interface %d still has its hooks: detach it first", name, l.Ifindex)
		}
	}
	return nil
}
