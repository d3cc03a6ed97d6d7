// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"
	"net/netip"
	"time"
)

// portHold is how long nobody gets a UDP port after its binding's end (RFC 6888 REQ-8), where anybody could send to it.
const portHold = 120 * time.Second

// Choice is a port that the NAT may choose at random (RFC 6056): any of Allowed.
type Choice struct {
	Allowed map[uint16]bool
	binding *Binding
}

// choosePort gives the external port of a new binding: the internal one where it is free (port preservation), else a
// choice: of its class (RFC 4787 REQ-3a), and for UDP of its parity (REQ-4) while such a one is free. Neither: exhausted.
func (n *NAT) choosePort(b *Binding) (*Choice, Reason) {
	low, high := n.portRange(b.Protocol, b.Internal.Port())
	if want := b.Internal.Port(); want >= low && want <= high && n.portIsFree(b.Protocol, want) {
		b.setPort(want)
		return nil, ""
	}
	all, ofParity := map[uint16]bool{}, map[uint16]bool{}
	for port := int(max(low, 1)); port <= int(high); port++ {
		if !n.portIsFree(b.Protocol, uint16(port)) {
			continue
		}
		all[uint16(port)] = true
		if b.Protocol == UDP && port%2 == int(b.Internal.Port()%2) {
			ofParity[uint16(port)] = true
		}
	}
	switch {
	case len(all) == 0:
		return nil, DroppedPortExhausted
	case len(ofParity) > 0:
		return &Choice{Allowed: ofParity, binding: b}, ""
	}
	return &Choice{Allowed: all, binding: b}, ""
}

// portIsFree: nobody holds the external endpoint, neither a binding nor the host, and nobody has held it just before.
func (n *NAT) portIsFree(p Protocol, port uint16) bool {
	external := netip.AddrPortFrom(n.config.External, port)
	return !n.isHeld(p, external) && n.bindingAt(p, external) == nil && n.claimAt(p, external) == nil
}

func (n *NAT) isHeld(p Protocol, external netip.AddrPort) bool {
	_, held := n.held[external]
	return held && p == UDP
}

func (n *NAT) portRange(p Protocol, internal uint16) (low, high uint16) {
	switch {
	case p == ICMP:
		return 0, 65535
	case internal < 1024:
		return 1, 1023
	}
	return n.config.PortLow, n.config.PortHigh
}

// Chose tells the NAT which port was chosen. It has to be told before the next packet.
func (c *Choice) Chose(port uint16) error {
	if !c.Allowed[port] {
		return fmt.Errorf("external port %d for %s %s: not one of the %d that are allowed", port, c.binding.Protocol,
			c.binding.Internal, len(c.Allowed))
	}
	c.binding.setPort(port)
	return nil
}
