// SPDX-License-Identifier: Apache-2.0

// Package figure3 is the experiment of figure 3 in Amirante and Romano (IEEE Internet Computing, 2020), apart
// from the NAT it is made on: a container talks to a STUN server and to a peer, the peer's packet comes first,
// and the question is whether both see the same external endpoint.
//
// It also has the call of a peer behind a symmetric NAT, which needs address-dependent filtering at the most.
// The package sends packets and reports what it saw; what to think of that is the caller's.
package figure3

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/conenat/conenat/tests/probe"
)

// Order is what happens before the container's first packet to the peer.
type Order int

// The orders.
const (
	// StunFirst is figure 3: the container learns its external endpoint, the peer sends there, then the
	// container sends to the peer.
	StunFirst Order = iota
	// PeerFirst: the peer sends to the host's address and the container's port before the container has sent
	// anything at all.
	PeerFirst
	// ICEOrder: both learn their external endpoints and check each other's, the peer first, until both have
	// an answer or gave up (RFC 8445).
	ICEOrder
)

// Orders are all of them.
var Orders = []Order{StunFirst, PeerFirst, ICEOrder}

// String names the order.
func (o Order) String() string { return [...]string{"StunFirst", "PeerFirst", "ICEOrder"}[o] }

// Experiment is the network to experiment on.
type Experiment struct {
	Container probe.Host
	Peer      probe.Host
	PeerAddr  netip.Addr     // where the peer is reached
	HostAddr  netip.Addr     // the NAT's external address
	STUN      netip.AddrPort // a STUN server elsewhere (probe.ServeSTUN)
	// Arrived, if set, waits until the NAT has seen the peer's unsolicited packet; what tells that is the
	// NAT's own affair (Docker's: a conntrack entry).
	Arrived func(ctx context.Context, peer, external netip.AddrPort) error
}

// Ports of the container and of the peer; 0 is any free one.
type Ports struct{ Container, Peer uint16 }

// Result is what was seen.
type Result struct {
	Order      Order
	Internal   uint16         // the container's port
	Peer       netip.AddrPort // the peer's endpoint
	SeenBySTUN netip.AddrPort
	SeenByPeer netip.AddrPort
	// Reached: a packet of the peer to the endpoint that the STUN server saw came to the container after the
	// container had sent to the peer.
	Reached bool
}

// Symmetric says that the NAT had another mapping for the peer than for the STUN server.
func (r Result) Symmetric() bool { return r.SeenBySTUN != r.SeenByPeer }

// String is one line.
func (r Result) String() string {
	return fmt.Sprintf("%v: container port %d is %v to the STUN server and %v to %v, reached there: %v",
		r.Order, r.Internal, r.SeenBySTUN, r.SeenByPeer, r.Peer, r.Reached)
}

// Run makes the experiment once.
func (e Experiment) Run(ctx context.Context, order Order, ports Ports) (Result, error) {
	container, err := e.Container.ListenUDP(ports.Container)
	if err != nil {
		return Result{}, fmt.Errorf("open the container's UDP port %d: %w", ports.Container, err)
	}
	defer container.Close()
	peer, err := e.Peer.ListenUDP(ports.Peer)
	if err != nil {
		return Result{}, fmt.Errorf("open the peer's UDP port %d: %w", ports.Peer, err)
	}
	defer peer.Close()
	run := run{Experiment: e, container: container, peer: peer, result: Result{
		Order: order, Internal: container.Port(), Peer: netip.AddrPortFrom(e.PeerAddr, peer.Port()),
	}}
	if err := run.steps(ctx); err != nil {
		return run.result, fmt.Errorf("%v: %w", order, err)
	}
	return run.result, nil
}

type run struct {
	Experiment
	container, peer probe.Socket
	result          Result
}

func (r *run) steps(ctx context.Context) error {
	first := []func(context.Context) error{r.learn, r.unsolicited}
	switch r.result.Order {
	case PeerFirst:
		first = []func(context.Context) error{r.unsolicited, r.learn}
	case ICEOrder:
		first = []func(context.Context) error{r.learn, r.peerLearns, r.unsolicited}
	}
	for _, step := range append(first, r.contact, r.reach) {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// learn lets the container ask the STUN server.
func (r *run) learn(context.Context) (err error) {
	r.result.SeenBySTUN, err = r.container.Mapped(r.STUN, probe.Timeout)
	return err
}

// peerLearns lets the peer ask the STUN server, as an ICE agent gathers candidates.
func (r *run) peerLearns(context.Context) (err error) {
	r.result.Peer, err = r.peer.Mapped(r.STUN, probe.Timeout)
	return err
}

// unsolicited lets the peer send to the container's external endpoint, or to where it would be if the port
// were preserved, and waits until that packet is at the NAT.
func (r *run) unsolicited(ctx context.Context) error {
	external := r.result.SeenBySTUN
	if !external.IsValid() {
		external = netip.AddrPortFrom(r.HostAddr, r.result.Internal)
	}
	if err := r.peer.Send(external, "unsolicited"); err != nil {
		return err
	}
	if r.Arrived != nil {
		return r.Arrived(ctx, r.result.Peer, external)
	}
	// The way is a queue: what the peer sends next arrives next.
	report, err := probe.PingOnce(r.Peer, r.HostAddr, 1)
	if err == nil && report.Received == 0 {
		err = errors.New("the host does not answer the peer's ping")
	}
	return err
}

// contact lets the container send to the peer and the peer say from where it came.
func (r *run) contact(context.Context) error {
	if err := r.container.Send(r.result.Peer, "contact"); err != nil {
		return err
	}
	got, err := await(r.peer, "contact", probe.Timeout)
	if err != nil {
		return fmt.Errorf("peer %v waits for the container's packet: %w", r.result.Peer, err)
	}
	r.result.SeenByPeer = got.From
	return nil
}

// reach lets the peer send once more to the endpoint that the STUN server saw, and to the one it sees itself,
// by which the container knows when to give up the wait for the first.
func (r *run) reach(context.Context) error {
	if err := r.peer.Send(r.result.SeenBySTUN, "reach"); err != nil {
		return err
	}
	if err := r.peer.Send(r.result.SeenByPeer, "last"); err != nil {
		return err
	}
	deadline := time.Now().Add(probe.Timeout)
	for {
		got, err := r.container.Receive(time.Until(deadline))
		if err != nil {
			return fmt.Errorf("container waits for the peer's answer: %w", err)
		}
		switch got.Text {
		case "reach":
			r.result.Reached = true
		case "last":
			return nil
		}
	}
}

// await receives until the text comes.
func await(s probe.Socket, text string, timeout time.Duration) (probe.Packet, error) {
	deadline := time.Now().Add(timeout)
	for {
		got, err := s.Receive(time.Until(deadline))
		if err != nil || got.Text == text {
			return got, err
		}
	}
}

// Call is what came of the call of a peer behind a symmetric NAT.
type Call struct {
	Internal  uint16         // the container's port
	External  netip.AddrPort // where the peer calls: as the STUN server saw the container
	Announced netip.AddrPort // the peer's endpoint as the STUN server saw it, which the container is told
	CameFrom  netip.AddrPort // from where the call really came; invalid if none came
	Answered  bool           // the container's answer to CameFrom reached the peer
}

// Connected says that packets went both ways.
func (c Call) Connected() bool { return c.CameFrom.IsValid() && c.Answered }

// noCall is how long a call that may be filtered is waited for, and how often the peer repeats it.
const (
	noCall     = 600 * time.Millisecond
	repetition = 100 * time.Millisecond
)

// Call lets caller, which is behind a symmetric NAT, call the container: both ask the STUN server and tell each other;
// the container sends to the announced endpoint, which opens its NAT for that address; the caller sends to the
// container's external endpoint, from a port that its NAT never announced.
func (e Experiment) Call(ctx context.Context, caller probe.Host, port uint16) (call Call, err error) {
	container, err := e.Container.ListenUDP(port)
	if err != nil {
		return call, fmt.Errorf("open the container's UDP port %d: %w", port, err)
	}
	defer container.Close()
	peer, err := caller.ListenUDP(0)
	if err != nil {
		return call, fmt.Errorf("open the caller's UDP port: %w", err)
	}
	defer peer.Close()
	call.Internal = container.Port()
	if call.External, err = container.Mapped(e.STUN, probe.Timeout); err != nil {
		return call, fmt.Errorf("container: %w", err)
	}
	if call.Announced, err = peer.Mapped(e.STUN, probe.Timeout); err != nil {
		return call, fmt.Errorf("caller: %w", err)
	}
	if err := container.Send(call.Announced, "open"); err != nil {
		return call, err
	}
	return call, call.ring(ctx, container, peer)
}

// ring sends the call, again and again, until it comes and is answered, or for noCall.
func (c *Call) ring(ctx context.Context, container, peer probe.Socket) error {
	for deadline := time.Now().Add(noCall); time.Now().Before(deadline); {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := peer.Send(c.External, "call"); err != nil {
			return err
		}
		got, err := await(container, "call", repetition)
		if errors.Is(err, probe.ErrTimeout) {
			continue
		}
		if err != nil {
			return err
		}
		c.CameFrom = got.From
		if err := container.Send(got.From, "answer"); err != nil {
			return err
		}
		_, err = await(peer, "answer", probe.Timeout)
		c.Answered = err == nil
		return nil
	}
	return nil
}
