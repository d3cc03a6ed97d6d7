// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/dataplane"
)

// Status is the daemon's state. GET /v1/status answers with an array of one.
type Status struct {
	Version     string        `json:"version"`
	PID         int           `json:"pid"`
	UptimeS     float64       `json:"uptime_s"`
	Kernel      string        `json:"kernel"`
	StateDir    string        `json:"state_dir"`
	Adopted     bool          `json:"adopted"`          // the state was there when the daemon started
	Path        string        `json:"path"`             // direct or stack
	PathReasons []string      `json:"path_reasons"`     // why: the rules of others that decided, or the operator's word
	Docker      *Docker       `json:"docker,omitempty"` // left out where Docker is not followed
	Mechanism   string        `json:"mechanism"`        // tcx or clsact
	Outsides    []Outside     `json:"outsides"`
	XDP         []XDP         `json:"xdp"`      // of each interface where the configuration asks for it, or would
	Capacity    Entries       `json:"capacity"` // of each address family
	Usage       Entries       `json:"usage"`    // of IPv4's
	UsageIPv6   Entries       `json:"usage_ipv6"`
	Counters    []Counter     `json:"counters"`
	EventsLost  uint64        `json:"events_lost"`
	Networks    []NetworkUse  `json:"networks"`
	Settings    StatusSetting `json:"settings"`
	Warnings    []string      `json:"warnings"`
}

// Docker is how it stands with the Engine.
type Docker struct {
	Connected bool   `json:"connected"`
	Engine    string `json:"engine"`  // "20.10.24, API 1.41"; empty: it has never answered
	Problem   string `json:"problem"` // why not connected, and what to do
}

// StatusSetting is what is configured, timeouts in seconds.
type StatusSetting struct {
	UDPTimeoutS            float64 `json:"udp_timeout_s"`
	TCPEstablishedTimeoutS float64 `json:"tcp_established_timeout_s"`
	TCPPartialOpenTimeoutS float64 `json:"tcp_partial_open_timeout_s"`
	TCPClosingTimeoutS     float64 `json:"tcp_closing_timeout_s"`
	ICMPTimeoutS           float64 `json:"icmp_timeout_s"`
	Ports                  string  `json:"ports"`
	SessionsPerBinding     uint32  `json:"sessions_per_binding"`
}

// Outside is an outside interface.
type Outside struct {
	Name      string   `json:"name"`
	IfIndex   int      `json:"ifindex"`
	Address   string   `json:"address"`   // the first external one; empty: none yet
	State     string   `json:"state"`     // active, away, no-address, no-hooks
	Addresses []string `json:"addresses"` // all external ones
	Pool      []string `json:"pool"`      // those of them that no network and no container has named
}

// XDP is how it stands with native XDP on an interface.
type XDP struct {
	Interface string `json:"interface"`
	IfIndex   int    `json:"ifindex"`
	Kind      string `json:"kind"`             // inside-device, outside or inside-port
	State     string `json:"state"`            // native or none
	Use       string `json:"use"`              // translate or drop; none
	Reason    string `json:"reason,omitempty"` // why it is none, or less than asked for
}

// Entries counts table entries.
type Entries struct {
	Sessions uint32 `json:"sessions"`
	Bindings uint32 `json:"bindings"`
}

// Counter is how many packets got their verdict for a reason.
type Counter struct {
	Name    string `json:"name"`
	Verdict string `json:"verdict"`
	Packets uint64 `json:"packets"`
	XDP     uint64 `json:"xdp"` // of packets: those that were done with at XDP
}

// Network is an inside network.
type Network struct {
	Name       string    `json:"name"`
	Interface  string    `json:"interface"`
	IfIndex    int       `json:"ifindex"`
	Driver     string    `json:"driver"`           // the interface's kind: bridge, veth, …
	State      string    `json:"state"`            // active, away, no-hooks, left-alone
	Reason     string    `json:"reason,omitempty"` // why it is left alone
	Prefixes   []string  `json:"prefixes"`
	GatewayMAC string    `json:"gateway_mac"` // empty: the link has no Ethernet header
	Ports      []string  `json:"ports"`       // of a bridge, those with hooks
	Mapping    Behaviors `json:"mapping"`
	Filtering  Behaviors `json:"filtering"`
	Limits     Limits    `json:"limits"`
	BlockSize  uint32    `json:"block_size"` // ports of a block of one host; 0: its hosts have no blocks
	Refusal    string    `json:"refusal"`    // as in the configuration file
	MSS        string    `json:"mss"`        // the same
	Exclude    []string  `json:"exclude"`    // destinations that are not translated
	External   []string  `json:"external"`   // the only external addresses of its hosts; none: the outsides' pools
	Mode       string    `json:"mode"`       // as in the configuration file; empty: it is left alone
	// ExternalPrefix is what IPv6's prefix becomes in mode nptv6.
	ExternalPrefix string    `json:"external_prefix,omitempty"`
	Named          []Named   `json:"named"` // its hosts that have external addresses of their own, by address
	Usage          Usage     `json:"usage"`
	Hosts          []HostUse `json:"hosts"` // those that have bindings or sessions, by address
	Outside        []string  `json:"outside"`
}

// Named is a host of a network with external addresses of its own.
type Named struct {
	Address  string   `json:"address"`
	External []string `json:"external"`
	OneToOne bool     `json:"one_to_one"` // it has all of the address
}

// Limits are what a network and each of its hosts may have; 0: no limit.
type Limits struct {
	PortsPerHost       uint32 `json:"ports_per_host"`
	SessionsPerHost    uint32 `json:"sessions_per_host"`
	PortsPerNetwork    uint32 `json:"ports_per_network"`
	SessionsPerNetwork uint32 `json:"sessions_per_network"`
}

// Usage is what of it is in use. Ports are those of dynamic bindings, of all protocols, with ICMP's identifiers.
type Usage struct {
	Ports    uint32 `json:"ports"`
	Sessions uint32 `json:"sessions"`
}

// HostUse is what one host has of it.
type HostUse struct {
	Address  string   `json:"address"`
	Ports    uint32   `json:"ports"`
	Sessions uint32   `json:"sessions"`
	Blocks   []string `json:"blocks"` // "198.51.100.1:2048-2559"
}

// NetworkUse is what a network uses, in the status.
type NetworkUse struct {
	Name    string  `json:"name"`
	Mode    string  `json:"mode"`
	Limits  Limits  `json:"limits"`
	Usage   Usage   `json:"usage"`
	Hosts   int     `json:"hosts"`   // that use any of it
	Busiest HostUse `json:"busiest"` // the one nearest to a limit, else with most ports; no address: none
}

// Behaviors are a mapping or filtering behaviour for each protocol.
type Behaviors struct {
	UDP  string `json:"udp"`
	TCP  string `json:"tcp"`
	ICMP string `json:"icmp"`
}

// Binding is a mapping of an internal to an external endpoint.
type Binding struct {
	Protocol   string    `json:"protocol"`
	Network    string    `json:"network"`
	Internal   string    `json:"internal"`
	External   string    `json:"external"`
	Remote     string    `json:"remote,omitempty"` // towards which it holds, an address or an endpoint; left out: every remote
	Static     bool      `json:"static"`
	Sessions   int       `json:"sessions"`
	ExpiresInS float64   `json:"expires_in_s"` // 0 for a static one
	Created    time.Time `json:"created"`
}

// Session is a binding and one remote endpoint.
type Session struct {
	Protocol   string    `json:"protocol"`
	Network    string    `json:"network"`
	Internal   string    `json:"internal"`
	External   string    `json:"external"`
	Remote     string    `json:"remote"`
	Hairpin    bool      `json:"hairpin"`
	State      string    `json:"state"`
	ExpiresInS float64   `json:"expires_in_s"`
	Created    time.Time `json:"created"`
}

// Forward is a static binding that is wanted.
type Forward struct {
	ID        string `json:"id"` // "tcp/198.51.100.1:8080"
	Protocol  string `json:"protocol"`
	Network   string `json:"network"`
	External  string `json:"external"`
	Internal  string `json:"internal"`
	Published bool   `json:"published"` // Docker's, not an operator's
	Active    bool   `json:"active"`
	Problem   string `json:"problem,omitempty"` // why it is not active
}

// ForwardRequest is the body of POST /v1/forwards.
type ForwardRequest struct {
	Protocol       string `json:"protocol"` // tcp, which is what an empty one means, or udp
	Network        string `json:"network"`  // empty: the one whose prefix holds internal
	External       string `json:"external"`
	Internal       string `json:"internal"`
	OverHostSocket bool   `json:"over_host_socket"` // bind although a socket of the host listens there
}

// Event is one line of GET /v1/events. Fields that do not apply to its type are left out.
type Event struct {
	Time       time.Time `json:"time"`
	Type       string    `json:"type"`
	Protocol   string    `json:"protocol,omitempty"`
	Network    string    `json:"network,omitempty"`
	Link       string    `json:"link,omitempty"` // of link.reattached: the interface
	Internal   string    `json:"internal,omitempty"`
	External   string    `json:"external,omitempty"`
	Remote     string    `json:"remote,omitempty"`
	Static     *bool     `json:"static,omitempty"`
	Hairpin    *bool     `json:"hairpin,omitempty"`
	Sessions   *int      `json:"sessions,omitempty"` // of the binding, after the event
	State      string    `json:"state,omitempty"`
	OldState   string    `json:"old_state,omitempty"`
	ExpiresInS *float64  `json:"expires_in_s,omitempty"` // of a session, if no packet comes
	Limit      string    `json:"limit,omitempty"`        // quota.exceeded: host_ports, host_sessions, network_ports, network_sessions, binding_sessions
	Ports      string    `json:"ports,omitempty"`        // block.*: "2048-2559"
	Count      *uint64   `json:"count,omitempty"`        // events.lost: how many; sampled events: how many since the last one
}

// eventTypes are what a filter may name.
var eventTypes = []dataplane.EventType{
	dataplane.BindingCreated, dataplane.BindingExpired, dataplane.BindingChanged,
	dataplane.SessionCreated, dataplane.SessionState, dataplane.SessionClosed,
	dataplane.PortExhausted, dataplane.QuotaExceeded, dataplane.InboundFiltered,
	dataplane.BlockAllocated, dataplane.BlockReleased, dataplane.EventsLost, dataplane.LinkReattached,
}

// ParseEventType takes the name of an event.
func ParseEventType(s string) (dataplane.EventType, error) {
	if t := dataplane.EventType(s); slices.Contains(eventTypes, t) {
		return t, nil
	}
	var names []string
	for _, t := range eventTypes {
		names = append(names, string(t))
	}
	return "", fmt.Errorf("unknown event type %q: want one of %s", s, strings.Join(names, ", "))
}

// Since is a moment in the history: "all", a duration before now, or an RFC 3339 time.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "all" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("since %q: want a duration such as 5m, an RFC 3339 time, or all", s)
}

// CheckSince says whether the API would take s.
func CheckSince(s string) error {
	_, err := parseSince(s, time.Now())
	return err
}

// created is to the hundredth of a second: the packet path's clock is no finer, and two readings of the same
// entry should agree.
func created(t time.Time) time.Time { return t.Round(10 * time.Millisecond).UTC() }

// BindingOf is a binding as the API shows it.
func BindingOf(b dataplane.Binding) Binding {
	return Binding{Protocol: b.Protocol.String(), Network: b.Network, Internal: endpoint(b.Internal), External: endpoint(b.External),
		Remote: dependsOn(b.Remote), Static: b.Static, Sessions: b.Sessions, ExpiresInS: b.ExpiresIn.Seconds(), Created: created(b.Created)}
}

// SessionOf is a session as the API shows it.
func SessionOf(s dataplane.Session) Session {
	return Session{Protocol: s.Protocol.String(), Network: s.Network, Internal: endpoint(s.Internal), External: endpoint(s.External),
		Remote: endpoint(s.Remote), Hairpin: s.Hairpin, State: s.State, ExpiresInS: s.ExpiresIn.Seconds(), Created: created(s.Created)}
}

// BindingsOf puts them into the order of network, protocol, internal and external endpoint.
func BindingsOf(list []dataplane.Binding) []Binding {
	slices.SortFunc(list, func(a, b dataplane.Binding) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.Protocol, b.Protocol),
			a.Internal.Compare(b.Internal), a.External.Compare(b.External))
	})
	out := make([]Binding, 0, len(list))
	for _, b := range list {
		out = append(out, BindingOf(b))
	}
	return out
}

// SessionsOf puts them into the order of network, protocol, internal, remote and external endpoint.
func SessionsOf(list []dataplane.Session) []Session {
	slices.SortFunc(list, func(a, b dataplane.Session) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.Protocol, b.Protocol),
			a.Internal.Compare(b.Internal), a.Remote.Compare(b.Remote), a.External.Compare(b.External))
	})
	out := make([]Session, 0, len(list))
	for _, s := range list {
		out = append(out, SessionOf(s))
	}
	return out
}

// EventOf is an event as the API shows it.
func EventOf(ev dataplane.Event) Event {
	out := Event{Time: ev.Time, Type: string(ev.Type)}
	switch ev.Type {
	case dataplane.EventsLost:
		out.Count = &ev.Count
		return out
	case dataplane.LinkReattached:
		out.Link = ev.Link
		return out
	case dataplane.BlockAllocated, dataplane.BlockReleased:
		out.Network, out.Internal, out.External = ev.Network, ev.Internal.Addr().String(), ev.External.Addr().String()
		out.Ports = fmt.Sprintf("%d-%d", ev.External.Port(), ev.Last)
		return out
	}
	out.Protocol, out.Network = ev.Protocol.String(), ev.Network
	out.Internal, out.External = endpoint(ev.Internal), endpoint(ev.External)
	switch ev.Type {
	case dataplane.BindingCreated, dataplane.BindingChanged, dataplane.BindingExpired:
		out.Remote, out.Static, out.Sessions = dependsOn(ev.Remote), &ev.Static, &ev.Sessions
	case dataplane.SessionCreated, dataplane.SessionState, dataplane.SessionClosed:
		lifetime := ev.Lifetime.Seconds()
		out.Remote, out.Hairpin, out.State, out.OldState = endpoint(ev.Remote), &ev.Hairpin, ev.State, ev.OldState
		if ev.Type != dataplane.SessionClosed {
			out.ExpiresInS = &lifetime
		}
	default:
		out.Remote, out.Limit, out.Count = endpoint(ev.Remote), ev.Limit, &ev.Count
	}
	return out
}

// endpoint is empty for none: the zero value, and the all-zero endpoint of an event that has no such part.
func endpoint(e netip.AddrPort) string {
	if !e.IsValid() || (e.Addr().IsUnspecified() && e.Port() == 0) {
		return ""
	}
	return e.String()
}

// dependsOn is what of the remote endpoint a binding's mapping depends on: nothing, an address, or an endpoint.
func dependsOn(remote netip.AddrPort) string {
	if remote.IsValid() && remote.Port() == 0 {
		return remote.Addr().String()
	}
	return endpoint(remote)
}

// Forward checks a request and turns it into the dataplane's words.
func (r ForwardRequest) Forward() (dataplane.Forward, error) {
	f := dataplane.Forward{Protocol: dataplane.TCP, Network: r.Network, OverHostSocket: r.OverHostSocket}
	var err1, err2, err3 error
	if r.Protocol != "" {
		f.Protocol, err1 = config.ParseForwardProtocol(r.Protocol)
	}
	f.External, err2 = config.ParseEndpoint(r.External)
	f.Internal, err3 = config.ParseEndpoint(r.Internal)
	if err := errors.Join(err1, err2, err3); err != nil {
		return f, err
	}
	return f, config.CheckForward(f)
}

// ParseForwardID is the inverse of plan.ForwardID.
func ParseForwardID(id string) (dataplane.Protocol, netip.AddrPort, error) {
	protocol, external, found := strings.Cut(id, "/")
	p, err1 := config.ParseForwardProtocol(protocol)
	ep, err2 := config.ParseEndpoint(external)
	if err := errors.Join(err1, err2); !found || err != nil {
		return 0, netip.AddrPort{}, fmt.Errorf("forward %q: want PROTOCOL/ADDR:PORT, such as tcp/198.51.100.1:8080 or tcp/[2001:db8::1]:8080", id)
	}
	return p, ep, nil
}
