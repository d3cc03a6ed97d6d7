// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"iter"
	"time"

	"github.com/conenat/conenat/bpf"
)

// stateNames are a session's states in the API (RFC 6146 section 3.5.2; V6 is the inside, V4 the outside).
var stateNames = [bpf.StateCount]string{
	bpf.StateActive:      "active",
	bpf.StateInitInside:  "init-inside",
	bpf.StateInitOutside: "init-outside",
	bpf.StateEstablished: "established",
	bpf.StateFinInside:   "fin-inside",
	bpf.StateFinOutside:  "fin-outside",
	bpf.StateFinBoth:     "fin-both",
	bpf.StateTrans:       "trans",
}

// sessionState is session_state of session.h: a function of both halves.
func sessionState(proto Protocol, inside, outside uint8) uint8 {
	switch {
	case proto != TCP:
		return bpf.StateActive
	case inside&outside&bpf.SeenFIN != 0:
		return bpf.StateFinBoth
	case (inside|outside)&bpf.SeenRST != 0:
		return bpf.StateTrans
	case inside&bpf.SeenFIN != 0:
		return bpf.StateFinInside
	case outside&bpf.SeenFIN != 0:
		return bpf.StateFinOutside
	case inside != 0 && outside != 0 && (inside^outside)&bpf.SeenSYN == 0:
		return bpf.StateEstablished
	case inside != 0:
		return bpf.StateInitInside
	}
	return bpf.StateInitOutside
}

// lifetimeOf is how long a session in a state lives without a packet; ticks.
func lifetimeOf(cfg *bpf.Config, proto Protocol, state uint8) uint32 {
	switch {
	case proto == ICMP, proto == ICMPv6:
		return cfg.Timeout[bpf.TimeoutICMP]
	case proto != TCP:
		return cfg.Timeout[bpf.TimeoutUDP]
	case state == bpf.StateEstablished, state == bpf.StateFinInside, state == bpf.StateFinOutside:
		return cfg.Timeout[bpf.TimeoutTCPEstablished]
	case state == bpf.StateFinBoth, state == bpf.StateTrans:
		return cfg.Timeout[bpf.TimeoutTCPClosing]
	}
	return cfg.Timeout[bpf.TimeoutTCPPartialOpen]
}

// sessionTable is a picture of the session map with what it takes to read it.
type sessionTable struct {
	halves map[bpf.SessionKey]bpf.SessionHalf
	config bpf.Config
	names  names
	clock  clock
}

// session is one half with what follows from both.
type session struct {
	key       bpf.SessionKey
	half      bpf.SessionHalf
	state     uint8
	expiresIn time.Duration
}

func (f *family) sessionTable() (*sessionTable, error) {
	t := &sessionTable{clock: f.d.now()}
	var err error
	if t.config, err = f.d.config(); err != nil {
		return nil, err
	}
	if t.names, err = f.names(); err != nil {
		return nil, err
	}
	t.halves, err = f.Sessions.Dump()
	if err != nil {
		return nil, fmt.Errorf("read sessions: %w", err)
	}
	return t, nil
}

func reverseKey(k bpf.SessionKey, h bpf.SessionHalf) bpf.SessionKey {
	return bpf.SessionKey{Saddr: h.Daddr, Daddr: h.Saddr, Sport: h.Dport, Dport: h.Sport, Zone: h.PeerZone, Proto: k.Proto}
}

// all goes through the sessions as each binding has them: primary halves, and the second half of a hairpin,
// which is a session of the receiver's binding.
func (t *sessionTable) all() iter.Seq2[int, session] {
	return func(yield func(int, session) bool) {
		i := 0
		for key, half := range t.halves {
			if half.Flags&(bpf.HalfPrimary|bpf.HalfHairpin) == 0 {
				continue
			}
			if !yield(i, t.session(key, half)) {
				return
			}
			i++
		}
	}
}

func (t *sessionTable) session(key bpf.SessionKey, half bpf.SessionHalf) session {
	other := t.halves[reverseKey(key, half)]
	primary, reverse := half, other
	if half.Flags&bpf.HalfPrimary == 0 {
		primary, reverse = other, half
	}
	proto := Protocol(key.Proto)
	state := sessionState(proto, primary.Seen, reverse.Seen)
	refreshed := primary.LastSeen
	if t.inboundRefreshes(key, half) && int32(reverse.LastSeen-refreshed) > 0 {
		refreshed = reverse.LastSeen
	}
	deadline := refreshed + lifetimeOf(&t.config, proto, state)
	return session{key: key, half: half, state: state, expiresIn: t.clock.until(deadline)}
}

// inboundRefreshes is RFC 7857 section 7, as session_refreshed of sweep.h has it.
func (t *sessionTable) inboundRefreshes(key bpf.SessionKey, half bpf.SessionHalf) bool {
	if Protocol(key.Proto) != UDP || half.Flags&bpf.HalfHairpin != 0 {
		return true
	}
	return t.names.filtering(key.Zone, key.Saddr, BehaviorUDP) != EndpointIndependent
}
