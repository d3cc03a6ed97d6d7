// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	pion "github.com/pion/ice/v4"
	"github.com/pion/stun/v4"
)

// Options are an agent's.
type Options struct {
	Server      netip.AddrPort // for STUN
	Controlling bool           // RFC 8445, section 6.1.1: one of the two is
	// ReflexiveOnly: no host candidates, so that two agents in one network meet by their NAT or not at all.
	ReflexiveOnly bool
	// GiveUp is how long the agent looks for a pair before it says that it failed.
	GiveUp time.Duration
}

// Description is what an agent has to tell the other one.
type Description struct {
	Ufrag, Password string
	Candidates      []string // as in RFC 8839's candidate attribute
}

// Outcome is how it ended.
type Outcome struct {
	Connected     bool
	Local, Remote Candidate // of the selected pair
	Received      string    // what the other agent sent by it
	Error         string    // what went wrong, but for a pair that was not found
}

// Candidate is one end of a pair.
type Candidate struct {
	Type     string // host, srflx or prflx
	Endpoint netip.AddrPort
}

// greeting is what an agent sends when it is connected.
func greeting(controlling bool) string {
	if controlling {
		return "from the controlling agent"
	}
	return "from the controlled agent"
}

// Serve is an agent: it writes its description to out, reads the other one's from in, writes its outcome, and stays until in
// ends, so that the other one can finish, too.
func Serve(o Options, in io.Reader, out io.Writer) error {
	failed, cancel := context.WithCancel(context.Background())
	defer cancel()
	agent, gathered, err := newAgent(o, cancel)
	if err != nil {
		return err
	}
	defer agent.Close()
	if err := agent.GatherCandidates(); err != nil {
		return fmt.Errorf("gather candidates: %w", err)
	}
	<-gathered
	own, err := describe(agent)
	if err != nil {
		return err
	}
	encoder, decoder := json.NewEncoder(out), json.NewDecoder(in)
	if err := encoder.Encode(own); err != nil {
		return fmt.Errorf("write the description: %w", err)
	}
	var other Description
	if err := decoder.Decode(&other); err != nil {
		return fmt.Errorf("read the other agent's description: %w", err)
	}
	outcome, err := connect(failed, agent, o, other)
	if err != nil {
		outcome.Error = err.Error()
	}
	if err := encoder.Encode(outcome); err != nil {
		return fmt.Errorf("write the outcome: %w", err)
	}
	_, err = io.Copy(io.Discard, in)
	return err
}

// newAgent makes an agent that calls failed when it fails, and closes gathered when it has all its candidates.
func newAgent(o Options, failed func()) (agent *pion.Agent, gathered <-chan struct{}, err error) {
	types := []pion.CandidateType{pion.CandidateTypeServerReflexive}
	if !o.ReflexiveOnly {
		types = append(types, pion.CandidateTypeHost)
	}
	server := &stun.URI{Scheme: stun.SchemeTypeSTUN, Host: o.Server.Addr().String(), Port: int(o.Server.Port()), Proto: stun.ProtoTypeUDP}
	agent, err = pion.NewAgentWithOptions(
		pion.WithUrls([]*stun.URI{server}),
		pion.WithCandidateTypes(types),
		pion.WithNetworkTypes([]pion.NetworkType{networkType(o.Server.Addr())}),
		pion.WithMulticastDNSMode(pion.MulticastDNSModeDisabled),
		pion.WithDisconnectedTimeout(o.GiveUp/2), // the time for checks is both together
		pion.WithFailedTimeout(o.GiveUp/2),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("make an ICE agent: %w", err)
	}
	all := make(chan struct{})
	err = errors.Join(
		agent.OnCandidate(func(c pion.Candidate) {
			if c == nil { // the last one was before
				close(all)
			}
		}),
		agent.OnConnectionStateChange(func(s pion.ConnectionState) {
			if s == pion.ConnectionStateFailed {
				failed()
			}
		}))
	return agent, all, err
}

// networkType is that of the server's family: an agent has candidates of no other one.
func networkType(server netip.Addr) pion.NetworkType {
	if server.Unmap().Is4() {
		return pion.NetworkTypeUDP4
	}
	return pion.NetworkTypeUDP6
}

func describe(agent *pion.Agent) (d Description, err error) {
	if d.Ufrag, d.Password, err = agent.GetLocalUserCredentials(); err != nil {
		return d, fmt.Errorf("ask the agent for its credentials: %w", err)
	}
	candidates, err := agent.GetLocalCandidates()
	if err != nil {
		return d, fmt.Errorf("ask the agent for its candidates: %w", err)
	}
	for _, c := range candidates {
		d.Candidates = append(d.Candidates, c.Marshal())
	}
	return d, nil
}

// connect looks for a pair until the agent has failed; what it found has to carry a packet each way.
func connect(failed context.Context, agent *pion.Agent, o Options, other Description) (outcome Outcome, err error) {
	for _, text := range other.Candidates {
		c, err := pion.UnmarshalCandidate(text)
		if err == nil {
			err = agent.AddRemoteCandidate(c)
		}
		if err != nil {
			return outcome, fmt.Errorf("take the other agent's candidate %q: %w", text, err)
		}
	}
	start := agent.Accept
	if o.Controlling {
		start = agent.Dial
	}
	conn, err := start(failed, other.Ufrag, other.Password)
	if errors.Is(err, pion.ErrCanceledByCaller) {
		return outcome, nil
	} else if err != nil {
		return outcome, fmt.Errorf("connect: %w", err)
	}
	if _, err := io.WriteString(conn, greeting(o.Controlling)); err != nil {
		return outcome, fmt.Errorf("send: %w", err)
	}
	received := make([]byte, 100)
	n, err := conn.Read(received)
	if err != nil {
		return outcome, fmt.Errorf("receive: %w", err)
	}
	outcome.Connected, outcome.Received = true, string(received[:n])
	pair, err := agent.GetSelectedCandidatePair()
	if err != nil || pair == nil {
		return outcome, fmt.Errorf("ask the agent for the selected pair: %w", err)
	}
	outcome.Local, outcome.Remote = candidate(pair.Local), candidate(pair.Remote)
	return outcome, nil
}

func candidate(c pion.Candidate) Candidate {
	addr, _ := netip.ParseAddr(c.Address())
	return Candidate{Type: c.Type().String(), Endpoint: netip.AddrPortFrom(addr, uint16(c.Port()))}
}
