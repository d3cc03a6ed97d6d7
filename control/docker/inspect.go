// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
)

// inspecting is a question to the Engine that has no answer yet.
type inspecting struct {
	since time.Time
	stale bool // it is to be asked again: an event came after the question
}

type inspected struct {
	id    string
	state *containerState // nil: not running, or not known
	err   error           // with a state: what is missing in it
}

// Questions at a time.
const inspectors = 8

// list reads all networks, and inspects the containers that are new, or have changed without an event.
func (n *session) list(ctx context.Context) error {
	if err := n.listNetworks(ctx); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, n.s.times.answer)
	defer cancel()
	found, err := n.cli.ContainerList(limited, container.ListOptions{})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	running := map[string]bool{}
	for _, c := range found {
		running[c.ID] = true
		if known := n.containers[c.ID]; known == nil || !known.matches(c) {
			n.inspect(ctx, c.ID)
		}
	}
	for id := range n.containers {
		if !running[id] {
			n.inspect(ctx, id) // the list may lag behind; inspect has the last word
		}
	}
	return nil
}

func (n *session) listNetworks(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.s.times.answer)
	defer cancel()
	found, err := n.cli.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		return fmt.Errorf("list networks: %w", err)
	}
	n.networks, n.changed = found, true
	return nil
}

// inspect asks for one container's state; take gets the answer.
func (n *session) inspect(ctx context.Context, id string) {
	if asked := n.inspecting[id]; asked != nil {
		asked.stale = true
		return
	}
	n.inspecting[id] = &inspecting{since: time.Now()}
	n.workers.Go(func() {
		r := n.ask(ctx, id)
		select {
		case n.results <- r:
		case <-ctx.Done():
		}
	})
}

// ask waits for its turn, and gives it up when the answer is slow: the Engine answers for a container that it
// cannot stop or start when that is over, which may be never.
func (n *session) ask(ctx context.Context, id string) inspected {
	select {
	case n.slots <- struct{}{}:
	case <-ctx.Done():
		return inspected{id: id, err: ctx.Err()}
	}
	release := sync.OnceFunc(func() { <-n.slots })
	defer release()
	defer time.AfterFunc(n.s.times.slow, release).Stop()
	limited, cancel := context.WithTimeout(ctx, n.s.times.inspect)
	defer cancel()
	answer, err := n.cli.ContainerInspect(limited, id)
	switch {
	case errdefs.IsNotFound(err):
		return inspected{id: id}
	case err != nil:
		return inspected{id: id, err: err}
	case !complete(answer):
		return inspected{id: id, err: errors.New("the answer has no state")}
	case !answer.State.Running:
		return inspected{id: id}
	}
	state := newContainerState(answer)
	err = state.readNamespace(n.s.namespace)
	return inspected{id: id, state: state, err: err}
}

// complete says whether an answer has all that a running container's state is made of.
func complete(answer container.InspectResponse) bool {
	return answer.ContainerJSONBase != nil && answer.State != nil && answer.Config != nil && answer.NetworkSettings != nil
}

// take is the answer to inspect. An error is the connection's; what fails for one container keeps what was
// known of it.
func (n *session) take(ctx context.Context, r inspected) error {
	asked := n.inspecting[r.id]
	delete(n.inspecting, r.id)
	if client.IsErrConnectionFailed(r.err) {
		return &lostError{r.err}
	}
	if asked.stale {
		n.inspect(ctx, r.id)
	}
	n.fail(r.id, r.err)
	switch {
	case r.state == nil && r.err != nil:
		n.recall(r.id)
	case r.state == nil:
		n.changed = n.changed || n.containers[r.id] != nil
		delete(n.containers, r.id)
	case !reflect.DeepEqual(r.state, n.containers[r.id]):
		n.containers[r.id], n.changed = r.state, true
		n.learnNetworks(r.state)
	}
	if n.changed {
		n.showWithin(n.s.times.settle)
	}
	return nil
}

// learnNetworks lists networks again if the container is on one that no event told of.
func (n *session) learnNetworks(c *containerState) {
	for _, a := range c.attachments {
		if !slices.ContainsFunc(n.networks, func(k network.Summary) bool { return k.ID == a.network }) {
			n.dirty.networks = true
			n.actSoon()
		}
	}
}

func (n *session) fail(id string, err error) {
	before := n.failed[id]
	switch {
	case err != nil:
		n.failed[id] = err
		if n.again == nil {
			n.again = time.After(n.retryWait)
		}
	case before != nil:
		delete(n.failed, id)
	}
	n.changed = n.changed || fmt.Sprint(before) != fmt.Sprint(err)
}

// retry asks again for the containers whose state could not be had, less and less often.
func (n *session) retry(ctx context.Context) {
	n.again, n.retryWait = nil, min(2*n.retryWait, n.s.times.resync)
	if len(n.failed) == 0 {
		n.retryWait = n.s.times.retry
	}
	for id := range n.failed {
		n.inspect(ctx, id)
	}
}
