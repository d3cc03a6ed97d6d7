// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Errors that callers branch on. Every error of this package wraps at most one of them.
var (
	// ErrPortTaken: the external endpoint is held by another binding.
	ErrPortTaken = errors.New("external endpoint is bound already")
	// ErrAddressTaken: an external address that one host is to have alone is somebody else's, too.
	ErrAddressTaken = errors.New("external address is another's")
	// ErrHostSocket: a socket of the host listens on the external endpoint.
	ErrHostSocket = errors.New("a socket of the host uses this port")
	// ErrNotFound: no such binding, network, outside or link.
	ErrNotFound = errors.New("not found")
	// ErrInUse: another conenat holds the state directory.
	ErrInUse = errors.New("state directory is in use by another conenat")
	// ErrNotSupported: the kernel lacks a feature; the message names it.
	ErrNotSupported = errors.New("not supported by this kernel")
	// ErrOtherNamespace: the state directory's hooks are in another network namespace.
	ErrOtherNamespace = errors.New("state directory is another network namespace's")
	// ErrABI: the pinned maps were made by an incompatible conenat.
	ErrABI = errors.New("state directory holds another ABI version")
	// ErrPermission: a capability is missing.
	ErrPermission = errors.New("permission denied")
	// ErrOtherXDP: an interface has an XDP program that is not conenat's.
	ErrOtherXDP = errors.New("another XDP program is on the interface")
	// ErrFull: a table of the dataplane has no room.
	ErrFull = errors.New("table is full")
)

// Protocol is an IP protocol number (IANA). The "port" of ICMP and ICMPv6 is the query identifier.
type Protocol uint8

// The protocols that conenat translates. Of those from IPIP on addresses alone: their endpoints have port 0, and a binding is towards
// one remote address, which nobody else has behind the same external address.
const (
	ICMP    Protocol = 1
	TCP     Protocol = 6
	UDP     Protocol = 17
	ICMPv6  Protocol = 58
	IPIP    Protocol = 4
	IPv6    Protocol = 41 // in IPv4 (RFC 4213), or in IPv6
	GRE     Protocol = 47
	ESP     Protocol = 50
	SCTP    Protocol = 132
	UDPLite Protocol = 136
)

var protocolNames = map[Protocol]string{ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPv6: "icmpv6",
	IPIP: "ipip", IPv6: "ipv6", GRE: "gre", ESP: "esp", SCTP: "sctp", UDPLite: "udplite"}

// String is the name in small letters, as "tcp" or "gre" ("ipip" is IPv4 in IP, "ipv6" IPv6 in IP); the number of what is not translated.
func (p Protocol) String() string {
	if name, ok := protocolNames[p]; ok {
		return name
	}
	return fmt.Sprintf("%d", uint8(p))
}

// HasPorts says whether endpoints of the protocol have ports, or identifiers.
func (p Protocol) HasPorts() bool {
	return p == TCP || p == UDP || p == ICMP || p == ICMPv6
}

// ParseProtocol is the inverse of String for the protocols that conenat translates.
func ParseProtocol(s string) (Protocol, error) {
	for p, name := range protocolNames {
		if name == s {
			return p, nil
		}
	}
	return 0, fmt.Errorf("unknown protocol %q: want tcp, udp, icmp, icmpv6, ipip, ipv6, gre, esp, sctp or udplite", s)
}

// Behavior is a mapping or filtering behaviour (RFC 4787, sections 4.1 and 5).
type Behavior uint8

// The behaviours of RFC 4787.
const (
	EndpointIndependent Behavior = iota
	AddressDependent
	AddressAndPortDependent
)

var behaviorNames = [...]string{"endpoint-independent", "address-dependent", "address-and-port-dependent"}

// String is the name that the command line uses.
func (b Behavior) String() string {
	if int(b) < len(behaviorNames) {
		return behaviorNames[b]
	}
	return fmt.Sprintf("behavior(%d)", uint8(b))
}

// ParseBehavior is the inverse of String.
func ParseBehavior(s string) (Behavior, error) {
	for i, name := range behaviorNames {
		if name == s {
			return Behavior(i), nil
		}
	}
	return 0, fmt.Errorf("unknown behaviour %q: want endpoint-independent, address-dependent or address-and-port-dependent", s)
}

// Mode is what becomes of a network's addresses outside.
type Mode uint8

// The modes.
const (
	ModeNAT    Mode = iota // bindings of external endpoints
	ModeNPTv6              // another prefix (RFC 6296), in IPv6; in IPv4 as ModeNAT
	ModeRouted             // none: external endpoints are the internal ones, and sessions are for filtering
)

var modeNames = [...]string{"nat", "nptv6", "routed"}

// String is the name that the configuration file uses.
func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// ParseMode is the inverse of String.
func ParseMode(s string) (Mode, error) {
	for i, name := range modeNames {
		if name == s {
			return Mode(i), nil
		}
	}
	return 0, fmt.Errorf("unknown mode %q: want nat, nptv6 or routed", s)
}

// Refusal is what an inside host is told, by ICMP, when no mapping or session can be made for its packet.
type Refusal uint8

// The refusals: nothing, RFC 6888 REQ-11's and RFC 5508 REQ-8's.
const (
	RefuseSilently        Refusal = iota
	RefuseHostUnreachable         // 3/1: a soft error (RFC 1122 section 4.2.3.9)
	RefuseAdminProhibited         // 3/13: Linux gives it to a connected UDP socket, too
)

var refusalNames = [...]string{"silent", "host-unreachable", "admin-prohibited"}

// String is the name that the configuration file uses.
func (r Refusal) String() string {
	if int(r) < len(refusalNames) {
		return refusalNames[r]
	}
	return fmt.Sprintf("refusal(%d)", uint8(r))
}

// ParseRefusal is the inverse of String.
func ParseRefusal(s string) (Refusal, error) {
	for i, name := range refusalNames {
		if name == s {
			return Refusal(i), nil
		}
	}
	return 0, fmt.Errorf("unknown refusal %q: want silent, host-unreachable or admin-prohibited", s)
}

// Settings are what the packet path reads on each decision and an operator may change while it runs.
type Settings struct {
	UDPTimeout            time.Duration // RFC 4787 REQ-5: 5 minutes
	TCPEstablishedTimeout time.Duration // RFC 5382 REQ-5: 2 h 4 min
	TCPPartialOpenTimeout time.Duration // RFC 7857 section 2.2: 4 min
	TCPClosingTimeout     time.Duration // RFC 7857 section 2.2: 4 min
	ICMPTimeout           time.Duration // RFC 5508 REQ-2: 60 s
	SweepPeriod           time.Duration // how late an expiry may be; 1 s
	PortLow, PortHigh     uint16        // external ports for internal ports from 1024 up, inclusive
	SessionsPerBinding    uint32        // a bound against spoofed remotes
}

// DefaultSettings are the RFCs' recommendations.
func DefaultSettings() Settings {
	return Settings{
		UDPTimeout:            5 * time.Minute,
		TCPEstablishedTimeout: 7440 * time.Second,
		TCPPartialOpenTimeout: 4 * time.Minute,
		TCPClosingTimeout:     4 * time.Minute,
		ICMPTimeout:           time.Minute,
		SweepPeriod:           time.Second,
		PortLow:               1024,
		PortHigh:              65535,
		SessionsPerBinding:    32768,
	}
}

// Network is one inside network (a zone): what shares one address space behind the NAT.
type Network struct {
	Name      string           // its identity: the interface's name, at most 15 bytes
	Label     string           // what bindings and events call it, at most 63 bytes, as Docker's name; empty: Name
	IfIndex   int              // the bridge, or the plain interface, that holds the gateway address
	Gateway   net.HardwareAddr // destination MAC of what is routed; nil where the link has no Ethernet header
	Prefixes  []netip.Prefix   // at most 4 of IPv4 and of IPv6; a source outside of them is spoofed and dropped; of which it has none, that passes untouched
	Mapping   [3]Behavior      // for UDP, TCP, ICMP, in this order; what it is changed to holds for new sessions
	Filtering [3]Behavior      // the same
	Limits    Limits           // of its hosts, and its own
	BlockSize uint32           // ports of a block that one host has for itself (RFC 7422): a power of two, 64 to 4096; 0: no blocks
	Isolated  bool             // its hosts do not reach each other (icc=false): hairpins go to static bindings alone
	Address   netip.Addr       // the host's own there, IPv4: ICMP errors to its hosts come from it; not valid: there are none
	Address6  netip.Addr       // the same of IPv6
	Refusal   Refusal
	MSSClamp  bool           // a SYN's MSS option is lowered to what fits the outside route's MTU
	Exclude   []netip.Prefix // destinations that new sessions leave for untranslated, by the kernel's way (RFC 6888 REQ-6)
	External  []netip.Addr   // the only external addresses of its hosts, and of nobody who does not name them; sorted; empty: each outside's default pool
	Mode      Mode
	// ExternalPrefix is ModeNPTv6's: what its one prefix of IPv6 becomes outside, as long as it, and no other network's.
	ExternalPrefix netip.Prefix
}

// Shown is the network's name in bindings, sessions and events.
func (n Network) Shown() string {
	if n.Label != "" {
		return n.Label
	}
	return n.Name
}

// Indices of Network.Mapping and Network.Filtering.
const (
	BehaviorUDP = iota
	BehaviorTCP
	BehaviorICMP
)

// Outside is an outside interface and the external addresses that bindings behind it get. Those that no network and no owner
// has named are its default pool.
type Outside struct {
	Name      string       // interface name; its identity, also when the interface is made anew
	IfIndex   int          // 0 while the interface is away
	Addresses []netip.Addr // external addresses: IPv4's, then IPv6's; of each the first one is shown where one is, and the others are sorted
}

// Address is the first one; not valid: there is none.
func (o Outside) Address() netip.Addr {
	if len(o.Addresses) == 0 {
		return netip.Addr{}
	}
	return o.Addresses[0]
}

// Equal compares in all.
func (o Outside) Equal(other Outside) bool {
	return o.Name == other.Name && o.IfIndex == other.IfIndex && slices.Equal(o.Addresses, other.Addresses)
}

// LinkKind says which hooks an interface gets.
type LinkKind uint8

// The kinds of links.
const (
	InsideDevice  LinkKind = iota + 1 // a bridge or plain interface: ingress
	InsidePort                        // a bridge port: ingress
	OutsideLink                       // ingress and egress
	fragmentsLink                     // ingress, of the end of a veth to where fragments are put in order
)

// String names the kind.
func (k LinkKind) String() string {
	switch k {
	case InsideDevice:
		return "inside-device"
	case InsidePort:
		return "inside-port"
	case OutsideLink:
		return "outside"
	}
	return fmt.Sprintf("link-kind(%d)", uint8(k))
}

// Link is an interface that carries hooks.
type Link struct {
	IfIndex int
	Name    string // interface name, for messages
	Kind    LinkKind
	Owner   string // Network.Name or Outside.Name
	Peer    bool   // InsidePort: a veth whose other end is in another network namespace (bpf_redirect_peer)
	Layer3  bool   // packets carry no Ethernet header
	Stack   bool   // packets go the kernel's way: path stack

	// DropUnsolicited, of an OutsideLink: packets for a port of Settings that nobody has are dropped, not the host's to answer.
	DropUnsolicited bool
	MAC             net.HardwareAddr // of an OutsideLink: its own, for XDP; that of what is inside is its network's Gateway

	XDP       XDPUse // AttachXDP's; filled by Links
	Mechanism string // "tcx" or "clsact"; filled by Links; empty: a hook is missing
}

// Binding is a mapping of an internal to an external endpoint (RFC 4787).
type Binding struct {
	Protocol  Protocol
	Network   string
	Internal  netip.AddrPort
	External  netip.AddrPort
	Remote    netip.AddrPort // towards which it holds: port 0: the whole address; zero: every remote
	Static    bool
	Published bool // static, and Docker's
	Sessions  int
	Created   time.Time     // to the second, rounded down
	ExpiresIn time.Duration // until the last session expires if no packet comes; 0 for a static binding
}

// Session is a binding and one remote endpoint.
type Session struct {
	Protocol  Protocol
	Network   string
	Internal  netip.AddrPort
	External  netip.AddrPort
	Remote    netip.AddrPort
	Hairpin   bool
	State     string // TCP: see TCPState names; "active" for UDP and ICMP
	Created   time.Time
	ExpiresIn time.Duration
}

// Forward asks for a static binding.
type Forward struct {
	Protocol       Protocol
	Network        string // name or label; empty: the one network whose prefix holds Internal
	External       netip.AddrPort
	Internal       netip.AddrPort
	OverHostSocket bool // bind although a socket of the host listens there (static bindings win)
	Published      bool // Docker's, not an operator's
}

// EventType is the event's name in the API.
type EventType string

// The events of the command-line contract.
const (
	BindingCreated  EventType = "binding.created"
	BindingExpired  EventType = "binding.expired"
	BindingChanged  EventType = "binding.changed"
	SessionCreated  EventType = "session.created"
	SessionState    EventType = "session.state"
	SessionClosed   EventType = "session.closed"
	PortExhausted   EventType = "port.exhausted"
	QuotaExceeded   EventType = "quota.exceeded"
	InboundFiltered EventType = "inbound.filtered"
	AddressMissing  EventType = "address.missing" // the outside has no external address for this host
	BlockAllocated  EventType = "block.allocated"
	BlockReleased   EventType = "block.released"
	EventsLost      EventType = "events.lost"
	LinkReattached  EventType = "link.reattached"
)

// Event is a hint that something changed; the maps are the truth.
type Event struct {
	Time     time.Time
	Type     EventType
	Protocol Protocol
	Network  string // Network.Shown
	Link     string // link.reattached: the interface
	Internal netip.AddrPort
	External netip.AddrPort // 0.0.0.0 or :: where none was chosen: quota.exceeded of a port, address.missing
	Remote   netip.AddrPort // session events and inbound.filtered; of a binding: as Binding.Remote
	Static   bool
	Hairpin  bool
	Sessions int           // of the binding, after the event
	State    string        // session.state and session.*: the state after the event
	OldState string        // session.state: the state before
	Lifetime time.Duration // session.created and session.state: the idle time after which it expires
	Limit    string        // quota.exceeded: which, as in the counters: host_ports, host_sessions, network_ports, network_sessions, binding_sessions
	Last     uint16        // block.*: the last port; External has the first one
	Count    uint64        // events.lost: how many; sampled events: how many since the last one, this included
}

// Capacity says how many entries the maps of an address family hold; it is fixed when they are made.
type Capacity struct {
	Sessions uint32
	Bindings uint32
}

// Usage is Capacity's other half.
type Usage struct {
	Sessions, Bindings   uint32 // in use, of IPv4
	Sessions6, Bindings6 uint32 // the same of IPv6
	EventsLost           uint64 // since the maps were made
}
