// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/conenat/conenat/dataplane"
)

// What holds where nothing is said.
const (
	DefaultSocket   = "/run/conenat/conenat.sock"
	DefaultStateDir = dataplane.DefaultStateDir
	DefaultRefusal  = dataplane.RefuseHostUnreachable // RFC 6888 REQ-11, of the two the later and the milder: docs/icmp.md
)

// Config is a configuration that makes sense by itself.
type Config struct {
	Inside    []string // interfaces; at least one, but with Docker
	Outside   []string // interfaces; empty: the default route's
	External  []Range  // those of them that an outside interface has are its pool; empty: its first address
	Docker    bool     // follow Docker's networks and published ports
	Path      Path
	Mapping   [3]dataplane.Behavior // indices as in dataplane.Network
	Filtering [3]dataplane.Behavior // the same
	XDP       XDP
	// DropUnsolicited: what comes from outside for a port of Settings that nobody has is dropped, and not the host's to refuse.
	DropUnsolicited bool
	Refusal         dataplane.Refusal // to an inside host whose packet gets no mapping or session
	MSSClamp        bool
	Settings        dataplane.Settings
	Capacity        dataplane.Capacity // zero where nothing is said: the dataplane's default
	Limits          dataplane.Limits   // of each network that has none of its own
	BlockSize       uint32             // the same
	Exclude         []netip.Prefix     // destinations that are not translated (RFC 6888 REQ-6), of each network that has none of its own
	Networks        map[string]Network // by interface, or by Docker's name
	Forwards        []dataplane.Forward
	Socket          string
	StateDir        string
	Warnings        []string // what is allowed but against an RFC's MUST
}

// Network is what one network has of its own.
type Network struct {
	Exclude  []netip.Prefix // nil: as all
	External []Range        // the only ones of its hosts, and its alone; nil: the outsides' pools
	Mode     dataplane.Mode
	// ExternalPrefix is ModeNPTv6's, and no other network's.
	ExternalPrefix netip.Prefix
}

// Path is which way packets go between inside and outside.
type Path string

// The paths: straight from interface to interface, or by the host's own routing and netfilter rules; auto is direct
// unless that would bypass somebody's firewall.
const (
	PathAuto   Path = "auto"
	PathDirect Path = "direct"
	PathStack  Path = "stack"
)

// Build checks every value of a layer and gives the configuration. Every wrong value is reported, not the
// first one only.
func Build(l Layer) (Config, error) {
	b := builder{}
	c := Config{
		Inside:   b.interfaces(l.Inside),
		Outside:  b.interfaces(l.Outside),
		External: b.external(l.External),
		Docker:   b.boolean(l.Docker),
		Path:     b.pathChoice(l.Path),
		XDP:      b.xdp(l.XDP),
		Settings: dataplane.DefaultSettings(),
		Capacity: dataplane.Capacity{
			Sessions: b.number(l.Capacity.Sessions, 0, 64, 1<<24),
			Bindings: b.number(l.Capacity.Bindings, 0, 64, 1<<24),
		},
		Forwards: b.forwards(l.Forwards),
		Socket:   b.path(l.Socket, DefaultSocket),
		StateDir: b.path(l.StateDir, DefaultStateDir),
	}
	c.Mapping = b.behaviors(l.Mapping, dataplane.EndpointIndependent)
	c.Filtering = b.behaviors(l.Filtering, dataplane.AddressDependent)
	b.warnings = append(b.warnings, MappingWarnings(l.Mapping.origin(), c.Mapping)...)
	c.DropUnsolicited = b.unsolicited(l.Unsolicited)
	c.Refusal = b.refusal(l.Refusal)
	c.MSSClamp = b.mss(l.MSS)
	b.settings(&c.Settings, l)
	c.Limits = b.limits(l.Limits, c.Capacity)
	c.BlockSize = b.blockSize(l.BlockSize, c.Settings)
	c.Exclude = b.exclude(l.Exclude)
	c.Networks = b.networks(l.Networks)
	b.roles(l)
	c.Warnings = b.warnings
	if err := errors.Join(b.errs...); err != nil {
		return Config{}, err
	}
	return c, nil
}

// builder collects what is wrong.
type builder struct {
	errs     []error
	warnings []string
}

func (b *builder) refuse(v Value, format string, args ...any) {
	b.errs = append(b.errs, v.errorf(format, args...))
}

func (b *builder) interfaces(values []Value) (names []string) {
	for _, v := range values {
		switch {
		case v.Text == "" || len(v.Text) > 15 || strings.ContainsAny(v.Text, "/: \t\n") || v.Text == "." || v.Text == "..":
			b.refuse(v, "%q is no interface name: want 1 to 15 characters without spaces, slashes and colons", v.Text)
		case v.Text == dataplane.HostNetwork:
			b.refuse(v, "interface %s cannot be used: conenat's events call the host's own traffic by that name; rename it", v.Text)
		case slices.Contains(names, v.Text):
			b.refuse(v, "interface %s is given twice", v.Text)
		default:
			names = append(names, v.Text)
		}
	}
	return names
}

// exclude is nil where nothing was given.
func (b *builder) exclude(values []Value) (prefixes []netip.Prefix) {
	if values != nil {
		prefixes = []netip.Prefix{}
	}
	for _, v := range values {
		p, err := ParseDestination(v.Text)
		if err != nil {
			b.refuse(v, "%w", err)
			continue
		}
		prefixes = append(prefixes, p)
	}
	return prefixes
}

func (b *builder) networks(list []NetworkValues) map[string]Network {
	if len(list) == 0 {
		return nil
	}
	out := map[string]Network{}
	for _, n := range list {
		_, twice := out[n.Name.Text]
		switch {
		case n.Name.Text == "":
			b.errs = append(b.errs, errors.New("networks: an entry has no name: give name: the interface's, or Docker's of the network"))
		case twice:
			b.refuse(n.Name, "network %s is given twice", n.Name.Text)
		default:
			mode, prefix := b.mode(n, out)
			out[n.Name.Text] = Network{Exclude: b.exclude(n.Exclude), External: b.external(n.External), Mode: mode, ExternalPrefix: prefix}
		}
	}
	return out
}

// ParseDestination takes a prefix, or an address, which is one of its own.
func ParseDestination(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q is no prefix: want ADDR/BITS, such as 10.0.0.0/8", s)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("prefix %s has an address within it: want %s", s, p.Masked())
	}
	return p, nil
}

// ParseDestinations takes prefixes with commas between them; none, if there is nothing.
func ParseDestinations(s string) (list []netip.Prefix, err error) {
	list = []netip.Prefix{}
	for _, text := range strings.Split(s, ",") {
		if strings.TrimSpace(s) == "" {
			break
		}
		p, err := ParseDestination(strings.TrimSpace(text))
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// roles: somebody is inside, and nobody is inside and outside at once.
func (b *builder) roles(l Layer) {
	if len(l.Inside) == 0 && l.Docker.Text != "true" {
		b.errs = append(b.errs, errors.New("no inside interface: follow Docker's networks by --docker, or name one by --inside, or by inside: in the configuration file"))
	}
	for _, out := range l.Outside {
		if slices.ContainsFunc(l.Inside, func(in Value) bool { return in.Text == out.Text }) {
			b.refuse(out, "interface %s cannot be inside and outside at once", out.Text)
		}
	}
}

func (b *builder) boolean(v Value) bool {
	if v.Given() && v.Text != "true" && v.Text != "false" {
		b.refuse(v, "%q: want true or false", v.Text)
	}
	return v.Text == "true"
}

func (b *builder) pathChoice(v Value) Path {
	switch p := Path(v.Text); {
	case !v.Given():
		return PathAuto
	case p == PathAuto, p == PathDirect, p == PathStack:
		return p
	}
	b.refuse(v, "path %q: want auto, direct or stack", v.Text)
	return PathAuto
}

func (b *builder) behaviors(given Behaviors, otherwise dataplane.Behavior) (out [3]dataplane.Behavior) {
	all := b.behavior(given.All, otherwise)
	out[dataplane.BehaviorUDP] = b.behavior(given.UDP, all)
	out[dataplane.BehaviorTCP] = b.behavior(given.TCP, all)
	out[dataplane.BehaviorICMP] = b.behavior(given.ICMP, all)
	return out
}

// MappingWarnings say which RFCs a mapping is against; origin is where it was asked for.
func MappingWarnings(origin string, mapping [3]dataplane.Behavior) (list []string) {
	for i, against := range [3]string{
		dataplane.BehaviorUDP: "udp: RFC 4787 REQ-1", dataplane.BehaviorTCP: "tcp: RFC 5382 REQ-1", dataplane.BehaviorICMP: "icmp: RFC 5508 REQ-1a",
	} {
		if protocol, rule, _ := strings.Cut(against, ": "); mapping[i] != dataplane.EndpointIndependent {
			list = append(list, fmt.Sprintf("%s: %s mapping of %s is not the %s one that %s demands",
				origin, mapping[i], protocol, dataplane.EndpointIndependent, rule))
		}
	}
	return list
}

func (b *builder) behavior(v Value, otherwise dataplane.Behavior) dataplane.Behavior {
	if !v.Given() {
		return otherwise
	}
	behavior, err := dataplane.ParseBehavior(v.Text)
	if err != nil {
		b.refuse(v, "%w", err)
	}
	return behavior
}

func (b *builder) refusal(v Value) dataplane.Refusal {
	if !v.Given() {
		return DefaultRefusal
	}
	refusal, err := dataplane.ParseRefusal(v.Text)
	if err != nil {
		b.refuse(v, "%w", err)
	}
	return refusal
}

func (b *builder) mss(v Value) bool {
	if !v.Given() {
		return false
	}
	clamp, err := ParseMSS(v.Text)
	if err != nil {
		b.refuse(v, "%w", err)
	}
	return clamp
}

// ParseMSS says whether a SYN's MSS option is to be clamped, or kept.
func ParseMSS(s string) (clamp bool, err error) {
	if s != "clamp" && s != "keep" {
		err = fmt.Errorf("mss %q: want clamp or keep", s)
	}
	return s == "clamp", err
}

func (b *builder) path(v Value, otherwise string) string {
	if !v.Given() {
		return otherwise
	}
	if !filepath.IsAbs(v.Text) {
		b.refuse(v, "%q: want an absolute path", v.Text)
	}
	return filepath.Clean(v.Text)
}

func (b *builder) number(v Value, otherwise, low, high uint32) uint32 {
	if !v.Given() {
		return otherwise
	}
	n, err := strconv.ParseUint(v.Text, 10, 32)
	if err != nil || n < uint64(low) || n > uint64(high) {
		b.refuse(v, "%q: want a number from %d to %d", v.Text, low, high)
		return otherwise
	}
	return uint32(n)
}

// timeout is one timer: its bounds, and the least that an RFC allows.
type timeout struct {
	value     Value
	target    *time.Duration
	low, high time.Duration
	rfcLeast  time.Duration
	rfc       string
}

const day = 24 * time.Hour

func (b *builder) settings(s *dataplane.Settings, l Layer) {
	t := l.Timeouts
	for _, t := range []timeout{
		{t.UDP, &s.UDPTimeout, time.Second, 30 * day, 2 * time.Minute, "RFC 4787 REQ-5"},
		{t.TCPEstablished, &s.TCPEstablishedTimeout, time.Second, 30 * day, 7440 * time.Second, "RFC 5382 REQ-5"},
		{t.TCPPartialOpen, &s.TCPPartialOpenTimeout, time.Second, day, 4 * time.Minute, "RFC 5382 REQ-5"},
		{t.TCPClosing, &s.TCPClosingTimeout, time.Second, day, 4 * time.Minute, "RFC 5382 REQ-5"},
		{t.ICMP, &s.ICMPTimeout, time.Second, day, time.Minute, "RFC 5508 REQ-2"},
		{t.Sweep, &s.SweepPeriod, 100 * time.Millisecond, time.Minute, 0, ""},
	} {
		b.timeout(t)
	}
	s.PortLow, s.PortHigh = b.ports(l.Ports, s.PortLow, s.PortHigh)
	s.SessionsPerBinding = b.number(l.Capacity.SessionsPerBinding, s.SessionsPerBinding, 1, 1<<24)
}

func (b *builder) timeout(t timeout) {
	if !t.value.Given() {
		return
	}
	d, err := time.ParseDuration(t.value.Text)
	if err != nil || d < t.low || d > t.high {
		b.refuse(t.value, "%q: want a duration from %s to %s, such as 5m or 90s", t.value.Text, t.low, t.high)
		return
	}
	if d < t.rfcLeast {
		b.warnings = append(b.warnings, fmt.Sprintf("%s: %s is shorter than the %s that %s demands", t.value.Origin, d, t.rfcLeast, t.rfc))
	}
	*t.target = d
}

func (b *builder) ports(v Value, low, high uint16) (uint16, uint16) {
	if !v.Given() {
		return low, high
	}
	first, last, dash := strings.Cut(v.Text, "-")
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if !dash || err1 != nil || err2 != nil || from < 1024 || from > to {
		b.refuse(v, "ports %q: want LOW-HIGH with 1024 <= LOW <= HIGH <= 65535", v.Text)
		return low, high
	}
	return uint16(from), uint16(to)
}

// defaultPorts is what one host gets at most where nothing is said: a quarter of an external address's ports.
const defaultPorts = 16384

// limits: where nothing is said, one host can take neither all ports nor the whole table, and a network has no limit.
func (b *builder) limits(l Limits, c dataplane.Capacity) dataplane.Limits {
	sessions, bindings := c.Sessions, c.Bindings
	if sessions == 0 {
		sessions = dataplane.DefaultCapacity.Sessions
	}
	if bindings == 0 {
		bindings = dataplane.DefaultCapacity.Bindings
	}
	return dataplane.Limits{
		HostPorts:       b.number(l.PortsPerHost, min(defaultPorts, bindings/2), 0, 1<<24),
		HostSessions:    b.number(l.SessionsPerHost, sessions/2, 0, 1<<24),
		NetworkPorts:    b.number(l.PortsPerNetwork, 0, 0, 1<<24),
		NetworkSessions: b.number(l.SessionsPerNetwork, 0, 0, 1<<24),
	}
}

func (b *builder) blockSize(v Value, s dataplane.Settings) uint32 {
	if !v.Given() {
		return 0
	}
	size, err := ParseBlockSize(v.Text)
	if err != nil {
		b.refuse(v, "%w", err)
		return 0
	}
	if err := CheckBlocks(size, s); err != nil {
		b.refuse(v, "%w", err)
	}
	return size
}

// CheckBlocks refuses a size of which no block lies within the range of ports: its hosts would get no port at all.
func CheckBlocks(size uint32, s dataplane.Settings) error {
	if first := (uint32(s.PortLow) + size - 1) &^ (size - 1); size > 0 && first+size > uint32(s.PortHigh)+1 {
		return fmt.Errorf("no block of %d ports lies within the ports %d-%d: a block begins at a multiple of its size", size, s.PortLow, s.PortHigh)
	}
	return nil
}

// ParseBlockSize takes the ports of a block of one host; 0: no blocks.
func ParseBlockSize(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n != 0 && (n < dataplane.MinBlockSize || n > dataplane.MaxBlockSize || n&(n-1) != 0) {
		return 0, fmt.Errorf("%q: want a power of two from %d to %d, or 0 for no blocks", text, dataplane.MinBlockSize, dataplane.MaxBlockSize)
	}
	return uint32(n), nil
}

func (b *builder) forwards(list []Forward) (out []dataplane.Forward) {
	taken := map[string]string{}
	for _, f := range list {
		fwd, ok := b.forward(f)
		if !ok {
			continue
		}
		id := fmt.Sprintf("%s/%s", fwd.Protocol, fwd.External)
		if first, dup := taken[id]; dup {
			b.refuse(f.External, "external endpoint %s is forwarded already at %s", id, first)
			continue
		}
		taken[id] = f.External.Origin
		out = append(out, fwd)
	}
	return out
}

func (b *builder) forward(f Forward) (dataplane.Forward, bool) {
	errs := len(b.errs)
	out := dataplane.Forward{Protocol: dataplane.TCP, Network: f.Network.Text}
	if f.Protocol.Given() {
		var err error
		if out.Protocol, err = ParseForwardProtocol(f.Protocol.Text); err != nil {
			b.refuse(f.Protocol, "%w", err)
		}
	}
	out.External = b.endpoint(f.External, "external")
	out.Internal = b.endpoint(f.Internal, "internal")
	if len(b.errs) == errs {
		if err := CheckForward(out); err != nil {
			b.refuse(f.Internal, "%w", err)
		}
	}
	return out, len(b.errs) == errs
}

func (b *builder) endpoint(v Value, key string) netip.AddrPort {
	if !v.Given() {
		b.errs = append(b.errs, fmt.Errorf("forwards: an entry has no %s endpoint: give %s: ADDR:PORT", key, key))
		return netip.AddrPort{}
	}
	ep, err := ParseEndpoint(v.Text)
	if err != nil {
		b.refuse(v, "%w", err)
	}
	return ep
}

// ParseForwardProtocol takes the protocols that have ports.
func ParseForwardProtocol(s string) (dataplane.Protocol, error) {
	if p, err := dataplane.ParseProtocol(s); err == nil && (p == dataplane.TCP || p == dataplane.UDP) {
		return p, nil
	}
	return 0, fmt.Errorf("protocol %q cannot be forwarded: want tcp or udp", s)
}

// ParseEndpoint takes "ADDR:PORT" or, of IPv6, "[ADDR]:PORT", with a port that is not 0.
func ParseEndpoint(s string) (netip.AddrPort, error) {
	ep, err := netip.ParseAddrPort(s)
	switch {
	case err != nil || ep.Port() == 0 || ep.Addr().IsUnspecified():
		return netip.AddrPort{}, fmt.Errorf("%q is no endpoint: want ADDR:PORT, such as 198.51.100.1:8080 or [2001:db8::1]:8080", s)
	case ep.Addr().Is4In6():
		return netip.AddrPort{}, fmt.Errorf("endpoint %s is one of IPv4: write %s", ep, netip.AddrPortFrom(ep.Addr().Unmap(), ep.Port()))
	case ep.Addr().Zone() != "" || ep.Addr().IsLinkLocalUnicast():
		return netip.AddrPort{}, fmt.Errorf("endpoint %s is one of a link alone: want an address that is routed", ep)
	}
	return ep, nil
}

// CheckForward refuses what no forward can be.
func CheckForward(f dataplane.Forward) error {
	if f.External.Addr().Is4() != f.Internal.Addr().Is4() {
		return fmt.Errorf("forward %s to %s: want both endpoints of IPv4, or both of IPv6", f.External, f.Internal)
	}
	return nil
}
