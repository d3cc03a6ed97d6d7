// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"
	"net/netip"
	"time"
)

// portHold is how long nobody gets a UDP port after its binding's end (RFC 6888 REQ-8), where anybody could send to it.
const portHold = 120 * time.Second

// Choice is a port that the NAT may choose at random (RFC 6056).
type Choice struct {
	low, high uint16
	parity    func(port uint16) bool // nil: any
	taken     map[uint16]bool
	binding   *Binding
}

// Allows says whether a port may be chosen: of the class, of the parity if that is still to be had, and free.
func (c *Choice) Allows(port uint16) bool {
	return port >= c.low && port <= c.high && !c.taken[port] && (c.parity == nil || c.parity(port))
}

// Lowest is the lowest port that is allowed; false: there is none.
func (c *Choice) Lowest() (uint16, bool) {
	for port := int(c.low); port <= int(c.high); port++ {
		if c.Allows(uint16(port)) {
			return uint16(port), true
		}
	}
	return 0, false
}

// choosePort gives the external port of a new binding: the internal one where it is free (port preservation), else a
// choice: of its class (RFC 4787 REQ-3a), and for UDP of its parity (REQ-4) while such a one is free. Neither: exhausted.
func (n *NAT) choosePort(b *Binding) (*Choice, Reason) {
	want := b.Internal.Port()
	low, high := n.portRange(b.Protocol, want)
	c := &Choice{low: max(low, 1), high: high, taken: n.taken(b.Protocol, b.External.Addr()), binding: b}
	if want >= low && want <= high && !c.taken[want] {
		b.setPort(want)
		return nil, ""
	}
	if b.Protocol == UDP {
		c.parity = func(port uint16) bool { return port%2 == want%2 }
	}
	_, any := c.Lowest()
	if !any {
		c.parity = nil
		_, any = c.Lowest()
	}
	if !any {
		return nil, DroppedPortExhausted
	}
	return c, ""
}

// hold is a port's time of waiting. One that is taken meanwhile, by a static binding or an import, and held once more, waits for
// what was left of its first time.
type hold struct {
	external netip.AddrPort
	since    time.Duration
}

// release ends the times that are over.
func (n *NAT) release() {
	for len(n.waiting) > 0 && n.now-n.waiting[0].since > portHold {
		delete(n.held, n.waiting[0].external)
		n.waiting = n.waiting[1:]
	}
}

// isHeld: nobody gets it yet.
func (n *NAT) isHeld(p Protocol, external netip.AddrPort) bool { return p == UDP && n.held[external] }

// unhold: somebody who asks for just this endpoint gets it all the same.
func (n *NAT) unhold(p Protocol, external netip.AddrPort) {
	if p == UDP {
		delete(n.held, external)
	}
}

// taken are the ports of an external address that somebody holds: a binding, the host, or a binding just before. That of a displaced binding is the static one's, and
// free when that one has gone.
func (n *NAT) taken(p Protocol, at netip.Addr) map[uint16]bool {
	out := map[uint16]bool{}
	for _, b := range n.bindings {
		if b.Protocol == p && b.External.Addr() == at && !b.retired {
			out[b.External.Port()] = true
		}
	}
	for _, c := range n.claims {
		if c.protocol == p && c.endpoint.Addr() == at {
			out[c.endpoint.Port()] = true
		}
	}
	for external := range n.held {
		if p == UDP && external.Addr() == at {
			out[external.Port()] = true
		}
	}
	return out
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
	if !c.Allows(port) {
		return fmt.Errorf("external port %d for %s %s: not free, or not of the range %d-%d and its parity", port, c.binding.Protocol,
			c.binding.Internal, c.low, c.high)
	}
	c.binding.setPort(port)
	return nil
}

func (b *Binding) setPort(port uint16) { b.External = netip.AddrPortFrom(b.External.Addr(), port) }
