// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/conenat/conenat/tests/build"
	"github.com/conenat/conenat/tests/topo"
)

// agent is a process of tests/cmd/iceagent.
type agent struct {
	process *topo.Process
	in      io.WriteCloser
	encoder *json.Encoder
	decoder *json.Decoder
	stderr  bytes.Buffer
}

// Binary is the agent's program.
func Binary() (string, error) { return build.Binary("tests/cmd/iceagent") }

// start starts an agent in a namespace.
func start(ctx context.Context, t *topo.Topo, ns *topo.NS, o Options) (*agent, error) {
	binary, err := Binary()
	if err != nil {
		return nil, err
	}
	options, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	cmd := ns.Command(ctx, binary, string(options))
	a := &agent{}
	cmd.Stderr = &a.stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if a.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	a.encoder, a.decoder = json.NewEncoder(a.in), json.NewDecoder(out)
	a.process, err = t.Start("iceagent", cmd)
	return a, err
}

// read takes what the agent says next; one that says nothing has ended, and said on its standard error why.
func (a *agent) read(what any) error {
	err := a.decoder.Decode(what)
	if err != nil {
		a.in.Close()
		<-a.process.Done()
		err = fmt.Errorf("hear from iceagent: %w: %s", err, strings.TrimSpace(a.stderr.String()))
	}
	return err
}

// close lets the agent end.
func (a *agent) close() error {
	return errors.Join(a.in.Close(), a.process.Wait(context.Background()))
}

// Pair lets an agent in each of two namespaces look for the other one; the first is the controlling one. The outcomes
// are in the same order.
func Pair(ctx context.Context, t *topo.Topo, places [2]*topo.NS, o Options) (outcomes [2]Outcome, err error) {
	var agents [2]*agent
	var descriptions [2]Description
	for i, ns := range places {
		o.Controlling = i == 0
		if agents[i], err = start(ctx, t, ns, o); err != nil {
			return outcomes, err
		}
	}
	if err := each(func(i int) error { return agents[i].read(&descriptions[i]) }); err != nil {
		return outcomes, err
	}
	err = each(func(i int) error {
		if err := agents[i].encoder.Encode(descriptions[1-i]); err != nil {
			return fmt.Errorf("tell iceagent of the other one: %w", err)
		}
		return agents[i].read(&outcomes[i])
	})
	if err != nil {
		return outcomes, err
	}
	err = each(func(i int) error { return agents[i].close() })
	return outcomes, errors.Join(err, check(outcomes))
}

// each does it for both agents at the same time.
func each(do func(i int) error) error {
	var errs [2]error
	var group sync.WaitGroup
	for i := range errs {
		group.Go(func() { errs[i] = do(i) })
	}
	group.Wait()
	return errors.Join(errs[:]...)
}

// check holds the outcomes against each other: what one says is what the other one did.
func check(outcomes [2]Outcome) error {
	for i, o := range outcomes {
		switch {
		case o.Error != "":
			return errors.New(o.Error)
		case o.Connected != outcomes[1-i].Connected:
			return fmt.Errorf("one agent is connected, and the other one is not: %+v", outcomes)
		case o.Connected && o.Received != greeting(i == 1):
			return fmt.Errorf("received %q, want %q", o.Received, greeting(i == 1))
		}
	}
	return nil
}
