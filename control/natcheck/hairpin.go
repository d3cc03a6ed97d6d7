// SPDX-License-Identifier: Apache-2.0

package natcheck

import (
	"context"
	"errors"
	"sync"
)

// hairpin lets two ports send to each other's external endpoint (RFC 5780, section 4.5, in both directions, so
// that each has sent to the other before: that the NAT filters is no reason to say that it does not hairpin).
func (c *check) hairpin(ctx context.Context) {
	if err := c.tryHairpin(ctx); err != nil && ctx.Err() == nil {
		c.problem("hairpinning cannot be told: %v", err)
	}
}

func (c *check) tryHairpin(ctx context.Context) error {
	var sockets [2]*socket
	var answers [2]answer
	for i := range sockets {
		var err error
		if sockets[i], err = c.open(); err != nil {
			return err
		}
		if answers[i], err = sockets[i].ask(ctx, c.timers, c.Server); err != nil {
			return err
		}
	}
	arrivals, err := c.crossfire(ctx, sockets, answers)
	if err != nil {
		return err
	}
	hairpins, source := false, ""
	for i, a := range arrivals {
		sender := 1 - i
		switch {
		case a.message == nil:
		case a.from.Addr() == answers[sender].mapped.Addr(): // the port is another where mapping depends on the remote
			hairpins, source = true, "external"
		case source == "":
			hairpins, source = true, "internal"
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Hairpin, c.report.HairpinSource = &hairpins, source
	return nil
}

// crossfire is what arrived at each of two sockets from the other one.
func (c *check) crossfire(ctx context.Context, sockets [2]*socket, answers [2]answer) (arrivals [2]arrival, err error) {
	var failed [2]error
	var group sync.WaitGroup
	for i := range sockets {
		request, err := newRequest()
		if err != nil {
			return arrivals, err
		}
		arrived := sockets[i].expect(request.TransactionID)
		sender := sockets[1-i]
		group.Go(func() {
			arrivals[i], failed[i] = c.repeat(ctx, func() error { return sender.send(request, answers[i].mapped) }, arrived)
		})
	}
	group.Wait()
	for _, err := range failed {
		if err != nil && !errors.Is(err, errNoAnswer) {
			return arrivals, err
		}
	}
	return arrivals, nil
}
