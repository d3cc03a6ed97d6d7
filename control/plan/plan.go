// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/conenat/conenat/dataplane"
)

// State is what a dataplane holds or should hold. Order within the lists means nothing.
type State struct {
	Settings dataplane.Settings
	Outsides []dataplane.Outside
	Networks []dataplane.Network
	Owners   []dataplane.Owner
	Vouched  bool                // desired: somebody says who the owners are; else those that are there are forgotten, and not ended
	Forwards []dataplane.Forward // a desired one may leave Network empty
	Links    []dataplane.Link

	// Stale are indices of interfaces whose hooks an actual state has but should get anew: those of an
	// earlier daemon's program, and those that could not be put on before.
	Stale []int
}

// Verb is what an action does.
type Verb string

// The verbs, in the order in which a plan has them.
const (
	DetachXDP     Verb = "detach XDP from"
	Detach        Verb = "detach"
	RemoveForward Verb = "remove forward"
	RemoveOwner   Verb = "remove container"
	ForgetOwner   Verb = "forget container"
	RemoveNetwork Verb = "remove network"
	RemoveOutside Verb = "remove outside"
	Configure     Verb = "configure"
	PutOutside    Verb = "put outside"
	PutNetwork    Verb = "put network"
	PutOwner      Verb = "put container"
	AddForward    Verb = "add forward"
	Attach        Verb = "attach"
	AttachXDP     Verb = "attach XDP to"
)

// Action is one step; the field that its verb speaks of is set.
type Action struct {
	Verb     Verb
	Settings dataplane.Settings
	Outside  dataplane.Outside
	Network  dataplane.Network
	Owner    dataplane.Owner
	Forward  dataplane.Forward
	Link     dataplane.Link
}

// String names the verb and the object: it identifies an action among those of one plan, and of the next.
func (a Action) String() string {
	switch a.Verb {
	case Detach, Attach:
		return fmt.Sprintf("%s %s hooks, interface %s (index %d)", a.Verb, a.Link.Kind, a.Link.Name, a.Link.IfIndex)
	case DetachXDP, AttachXDP:
		return fmt.Sprintf("%s interface %s (index %d)", a.Verb, a.Link.Name, a.Link.IfIndex)
	case RemoveForward, AddForward:
		return fmt.Sprintf("%s %s", a.Verb, ForwardID(a.Forward.Protocol, a.Forward.External))
	case RemoveOwner, ForgetOwner, PutOwner:
		return fmt.Sprintf("%s %s of network %s", a.Verb, a.Owner.Address, a.Owner.Network)
	case RemoveNetwork, PutNetwork:
		return fmt.Sprintf("%s %s", a.Verb, a.Network.Name)
	case RemoveOutside, PutOutside:
		return fmt.Sprintf("%s %s", a.Verb, a.Outside.Name)
	}
	return string(a.Verb)
}

// ForwardID is the name of a static binding: "tcp/198.51.100.1:8080".
func ForwardID(p dataplane.Protocol, external netip.AddrPort) string {
	return p.String() + "/" + external.String()
}

// New is what takes a dataplane from actual to desired. An action that fails may make later ones fail; none
// of them needs the whole plan to have succeeded.
func New(desired, actual State) []Action {
	var p []Action
	p = append(p, detachXDP(desired, actual)...)
	p = append(p, detach(desired, actual)...)
	p = append(p, remove(desired, actual)...)
	if desired.Settings != actual.Settings {
		p = append(p, Action{Verb: Configure, Settings: desired.Settings})
	}
	p = append(p, put(desired, actual)...)
	p = append(p, attach(desired, actual)...)
	p = append(p, attachXDP(desired, actual)...)
	return p
}

func detach(desired, actual State) (p []Action) {
	keep := index(desired.Links, linkKey)
	for _, l := range inOrder(actual.Links, compareLinks) {
		if want, ok := keep[l.IfIndex]; !ok || want.Kind != l.Kind || want.Owner != l.Owner {
			p = append(p, Action{Verb: Detach, Link: l})
		}
	}
	slices.Reverse(p) // the inside first
	return p
}

// detachXDP leaves to Detach what loses its hooks, too.
func detachXDP(desired, actual State) (p []Action) {
	want := index(desired.Links, linkKey)
	for _, l := range inOrder(actual.Links, compareLinks) {
		if w, ok := want[l.IfIndex]; ok && l.XDP != dataplane.XDPNone && w.XDP == dataplane.XDPNone {
			p = append(p, Action{Verb: DetachXDP, Link: l})
		}
	}
	return p
}

// attachXDP comes after the hooks, which take what XDP hands on.
func attachXDP(desired, actual State) (p []Action) {
	have := index(actual.Links, linkKey)
	for _, l := range inOrder(desired.Links, compareLinks) {
		is := have[l.IfIndex]
		anew := slices.Contains(actual.Stale, l.IfIndex) || is.Kind != l.Kind || is.Owner != l.Owner
		if l.XDP != dataplane.XDPNone && (anew || is.XDP != l.XDP) {
			p = append(p, Action{Verb: AttachXDP, Link: l})
		}
	}
	return p
}

func attach(desired, actual State) (p []Action) {
	have := index(actual.Links, linkKey)
	moved := gatewayChanges(desired, actual)
	for _, l := range inOrder(desired.Links, compareLinks) {
		is, ok := have[l.IfIndex]
		stale := slices.Contains(actual.Stale, l.IfIndex) || (l.Kind != dataplane.OutsideLink && moved[l.Owner])
		if !ok || stale || !sameLink(is, l) {
			p = append(p, Action{Verb: Attach, Link: l})
		}
	}
	return p
}

// gatewayChanges are the networks whose links must be attached again, because a link keeps a copy of its
// network's gateway. (A bridge takes another MAC when a port joins whose MAC is lower.)
func gatewayChanges(desired, actual State) map[string]bool {
	moved := map[string]bool{}
	have := index(actual.Networks, networkKey)
	for _, n := range desired.Networks {
		is, ok := have[n.Name]
		moved[n.Name] = ok && !bytes.Equal(is.Gateway, n.Gateway)
	}
	return moved
}

func remove(desired, actual State) (p []Action) {
	forwards := index(desired.Forwards, forwardKey)
	for _, f := range inOrder(actual.Forwards, compareForwards) {
		if want, ok := forwards[forwardKey(f)]; !ok || !sameForward(f, want) {
			p = append(p, Action{Verb: RemoveForward, Forward: f})
		}
	}
	p = append(p, removeOwners(desired, actual)...)
	networks := index(desired.Networks, networkKey)
	for _, n := range inOrder(actual.Networks, compareNetworks) {
		if _, ok := networks[n.Name]; !ok {
			p = append(p, Action{Verb: RemoveNetwork, Network: n})
		}
	}
	outsides := index(desired.Outsides, outsideKey)
	for _, o := range inOrder(actual.Outsides, compareOutsides) {
		if _, ok := outsides[o.Name]; !ok {
			p = append(p, Action{Verb: RemoveOutside, Outside: o})
		}
	}
	return p
}

// removeOwners: whoever gets the address of a container that is gone inherits nothing, so another container with the
// same address is put after the one before was removed. A network that goes takes its owners along.
func removeOwners(desired, actual State) (p []Action) {
	want, networks := index(desired.Owners, ownerKey), index(desired.Networks, networkKey)
	for _, o := range inOrder(actual.Owners, compareOwners) {
		if _, stays := networks[o.Network]; !stays {
			continue
		}
		w, ok := want[ownerKey(o)]
		switch {
		case !desired.Vouched:
			p = append(p, Action{Verb: ForgetOwner, Owner: o})
		case !ok || w.ID != o.ID:
			p = append(p, Action{Verb: RemoveOwner, Owner: o})
		}
	}
	return p
}

func putOwners(desired, actual State) (p []Action) {
	have := index(actual.Owners, ownerKey)
	for _, o := range inOrder(desired.Owners, compareOwners) {
		if is, ok := have[ownerKey(o)]; !ok || !sameOwner(is, o) {
			p = append(p, Action{Verb: PutOwner, Owner: o})
		}
	}
	return p
}

func put(desired, actual State) (p []Action) {
	outsides := index(actual.Outsides, outsideKey)
	for _, o := range inOrder(desired.Outsides, compareOutsides) {
		if is, ok := outsides[o.Name]; !ok || !is.Equal(o) {
			p = append(p, Action{Verb: PutOutside, Outside: o})
		}
	}
	networks := index(actual.Networks, networkKey)
	for _, n := range inOrder(desired.Networks, compareNetworks) {
		if is, ok := networks[n.Name]; !ok || !sameNetwork(is, n) {
			p = append(p, Action{Verb: PutNetwork, Network: n})
		}
	}
	p = append(p, putOwners(desired, actual)...)
	forwards := index(actual.Forwards, forwardKey)
	for _, f := range inOrder(desired.Forwards, compareForwards) {
		if is, ok := forwards[forwardKey(f)]; !ok || !sameForward(is, f) {
			p = append(p, Action{Verb: AddForward, Forward: f})
		}
	}
	return p
}

func sameNetwork(a, b dataplane.Network) bool {
	return a.IfIndex == b.IfIndex && bytes.Equal(a.Gateway, b.Gateway) && a.Mapping == b.Mapping &&
		a.Filtering == b.Filtering && a.Limits == b.Limits && a.BlockSize == b.BlockSize && a.Label == b.Label && a.Isolated == b.Isolated &&
		slices.Equal(a.External, b.External) && a.Address == b.Address && a.Address6 == b.Address6 && a.Refusal == b.Refusal && a.Mode == b.Mode && a.ExternalPrefix == b.ExternalPrefix && a.MSSClamp == b.MSSClamp &&
		slices.Equal(inOrder(a.Prefixes, netip.Prefix.Compare), inOrder(b.Prefixes, netip.Prefix.Compare)) &&
		slices.Equal(distinct(a.Exclude), distinct(b.Exclude))
}

// distinct are prefixes in order, each once.
func distinct(list []netip.Prefix) []netip.Prefix {
	return slices.Compact(inOrder(list, netip.Prefix.Compare))
}

// sameLink leaves out Name, which is for messages, Mechanism, which the dataplane chooses, and XDP, which has actions of its own.
func sameLink(a, b dataplane.Link) bool {
	return a.IfIndex == b.IfIndex && a.Kind == b.Kind && a.Owner == b.Owner && a.Peer == b.Peer && a.Layer3 == b.Layer3 &&
		a.Stack == b.Stack && a.DropUnsolicited == b.DropUnsolicited && bytes.Equal(a.MAC, b.MAC)
}

func sameOwner(a, b dataplane.Owner) bool {
	if (a.Filtering == nil) != (b.Filtering == nil) || (a.Filtering != nil && *a.Filtering != *b.Filtering) {
		return false
	}
	return a.ID == b.ID && a.Port == b.Port && a.Excluded == b.Excluded && a.OneToOne == b.OneToOne && slices.Equal(a.External, b.External)
}

// sameForward leaves out OverHostSocket, which only matters while a forward is made.
func sameForward(is, want dataplane.Forward) bool {
	return is.Internal == want.Internal && (want.Network == "" || want.Network == is.Network)
}

func linkKey(l dataplane.Link) int          { return l.IfIndex }
func networkKey(n dataplane.Network) string { return n.Name }
func outsideKey(o dataplane.Outside) string { return o.Name }
func forwardKey(f dataplane.Forward) string { return ForwardID(f.Protocol, f.External) }

type ownerID struct {
	network string
	address netip.Addr
}

func ownerKey(o dataplane.Owner) ownerID { return ownerID{o.Network, o.Address} }

func compareOwners(a, b dataplane.Owner) int {
	return cmp.Or(cmp.Compare(a.Network, b.Network), a.Address.Compare(b.Address))
}

// compareLinks puts outsides first and bridges last, so that ports are covered before their bridge is.
func compareLinks(a, b dataplane.Link) int {
	rank := map[dataplane.LinkKind]int{dataplane.OutsideLink: 0, dataplane.InsidePort: 1, dataplane.InsideDevice: 2}
	return cmp.Or(cmp.Compare(rank[a.Kind], rank[b.Kind]), cmp.Compare(a.IfIndex, b.IfIndex))
}

func compareNetworks(a, b dataplane.Network) int { return strings.Compare(a.Name, b.Name) }
func compareOutsides(a, b dataplane.Outside) int { return strings.Compare(a.Name, b.Name) }

func compareForwards(a, b dataplane.Forward) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.External.Compare(b.External))
}

func inOrder[T any](list []T, compare func(a, b T) int) []T {
	return slices.SortedStableFunc(slices.Values(list), compare)
}

func index[K comparable, T any](list []T, key func(T) K) map[K]T {
	m := make(map[K]T, len(list))
	for _, v := range list {
		m[key(v)] = v
	}
	return m
}
