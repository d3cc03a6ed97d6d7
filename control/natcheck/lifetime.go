// SPDX-License-Identifier: Apache-2.0

package natcheck

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/conenat/conenat/control/stunattr"
)

// ages is into how many parts the search divides its bound.
const ages = 32

// lifetime looks for a binding's lifetime (RFC 5780, section 4.6): one port makes a binding and falls silent; when the
// binding has some age, another port lets the server answer to the first one's external port (RESPONSE-PORT).
// The RFC searches by halves, one age after another; here every age has a port of its own and all wait at the same
// time, so that the search takes no longer than the lifetime that it finds.
func (c *check) lifetime(ctx context.Context) {
	if c.Lifetime == 0 {
		return
	}
	c.report.Lifetime.Asked = true
	if err := c.searchLifetime(ctx); err != nil && ctx.Err() == nil {
		c.problem("lifetime cannot be told: %v", err)
	}
}

func (c *check) searchLifetime(ctx context.Context) error {
	asker, err := c.open()
	if err != nil {
		return err
	}
	if alive, err := c.aliveAt(ctx, asker, 0); err != nil {
		return err
	} else if !alive {
		return fmt.Errorf("an answer to another port (RESPONSE-PORT) does not even reach a new binding: "+
			"STUN server %v does not do RESPONSE-PORT, or the NAT gives each port another address", c.Server)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var alive [ages + 1]bool
	var failed [ages + 1]error
	var group sync.WaitGroup
	for i := 1; i <= ages; i++ {
		group.Go(func() {
			alive[i], failed[i] = c.aliveAt(ctx, asker, c.age(i))
			if failed[i] == nil && !alive[i] {
				cancel(errDead) // older ones need not be waited for
			}
		})
	}
	group.Wait()
	for i, err := range failed {
		if err != nil && !errors.Is(err, errDead) {
			return err
		}
		if i > 0 && err == nil {
			c.found(i, alive[i])
		}
	}
	return nil
}

var errDead = errors.New("a younger binding is dead")

func (c *check) age(i int) time.Duration { return c.Lifetime * time.Duration(i) / ages }

// found takes one age's result; they come in order.
func (c *check) found(i int, alive bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	seconds := c.age(i).Seconds()
	if l := &c.report.Lifetime; !alive && l.Below == nil {
		l.Below = &seconds
	} else if alive && l.Below == nil {
		l.AtLeast = &seconds
	}
}

// aliveAt says whether a new binding still lives when it has that age.
func (c *check) aliveAt(ctx context.Context, asker *socket, age time.Duration) (bool, error) {
	silent, err := c.open()
	if err != nil {
		return false, err
	}
	born, err := silent.ask(ctx, c.timers, c.Server)
	if err != nil {
		return false, err
	}
	request, err := newRequest(stunattr.ResponsePort(born.mapped.Port()))
	if err != nil {
		return false, err
	}
	select {
	case <-time.After(age):
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	refused := asker.expect(request.TransactionID)
	_, err = c.repeat(ctx, func() error { return asker.send(request, c.Server) }, silent.expect(request.TransactionID))
	select {
	case a := <-refused: // an error comes to who asked
		_, refusal := parse(a)
		return false, refusal
	default:
	}
	if errors.Is(err, errNoAnswer) {
		return false, nil
	}
	return err == nil, err
}
