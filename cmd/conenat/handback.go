// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/control/conntrack"
	"github.com/conenat/conenat/dataplane"
)

// pinned is what a daemon has left.
type pinned interface {
	Sessions() ([]dataplane.Session, error)
	Yield() error
	Close() error
}

// handover says what became of the connections when conenat went.
type handover struct {
	back int
	ends map[string]int // by why
	err  error          // of those that the host's NAT refused, or of all
}

// Why a session is not handed back.
const (
	endsHairpin = "hairpins"
	endsPing    = "pings"
	endsNoPorts = "without ports" // the next packet makes another one, at the host's NAT
	endsHost    = "of the host's own"
	endsHalf    = "half open"
	endsRefused = "refused by the host's NAT"
)

// handBack makes entries for the live sessions in the host's connection tracking, each with the external endpoint that
// it has here. Sessions are marked first, so that packets between the new entries and the end of the hooks are
// translated once.
func (e env) handBack(stateDir string) (h handover) {
	if e.pinned == nil || e.conntrack == nil {
		return h
	}
	state, err := e.pinned(stateDir)
	if errors.Is(err, dataplane.ErrNotFound) {
		return h
	}
	if err != nil {
		return handover{err: err}
	}
	defer state.Close()
	if err := state.Yield(); err != nil {
		return handover{err: err}
	}
	sessions, err := state.Sessions()
	if err != nil {
		return handover{err: err}
	}
	h.ends = map[string]int{}
	var flows []conntrack.Flow
	for _, s := range sessions {
		if why, goes := handedBack(s); !goes {
			h.ends[why]++
			continue
		}
		flows = append(flows, flowOf(s))
	}
	h.back, h.err = e.conntrack.Replace(flows)
	h.ends[endsRefused] = len(flows) - h.back
	return h
}

// handedBack says whether netfilter can go on with a session; why not is empty for one that is over anyway.
func handedBack(s dataplane.Session) (why string, goes bool) {
	switch {
	case s.Hairpin:
		return endsHairpin, false
	case s.Protocol == dataplane.ICMP, s.Protocol == unix.IPPROTO_ICMPV6:
		return endsPing, false
	case s.Network == dataplane.HostNetwork:
		return endsHost, false
	case !s.Protocol.HasPorts():
		return endsNoPorts, false
	}
	switch s.State {
	case "init-inside", "init-outside":
		return endsHalf, false
	case "fin-both", "trans":
		return "", false
	}
	return "", true
}

// flowOf is the entry that masquerade would have made. Whoever opened the connection: its packets go both ways by it.
func flowOf(s dataplane.Session) conntrack.Flow {
	return conntrack.Flow{Protocol: s.Protocol, SourceNAT: true, Timeout: s.ExpiresIn,
		Original: conntrack.Tuple{Src: s.Internal, Dst: s.Remote}, Reply: conntrack.Tuple{Src: s.Remote, Dst: s.External}}
}

// String is "handed back to the host's NAT: 400 connections; not handed back: 3 hairpins, 2 pings"; empty where there
// was nothing to hand back.
func (h handover) String() string {
	var ends []string
	for why, n := range h.ends {
		if n > 0 && why != "" {
			ends = append(ends, fmt.Sprintf("%d %s", n, why))
		}
	}
	slices.Sort(ends)
	var parts []string
	if h.back > 0 {
		parts = append(parts, fmt.Sprintf("handed back to the host's NAT: %d connections", h.back))
	}
	if len(ends) > 0 {
		parts = append(parts, "not handed back: "+strings.Join(ends, ", "))
	}
	if h.err != nil {
		parts = append(parts, fmt.Sprintf("connections may end: %v", h.err))
	}
	return strings.Join(parts, "; ")
}
