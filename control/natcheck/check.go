// SPDX-License-Identifier: Apache-2.0

package natcheck

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The timers' defaults. RTO is RFC 8489's; requests go out after 0, 0.5 and 1.5 s.
const (
	DefaultRTO     = 500 * time.Millisecond
	DefaultTimeout = 2500 * time.Millisecond
)

// Options say what to check.
type Options struct {
	Server netip.AddrPort
	// Lifetime bounds the search for a binding's lifetime, which takes as long as the binding lives; 0: none.
	Lifetime time.Duration
	RTO      time.Duration // 0: DefaultRTO
	Timeout  time.Duration // how long an answer is waited for; 0: DefaultTimeout
	// Open runs what opens a socket, such as in another network namespace; nil: in the caller's.
	Open func(func() error) error
}

// The errors of Run; a Report comes with each of them.
var (
	// ErrNoAnswer: the server does not answer over UDP.
	ErrNoAnswer = errors.New("no answer over UDP")
	// ErrIncomplete: something could not be told; Report.Problems say why.
	ErrIncomplete = errors.New("not everything could be told")
)

// Run makes all tests. The report holds what can be told, whatever the error.
func Run(ctx context.Context, o Options) (Report, error) {
	if o.RTO == 0 {
		o.RTO = DefaultRTO
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Open == nil {
		o.Open = func(open func() error) error { return open() }
	}
	c := &check{Options: o, timers: timers{o.RTO, o.Timeout}, report: Report{Server: o.Server, Mapping: Unknown, Filtering: Unknown,
		AfterUnsolicited: Unknown, TCP: TCP{Mapping: Unknown}, RFC3489: "unknown",
		Mapped: []Mapped{}, Problems: []string{}, Notes: []string{}}}
	defer c.close()
	err := c.run(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil && len(c.report.Problems) > 0 {
		err = ErrIncomplete
	}
	return c.report, err
}

type check struct {
	Options
	timers
	local netip.Addr
	other netip.AddrPort // the server's other endpoint; zero: none

	mu      sync.Mutex
	report  Report
	sockets []*socket
	moved   bool // a port was not preserved
}

// run asks the server once, and then makes every test at the same time.
func (c *check) run(ctx context.Context) error {
	if err := c.findLocal(); err != nil {
		return err
	}
	filtering, err := c.open()
	if err != nil {
		return err
	}
	first, err := filtering.ask(ctx, c.timers, c.Server)
	if err != nil {
		return c.unanswered(ctx, err)
	}
	c.learn(filtering, first)
	tests := []func(context.Context){c.tcp, c.hairpin, c.lifetime}
	if c.twoAddresses(first) {
		tests = append(tests, c.mapping, func(ctx context.Context) { c.filtering(ctx, filtering) })
	}
	var group sync.WaitGroup
	for _, test := range tests {
		group.Go(func() { test(ctx) })
	}
	group.Wait()
	c.conclude()
	return nil
}

// findLocal is the address that the host would send to the server from.
func (c *check) findLocal() error {
	return c.Open(func() error {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(c.Server))
		if err != nil {
			return fmt.Errorf("find a way to STUN server %v: %w", c.Server, err)
		}
		defer conn.Close()
		c.local = conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		return nil
	})
}

// open opens a UDP socket on a port of its own.
func (c *check) open() (*socket, error) {
	var conn *net.UDPConn
	err := c.Open(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.local, 0)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket on %v: %w", c.local, err)
	}
	s := newSocket(conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sockets = append(c.sockets, s)
	return s, nil
}

func (c *check) close() {
	for _, s := range c.sockets {
		s.Close()
	}
}

// learn takes what the first answer says.
func (c *check) learn(s *socket, a answer) {
	c.saw(s.local, a.mapped)
	c.report.Internal, c.report.External = s.local, a.mapped
	isNAT := a.mapped != s.local
	c.report.NAT = &isNAT
	if a.rewrites {
		c.report.Notes = append(c.report.Notes, "something on the way rewrites addresses in payloads: MAPPED-ADDRESS and XOR-MAPPED-ADDRESS differ")
	}
}

// twoAddresses: without two addresses and two ports the server cannot tell mapping from filtering.
func (c *check) twoAddresses(a answer) bool {
	c.other = a.other
	c.report.OtherAddress = a.other
	switch {
	case !a.other.IsValid():
		c.problem("mapping and filtering cannot be told: STUN server %v has no OTHER-ADDRESS, so it does not do RFC 5780; "+
			"ask one that does, such as `conenat stun-server` on a host with two addresses", c.Server)
	case a.other.Addr().Is4() != c.Server.Addr().Is4():
		c.problem("mapping and filtering cannot be told: OTHER-ADDRESS %v of STUN server %v is of another family", a.other, c.Server)
	case a.other.Addr() == c.Server.Addr() || a.other.Port() == c.Server.Port():
		c.problem("mapping and filtering cannot be told: OTHER-ADDRESS %v of STUN server %v is not another address and another port",
			a.other, c.Server)
	default:
		return true
	}
	return false
}

// remotes are the server's endpoints, in seen's order; all but the first are zero if it told no other.
func (c *check) remotes() [4]netip.AddrPort {
	if !c.other.IsValid() {
		return [4]netip.AddrPort{c.Server}
	}
	at := netip.AddrPortFrom
	a, b := c.Server, c.other
	return [4]netip.AddrPort{a, at(a.Addr(), b.Port()), at(b.Addr(), a.Port()), b}
}

// problem says why something is unknown.
func (c *check) problem(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Problems = append(c.report.Problems, fmt.Sprintf(format, args...))
}

func (c *check) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Notes = append(c.report.Notes, fmt.Sprintf(format, args...))
}

// conclude draws what follows from several tests.
func (c *check) conclude() {
	r := &c.report
	if r.Mapping == Unknown {
		// An answer that did not come says nothing if the endpoint it was to come from is dead.
		r.Filtering = Unknown
	}
	if r.Mapping != Unknown {
		isNAT := r.Mapping != None
		r.NAT = &isNAT
	}
	if r.Mapping != Unknown && r.AfterUnsolicited != Unknown {
		stable := r.Mapping == r.AfterUnsolicited
		r.Stable = &stable
	}
	if r.NAT != nil && !*r.NAT {
		r.Hairpin, r.HairpinSource, r.PortPreserved = nil, "", nil
	}
	r.RFC3489 = rfc3489(r.Mapping, r.Filtering)
	slices.SortStableFunc(r.Mapped, func(a, b Mapped) int {
		return cmp.Or(-strings.Compare(a.Protocol, b.Protocol), strings.Compare(fmt.Sprint(a.AfterUnsolicited), fmt.Sprint(b.AfterUnsolicited)))
	})
}

// unanswered tells a server that is not there from a network that does not let UDP through.
func (c *check) unanswered(ctx context.Context, err error) error {
	if errors.Is(err, syscall.EPERM) {
		c.report.RFC3489 = "UDP blocked"
		c.problem("this host's own firewall refuses it: let UDP to %v out", c.Server)
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	if !errors.Is(err, errNoAnswer) {
		return err
	}
	if c.refused() {
		c.problem("nothing listens on UDP %v, its host says (ICMP port unreachable): is the server running, and is the port right?", c.Server)
		return fmt.Errorf("%w from STUN server %v: port unreachable", ErrNoAnswer, c.Server)
	}
	c.tcp(ctx)
	c.report.RFC3489 = "UDP blocked"
	advice := "it answers over TCP, so UDP is blocked on the way: open UDP to its ports 3478 and 3479, and the answers"
	if !c.report.TCP.External.IsValid() {
		advice = "nor does it over TCP: either UDP is blocked on the way, or the server is not there: check its address, its firewall and yours"
	}
	c.problem("STUN server %v does not answer over UDP within %v; %s", c.Server, c.Timeout, advice)
	return fmt.Errorf("%w from STUN server %v", ErrNoAnswer, c.Server)
}

// refused asks by a connected socket, which hears of an ICMP error.
func (c *check) refused() bool {
	var conn *net.UDPConn
	err := c.Open(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(c.Server))
		return err
	})
	if err != nil {
		return false
	}
	defer conn.Close()
	request, err := newRequest()
	if err != nil || conn.SetDeadline(time.Now().Add(c.RTO)) != nil {
		return false
	}
	if _, err = conn.Write(request.Raw); err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
