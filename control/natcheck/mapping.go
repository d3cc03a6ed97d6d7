// SPDX-License-Identifier: Apache-2.0

package natcheck

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"github.com/conenat/conenat/control/stunattr"
)

// mapping asks every endpoint of the server from a fresh port (RFC 5780, section 4.3).
func (c *check) mapping(ctx context.Context) {
	s, err := c.open()
	if err != nil {
		c.problem("mapping cannot be told: %v", err)
		return
	}
	mapping, err := c.askAll(ctx, s, false)
	if err != nil {
		c.problem("mapping cannot be told: %v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Mapping = mapping
}

// askAll asks the primary endpoint first, as an application would that looks for its external endpoint, then all others.
func (c *check) askAll(ctx context.Context, s *socket, afterUnsolicited bool) (Behavior, error) {
	remotes := c.remotes()
	var all seen
	var failed [len(remotes)]error
	one := func(i int) {
		a, err := s.ask(ctx, c.timers, remotes[i])
		if failed[i] = err; err == nil {
			all[i] = a.mapped
			c.mapped(Mapped{"udp", remotes[i], s.local, a.mapped, afterUnsolicited})
		}
	}
	one(0)
	var group sync.WaitGroup
	for i := 1; i < len(remotes); i++ {
		group.Go(func() { one(i) })
	}
	group.Wait()
	for _, err := range failed {
		if err != nil {
			return Unknown, err // the others say the same
		}
	}
	return classify(s.local, all), nil
}

// mapped notes how a port was seen. A port that unsolicited packets came to says nothing about port preservation.
func (c *check) mapped(m Mapped) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Mapped = append(c.report.Mapped, m)
	if m.Protocol == "udp" && !m.AfterUnsolicited {
		c.saw(m.Internal, m.External)
	}
}

// filtering lets the server answer from endpoints that this port never sent to (RFC 5780, section 4.4). Filtered or
// not, those answers are unsolicited packets at the NAT; so the mapping test comes after them, from the same port.
func (c *check) filtering(ctx context.Context, s *socket) {
	var fromOther, fromPort bool
	var failed [2]error
	var group sync.WaitGroup
	group.Go(func() { fromOther, failed[0] = c.change(ctx, s, stunattr.ChangeRequest{Address: true, Port: true}) })
	group.Go(func() { fromPort, failed[1] = c.change(ctx, s, stunattr.ChangeRequest{Port: true}) })
	group.Wait()
	filtering := AddressAndPortDependent
	switch err := errors.Join(failed[:]...); {
	case err != nil:
		c.problem("filtering cannot be told: %v", err)
		return
	case fromOther:
		filtering = EndpointIndependent
	case fromPort:
		filtering = AddressDependent
	}
	after, err := c.askAll(ctx, s, true)
	if err != nil {
		c.problem("whether mapping is stable cannot be told: %v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Filtering, c.report.AfterUnsolicited = filtering, after
}

// change says whether an answer from elsewhere gets through.
func (c *check) change(ctx context.Context, s *socket, how stunattr.ChangeRequest) (bool, error) {
	want := c.remotes()[1]
	if how.Address {
		want = c.other
	}
	a, err := s.ask(ctx, c.timers, c.Server, how)
	switch {
	case errors.Is(err, errNoAnswer):
		return false, nil
	case err != nil:
		return false, err
	case a.from != want:
		return false, refusal{c.Server, "it answers CHANGE-REQUEST from " + a.from.String() + " and not from " + want.String()}
	}
	return true, nil
}

// saw notes whether the port is preserved; the caller holds mu.
func (c *check) saw(internal, external netip.AddrPort) {
	c.moved = c.moved || external.Port() != internal.Port()
	preserved := !c.moved
	c.report.PortPreserved = &preserved
}
