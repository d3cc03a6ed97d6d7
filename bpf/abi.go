// SPDX-License-Identifier: Apache-2.0

package bpf

import "github.com/cilium/ebpf"

// The structs of abi.h, of both families: addresses in IPv6's form (record.go), ports in network byte order.
type (
	Config        = natNatConfig
	Link          = natNatLink
	Zone          = nat6NatZone6
	Realm         = nat6NatRealm6
	Address       = nat6NatAddress
	External      = nat6NatExternal6
	Set           = nat6NatSet6
	Host          = nat6NatHost
	SessionKey    = nat6SessionKey6
	SessionHalf   = nat6SessionHalf6
	SessionSlot   = nat6SessionSlot6
	Binding       = nat6Binding6
	BindingKey    = nat6BindingKey6
	BindingRef    = nat6BindingRef
	ClaimKey      = nat6ClaimKey6
	Claim         = nat6NatClaim
	PermissionKey = nat6PermissionKey6
	FragmentKey   = nat6FragmentKey6
	Fragment      = nat6Fragment6
	OriginKey     = nat6OriginKey6
	Origin        = nat6NatOrigin
	Pool          = natNatPool
	Event         = natNatEvent
	Request       = nat6NatRequest6
	Owner         = nat6NatOwner
	OwnerKey      = nat6OwnerKey6
	BlockKey      = nat6BlockKey6
	ExclusionKey  = nat6ExclusionKey6
	Blocks        = nat6NatBlocks6
	Held          = natNatHeld
)

// Reason is the index of a packet's counter (enum nat_reason).
type Reason = natNatReason

// The bounds that divide the reasons into translated, diverted, passed and dropped.
const (
	ReasonLastTranslated = natNatReasonREASON_LAST_TRANSLATED
	ReasonLastDiverted   = natNatReasonREASON_LAST_DIVERTED
	ReasonLastPassed     = natNatReasonREASON_LAST_PASSED
	ReasonCount          = natNatReasonREASON_COUNT
	ReasonQuota          = natNatReasonREASON_DROPPED_QUOTA
)

// reasonNames are the counters' names in the API; a test holds them to the C enum.
var reasonNames = [ReasonCount]string{
	natNatReasonREASON_NONE:                     "none",
	natNatReasonREASON_TRANSLATED_OUTBOUND:      "translated_outbound",
	natNatReasonREASON_TRANSLATED_INBOUND:       "translated_inbound",
	natNatReasonREASON_TRANSLATED_HAIRPIN:       "translated_hairpin",
	natNatReasonREASON_TRANSLATED_ICMP_ERROR:    "translated_icmp_error",
	natNatReasonREASON_TRANSLATED_STACK:         "translated_stack",
	natNatReasonREASON_TRANSLATED_HOST:          "translated_host",
	natNatReasonREASON_DIVERTED_FRAGMENT:        "diverted_fragment",
	natNatReasonREASON_DIVERTED_TOO_BIG:         "diverted_too_big",
	natNatReasonREASON_DIVERTED_BACK:            "diverted_back",
	natNatReasonREASON_PASSED_NO_LINK:           "passed_no_link",
	natNatReasonREASON_PASSED_NOT_IP:            "passed_not_ip",
	natNatReasonREASON_PASSED_BRIDGED:           "passed_bridged",
	natNatReasonREASON_PASSED_LOCAL:             "passed_local",
	natNatReasonREASON_PASSED_NOT_OUTSIDE:       "passed_not_outside",
	natNatReasonREASON_PASSED_NO_ROUTE:          "passed_no_route",
	natNatReasonREASON_PASSED_PROTOCOL:          "passed_protocol",
	natNatReasonREASON_PASSED_UNBOUND:           "passed_unbound",
	natNatReasonREASON_PASSED_HOST:              "passed_host",
	natNatReasonREASON_PASSED_CONNTRACK:         "passed_conntrack",
	natNatReasonREASON_PASSED_TTL:               "passed_ttl",
	natNatReasonREASON_PASSED_TOO_BIG:           "passed_too_big",
	natNatReasonREASON_PASSED_STACK:             "passed_stack",
	natNatReasonREASON_PASSED_TRANSLATED:        "passed_translated",
	natNatReasonREASON_PASSED_EXCLUDED:          "passed_excluded",
	natNatReasonREASON_PASSED_DESTINATION:       "passed_destination",
	natNatReasonREASON_PASSED_MALFORMED:         "passed_malformed",
	natNatReasonREASON_DROPPED_MALFORMED:        "dropped_malformed",
	natNatReasonREASON_DROPPED_SPOOFED:          "dropped_spoofed",
	natNatReasonREASON_DROPPED_FILTERED:         "dropped_filtered",
	natNatReasonREASON_DROPPED_UNSOLICITED:      "dropped_unsolicited",
	natNatReasonREASON_DROPPED_ISOLATED:         "dropped_isolated",
	natNatReasonREASON_DROPPED_NO_ADDRESS:       "dropped_no_address",
	natNatReasonREASON_DROPPED_PORT_EXHAUSTED:   "dropped_port_exhausted",
	natNatReasonREASON_DROPPED_PROTOCOL:         "dropped_protocol",
	natNatReasonREASON_DROPPED_REMOTE_TAKEN:     "dropped_remote_taken",
	natNatReasonREASON_DROPPED_BINDINGS_FULL:    "dropped_bindings_full",
	natNatReasonREASON_DROPPED_SESSIONS_FULL:    "dropped_sessions_full",
	natNatReasonREASON_DROPPED_QUOTA:            "dropped_quota",
	natNatReasonREASON_DROPPED_HOST_PORTS:       "dropped_host_ports",
	natNatReasonREASON_DROPPED_HOST_SESSIONS:    "dropped_host_sessions",
	natNatReasonREASON_DROPPED_NETWORK_PORTS:    "dropped_network_ports",
	natNatReasonREASON_DROPPED_NETWORK_SESSIONS: "dropped_network_sessions",
	natNatReasonREASON_DROPPED_TCP_NO_SESSION:   "dropped_tcp_no_session",
	natNatReasonREASON_DROPPED_FRAGMENT:         "dropped_fragment",
	natNatReasonREASON_DROPPED_ICMP_TYPE:        "dropped_icmp_type",
	natNatReasonREASON_DROPPED_ICMP_CHECKSUM:    "dropped_icmp_checksum",
	natNatReasonREASON_DROPPED_ICMP_NO_SESSION:  "dropped_icmp_no_session",
	natNatReasonREASON_DROPPED_UNMAPPED:         "dropped_unmapped",
	natNatReasonREASON_DROPPED_ROUTE_MOVED:      "dropped_route_moved",
	natNatReasonREASON_DROPPED_TTL:              "dropped_ttl",
	natNatReasonREASON_DROPPED_TOO_BIG:          "dropped_too_big",
	natNatReasonREASON_DROPPED_NO_ROUTE:         "dropped_no_route",
	natNatReasonREASON_DROPPED_UNCUT:            "dropped_uncut",
	natNatReasonREASON_DROPPED_CONFLICT:         "dropped_conflict",
	natNatReasonREASON_DROPPED_RACE:             "dropped_race",
	natNatReasonREASON_DROPPED_REWRITE:          "dropped_rewrite",
}

// ReasonName is the counter's name, as "translated_outbound".
func ReasonName(r Reason) string { return reasonNames[r] }

// What an event record is about (enum nat_event_type).
const (
	EventBindingCreated  = uint8(natNatEventTypeEVENT_BINDING_CREATED)
	EventBindingExpired  = uint8(natNatEventTypeEVENT_BINDING_EXPIRED)
	EventBindingChanged  = uint8(natNatEventTypeEVENT_BINDING_CHANGED)
	EventSessionCreated  = uint8(natNatEventTypeEVENT_SESSION_CREATED)
	EventSessionState    = uint8(natNatEventTypeEVENT_SESSION_STATE)
	EventSessionClosed   = uint8(natNatEventTypeEVENT_SESSION_CLOSED)
	EventPortExhausted   = uint8(natNatEventTypeEVENT_PORT_EXHAUSTED)
	EventQuotaExceeded   = uint8(natNatEventTypeEVENT_QUOTA_EXCEEDED)
	EventInboundFiltered = uint8(natNatEventTypeEVENT_INBOUND_FILTERED)
	EventAddressMissing  = uint8(natNatEventTypeEVENT_ADDRESS_MISSING)
	EventBlockAllocated  = uint8(natNatEventTypeEVENT_BLOCK_ALLOCATED)
	EventBlockReleased   = uint8(natNatEventTypeEVENT_BLOCK_RELEASED)
)

// A session's state (enum nat_state).
const (
	StateActive      = uint8(natNatStateSTATE_ACTIVE)
	StateInitInside  = uint8(natNatStateSTATE_INIT_INSIDE)
	StateInitOutside = uint8(natNatStateSTATE_INIT_OUTSIDE)
	StateEstablished = uint8(natNatStateSTATE_ESTABLISHED)
	StateFinInside   = uint8(natNatStateSTATE_FIN_INSIDE)
	StateFinOutside  = uint8(natNatStateSTATE_FIN_OUTSIDE)
	StateFinBoth     = uint8(natNatStateSTATE_FIN_BOTH)
	StateTrans       = uint8(natNatStateSTATE_TRANS)
	StateCount       = uint8(natNatStateSTATE_COUNT)
)

// Indices of Config.Timeout (enum nat_timeout).
const (
	TimeoutUDP            = natNatTimeoutTIMEOUT_UDP
	TimeoutTCPEstablished = natNatTimeoutTIMEOUT_TCP_ESTABLISHED
	TimeoutTCPPartialOpen = natNatTimeoutTIMEOUT_TCP_PARTIAL_OPEN
	TimeoutTCPClosing     = natNatTimeoutTIMEOUT_TCP_CLOSING
	TimeoutICMP           = natNatTimeoutTIMEOUT_ICMP
)

// Indices of per-protocol tables (enum nat_l4).
const (
	L4UDP  = natNatL4NAT_L4UDP
	L4TCP  = natNatL4NAT_L4TCP
	L4ICMP = natNatL4NAT_L4ICMP
)

// Kinds of links (enum nat_link_kind).
const (
	LinkInsideDevice = uint8(natNatLinkKindLINK_INSIDE_DEVICE)
	LinkInsidePort   = uint8(natNatLinkKindLINK_INSIDE_PORT)
	LinkOutside      = uint8(natNatLinkKindLINK_OUTSIDE)
)

// Requests to nat_control (enum nat_command).
const (
	CommandArm     = uint8(natNatCommandCOMMAND_ARM)
	CommandBind    = uint8(natNatCommandCOMMAND_BIND)
	CommandKill    = uint8(natNatCommandCOMMAND_KILL)
	CommandSweep   = uint8(natNatCommandCOMMAND_SWEEP)
	CommandReserve = uint8(natNatCommandCOMMAND_RESERVE)
	CommandImport  = uint8(natNatCommandCOMMAND_IMPORT)
	CommandIndex   = uint8(natNatCommandCOMMAND_INDEX)
)

// Slots of programs6 (enum nat_program).
const (
	SlotInside         = uint32(natNatProgramPROGRAM_INSIDE)
	SlotOutsideIngress = uint32(natNatProgramPROGRAM_OUTSIDE_INGRESS)
	SlotOutsideEgress  = uint32(natNatProgramPROGRAM_OUTSIDE_EGRESS)
	SlotFragments      = uint32(natNatProgramPROGRAM_FRAGMENTS)
)

// Slots of xdp6 (enum nat_xdp_program).
const (
	SlotXDPInside  = uint32(natNatXdpProgramXDP_PROGRAM_INSIDE)
	SlotXDPOutside = uint32(natNatXdpProgramXDP_PROGRAM_OUTSIDE)
)

// Answer is nat_control's return value (enum nat_answer).
type Answer = natNatAnswer

// What nat_control answers.
const (
	AnswerOK         = natNatAnswerANSWER_OK
	AnswerBadRequest = natNatAnswerANSWER_BAD_REQUEST
	AnswerNoAddress  = natNatAnswerANSWER_NO_ADDRESS
	AnswerTaken      = natNatAnswerANSWER_TAKEN
	AnswerHostSocket = natNatAnswerANSWER_HOST_SOCKET
	AnswerNotFound   = natNatAnswerANSWER_NOT_FOUND
	AnswerFull       = natNatAnswerANSWER_FULL
	AnswerBusy       = natNatAnswerANSWER_BUSY
	AnswerFailed     = natNatAnswerANSWER_FAILED
)

// Which way a datagram's fragments go (enum nat_fragment_way).
const (
	FragmentTranslate = uint8(natNatFragmentWayFRAGMENT_TRANSLATE)
	FragmentPass      = uint8(natNatFragmentWayFRAGMENT_PASS)
	FragmentDrop      = uint8(natNatFragmentWayFRAGMENT_DROP)
	FragmentReorder   = uint8(natNatFragmentWayFRAGMENT_REORDER)
)

// Pools (enum nat_pool_id).
const (
	PoolSessions = uint32(natNatPoolIdPOOL_SESSIONS)
	PoolBindings = uint32(natNatPoolIdPOOL_BINDINGS)
)

// The #defines of abi.h, which BTF does not carry; a test reads them there and compares.
const (
	ABIVersion       = 5
	Zones            = 256
	Realms           = 64
	Links            = 16384
	Addresses        = 256
	Sets             = 1024
	HostPairs        = 4
	ExternalNamed    = 1 << 0
	Protocols        = 3
	Prefixes         = 4
	TickShift        = 24
	NoSlot           = 0xffff
	ZoneOutside      = 0
	ZoneLast         = 253
	ZoneHost         = 254
	ZoneClaim        = 255
	LinkPeer         = 1 << 0
	LinkLayer3       = 1 << 1
	LinkStack        = 1 << 2
	LinkXDP          = 1 << 3
	LinkUnsolicited  = 1 << 4
	LinkXDPPeer      = 1 << 5
	LinkGROSwitched  = 1 << 6
	LabelLen         = 64
	ZoneIsolated     = 1 << 0
	ZoneMSSClamp     = 1 << 1
	ZoneOverlaps     = 1 << 2
	ZoneExcludes     = 1 << 3
	ZoneNPTv6        = 1 << 4
	ZoneRouted       = 1 << 5
	Exclusions       = 4096
	OwnerExcluded    = 1 << 0
	OwnerFiltering   = 1 << 1
	OwnerOneToOne    = 1 << 2
	SeenSYN          = 1 << 0
	SeenFIN          = 1 << 1
	SeenRST          = 1 << 2
	SeenOther        = 1 << 3
	HalfPrimary      = 1 << 0
	HalfHairpin      = 1 << 1
	HalfSelf         = 1 << 2
	HalfNetfilter    = 1 << 4
	BindingStatic    = 1 << 0
	BindingIndexed   = 1 << 1
	BindingPublished = 1 << 2
	BindingRetired   = 1 << 3
	BindingCounted   = 1 << 4
	BindingInBlock   = 1 << 5
	BindingOwn       = 1 << 6
	BindingDying     = 1 << 31
	HostBlocks       = 8
	BlockMax         = 4096
	HoldTicks        = 7153
	HeldPorts        = 65536
	ClaimHost        = 0xffffffff
	EventFlagStatic  = 1 << 0
	EventFlagHairpin = 1 << 1
	BindOverSocket   = 1 << 0
	BindPublished    = 1 << 1
	ReserveForwarded = 1 << 2
)

// Names of programs and constants in both objects.
const (
	ProgramInside         = natProgNatInside
	ProgramOutsideIngress = natProgNatOutsideIngress
	ProgramOutsideEgress  = natProgNatOutsideEgress
	ProgramFragments      = natProgNatFragments
	ProgramXDPInside      = natProgNatXdpInside
	ProgramXDPOutside     = natProgNatXdpOutside
	ProgramControl        = natProgNatControl

	ConstFIBSkipNeigh   = natVarFibSkipNeigh
	ConstHaveConntrack  = natVarHaveConntrack
	ConstClockIsVirtual = natVarClockIsVirtual
)

// Objects are the loaded maps, programs and variables.
type Objects = natObjects

// Objects6 are those of the same source for IPv6: its own maps and programs, and the maps that both families share.
type Objects6 = nat6Objects

// Load reads the embedded object for IPv4.
func Load() (*ebpf.CollectionSpec, error) { return loadNat() }

// Load6 reads the embedded object for IPv6.
func Load6() (*ebpf.CollectionSpec, error) { return loadNat6() }
