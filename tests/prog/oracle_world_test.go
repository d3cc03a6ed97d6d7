// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"pgregory.net/rapid"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/oracle"
	"github.com/conenat/conenat/tests/rig"
)

// setup is what an operator can change while the NAT is at work.
type setup struct {
	settings  dataplane.Settings
	mapping   [3]dataplane.Behavior // UDP, TCP, ICMP; of both networks
	filtering [3]dataplane.Behavior
	isolated  bool         // the first network's hosts
	external  []netip.Addr // may be empty
	second    bool         // whether the second network is there
	stack     bool         // the path
	drop      bool         // what is unsolicited
	refusal   dataplane.Refusal
	limits    dataplane.Limits
	exclude   string // a prefix that the first network's packets reach untranslated; "": none
	equal     bool   // the second network has the addresses of the first
}

// world is a rig, and what it is set to now. It outlives sequences.
type world struct {
	places
	rig     *rig.Rig
	xdp     map[string]uint8      // flags of the links
	byXDP   map[oracle.Reason]int // packets that never came to tc
	setup   setup
	owners  map[netip.Addr]dataplane.Owner // of the first network
	reached map[oracle.Reason]int          // how many packets
	lie     func(*oracle.Config)           // told last of what the oracle is to be
}

func newWorld(t *testing.T, f family.Family) *world {
	setFlag(t, "rapid.steps", "20") // of a sequence, on average
	p := placesIn(f)
	return &world{places: p, rig: rig.New(t, rig.In(f), rig.WithTables(oracleSessions, oracleBindings)), owners: map[netip.Addr]dataplane.Owner{}, reached: map[oracle.Reason]int{},
		setup: setup{settings: dataplane.DefaultSettings(), external: p.externals[:1], second: true}}
}

// pools are what the outside may have of the external addresses.
func (p places) pools() [][]netip.Addr {
	e := p.externals
	return [][]netip.Addr{e[:1], e[1:2], e, e[1:], {e[0], e[2]}, nil}
}

// zoneNumbers are what the dataplane has given the networks.
var zoneNumbers = map[string]uint32{"br0": 1, "br1": 2}

// day is longer than any timeout.
const day = 24 * time.Hour

// pick draws by index, so that a failure's output is short: what comes of it stands in the line of the step.
func pick[T any](t *rapid.T, what string, of []T) T {
	return of[rapid.IntRange(0, len(of)-1).Draw(t, what)]
}

func drawBehaviors(t *rapid.T, what string, of []dataplane.Behavior) (out [3]dataplane.Behavior) {
	for i := range out {
		out[i] = pick(t, what, of)
	}
	return out
}

func (w *world) drawSetup(t *rapid.T) setup {
	s := setup{settings: dataplane.DefaultSettings(), external: w.externals[:1], second: true}
	// Most NATs are endpoint-independent.
	s.mapping = drawBehaviors(t, "mapping", append([]dataplane.Behavior{dataplane.EndpointIndependent, dataplane.EndpointIndependent}, behaviors...))
	s.filtering = drawBehaviors(t, "filtering", behaviors)
	if rapid.Bool().Draw(t, "few ports") {
		s.settings.PortLow, s.settings.PortHigh = 5000, 5003
	}
	s.settings.SessionsPerBinding = pick(t, "sessions per binding", []uint32{3, 1000})
	s.stack = rapid.IntRange(0, 3).Draw(t, "path") == 3
	s.drop = rapid.IntRange(0, 3).Draw(t, "unsolicited") == 3
	s.limits = drawLimits(t)
	if rapid.IntRange(0, 3).Draw(t, "excludes") == 3 {
		s.exclude = pick(t, "exclude", exclusions)
	}
	s.equal = rapid.IntRange(0, 3).Draw(t, "equal networks") == 3
	s.refusal = dataplane.Refusal(rapid.IntRange(0, 2).Draw(t, "refusal"))
	return s
}

// exclusions are destinations: both remotes, one of them, and all.
var exclusions = []string{"", "203.0.113.0/24", rig.Peer1 + "/32", "0.0.0.0/0"}

func drawLimits(t *rapid.T) dataplane.Limits {
	draw := func(what string, least uint32) uint32 { // most have none
		return pick(t, what, []uint32{0, 0, 0, 0, least, 2 * least})
	}
	return dataplane.Limits{HostPorts: draw("ports of a host", 2), HostSessions: draw("sessions of a host", 2),
		NetworkPorts: draw("ports of a network", 3), NetworkSessions: draw("sessions of a network", 4)}
}

// oracle is the configuration that the model has to have.
func (w *world) oracle() oracle.Config {
	s := w.setup.settings
	c := oracle.Config{
		Networks: map[oracle.Place]oracle.Network{}, External: w.setup.external, Stack: w.setup.stack, Drop: w.setup.drop,
		Local:   []netip.Addr{w.gateways[0], w.gateways[1], w.externals[0]},
		PortLow: s.PortLow, PortHigh: s.PortHigh, SessionsPerBinding: int(s.SessionsPerBinding), Sessions: oracleSessions, Bindings: oracleBindings,
		UDPTimeout: s.UDPTimeout, TCPEstablishedTimeout: s.TCPEstablishedTimeout, TCPPartialOpenTimeout: s.TCPPartialOpenTimeout,
		TCPClosingTimeout: s.TCPClosingTimeout, ICMPTimeout: s.ICMPTimeout,
	}
	for _, n := range w.networks {
		c.Elsewhere = append(c.Elsewhere, n.Prefixes...)
		if n.Name == "br1" && !w.setup.second {
			continue
		}
		network := oracle.Network{Prefixes: n.Prefixes, Number: zoneNumbers[n.Name], Isolated: n.Name == "br0" && w.setup.isolated, Owners: map[netip.Addr]oracle.Owner{},
			Host:    oracle.Limit{Ports: int(w.setup.limits.HostPorts), Sessions: int(w.setup.limits.HostSessions)},
			All:     oracle.Limit{Ports: int(w.setup.limits.NetworkPorts), Sessions: int(w.setup.limits.NetworkSessions)},
			Mapping: behaviorsOf(w.setup.mapping), Filtering: behaviorsOf(w.setup.filtering)}
		if n.Name == "br1" && w.setup.equal {
			network.Prefixes = w.networks[0].Prefixes
		}
		if n.Name == "br0" {
			network.Exclude = w.excluded(w.setup)
		}
		for addr, o := range w.owners {
			if n.Name == "br0" {
				network.Owners[addr] = w.ownerOf(o)
			}
		}
		c.Networks[oracle.Place(n.Name)] = network
	}
	w.lie(&c)
	return c
}

func behaviorsOf(b [3]dataplane.Behavior) map[oracle.Protocol]oracle.Behavior {
	return map[oracle.Protocol]oracle.Behavior{oracle.UDP: oracle.Behavior(b[0]), oracle.TCP: oracle.Behavior(b[1]), oracle.ICMP: oracle.Behavior(b[2])}
}

func (w *world) ownerOf(o dataplane.Owner) oracle.Owner {
	out := oracle.Owner{Excluded: o.Excluded}
	for _, port := range []string{"p1", "p2"} {
		if o.Port == w.rig.Ports[port] {
			out.Port = port
		}
	}
	if o.Filtering != nil {
		out.Filtering = behaviorsOf(*o.Filtering)
	}
	return out
}

// configure makes the rig what s says.
func (w *world) configure(s setup) error {
	err := w.rig.DP.Configure(s.settings)
	if s.second != w.setup.second {
		err = errors.Join(err, w.attachSecond(s))
	}
	w.setup.second = s.second
	for _, n := range w.networks {
		if n.Name != "br1" || s.second {
			err = errors.Join(err, w.rig.DP.PutNetwork(w.network(n, s)))
		}
	}
	if !slices.Equal(s.external, w.setup.external) {
		err = errors.Join(err, w.rig.DP.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: w.rig.Ports["eth0"], Addresses: s.external}))
	}
	w.setup = s
	return errors.Join(err, w.putFlags())
}

func (w *world) network(n dataplane.Network, s setup) dataplane.Network {
	n.IfIndex, n.Mapping, n.Filtering, n.Refusal, n.Limits = w.rig.Ports[n.Name], s.mapping, s.filtering, s.refusal, s.limits
	n.Isolated = n.Name == "br0" && s.isolated
	gateway := w.gateways[zoneNumbers[n.Name]-1]
	if w.isIPv6() {
		n.Address6 = gateway
	} else {
		n.Address = gateway
	}
	if n.Name == "br0" {
		n.Exclude = w.excluded(s)
	}
	if n.Name == "br1" && s.equal {
		n.Prefixes = w.networks[0].Prefixes
	}
	return n
}

// excluded are the first network's excluded destinations.
func (w *world) excluded(s setup) []netip.Prefix {
	if s.exclude == "" {
		return nil
	}
	return []netip.Prefix{w.family.Prefix(netip.MustParsePrefix(s.exclude))}
}

// attachSecond brings the second network, or takes it away.
func (w *world) attachSecond(s setup) error {
	port, device := w.rig.Ports["q1"], w.rig.Ports["br1"]
	return w.rig.Do(func() error {
		if !s.second {
			return errors.Join(w.rig.DP.Detach(port), w.rig.DP.Detach(device), w.rig.DP.RemoveNetwork("br1"))
		}
		return errors.Join(w.rig.DP.PutNetwork(w.network(w.networks[1], s)),
			w.rig.DP.Attach(dataplane.Link{IfIndex: device, Name: "br1", Kind: dataplane.InsideDevice, Owner: "br1"}),
			w.rig.DP.Attach(dataplane.Link{IfIndex: port, Name: "q1", Kind: dataplane.InsidePort, Owner: "br1", Peer: true}))
	})
}

// putFlags puts the links' flags straight into their table: to attach them once more would cost a hundred times as much.
func (w *world) putFlags() error {
	err := w.rig.XDPLinks(w.xdp)
	for _, name := range []string{"br0", "p1", "p2", "br1", "q1", "eth0"} {
		err = errors.Join(err, w.rig.ChangeLink(name, func(l *bpf.Link) {
			l.Flags &^= bpf.LinkStack | bpf.LinkUnsolicited
			if w.setup.stack {
				l.Flags |= bpf.LinkStack
			}
			if w.setup.drop && name == "eth0" {
				l.Flags |= bpf.LinkUnsolicited
			}
		}))
	}
	return err
}

// restore undoes what configure does not: nobody owns an address.
func (w *world) restore() error {
	var err error
	for addr := range w.owners {
		err = errors.Join(err, w.rig.DP.ForgetOwner("br0", addr))
	}
	clear(w.owners)
	return err
}

// wait moves the clock, and has the sweeper walk once.
func (w *world) wait(by time.Duration) error {
	w.rig.Now += by
	return errors.Join(w.rig.DP.SetClock(uint64(w.rig.Now)), w.rig.DP.Sweep())
}

// clear lets all expire. It comes before a sequence, too: the one before may have failed.
func (w *world) clear() error {
	held, err := w.rig.DP.Held()
	if err == nil && len(held.Forwards) > 0 {
		_, err = w.rig.DP.RemoveForwards(held.Forwards)
	}
	return errors.Join(err, w.wait(day), w.wait(day), w.forgetFragments()) // once more for the ports that wait
}

// forgetFragments does what time does not: after hundreds of sequences, of a day or two each, the first ones' are young again
// (abi.h says when the tables' clock wraps).
func (w *world) forgetFragments() error {
	for _, t := range w.rig.DP.Tables() {
		all, err := t.Fragments.Dump()
		for key := range all {
			err = errors.Join(err, t.Fragments.Delete(key))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *world) nothingLeft() error {
	for _, t := range w.rig.DP.Tables() {
		for _, m := range []*ebpf.Map{t.Sessions.Map(), t.Internals.Map(), t.Claims.Map(), t.Permissions.Map(), t.Hosts.Map(), t.Blocks.Map()} {
			if n := rig.MapLen(m); n != 0 {
				return fmt.Errorf("%d entries are left in %v", n, m)
			}
		}
	}
	usage, err := w.rig.DP.Usage()
	if usage.Bindings+usage.Sessions+usage.Bindings6+usage.Sessions6 != 0 {
		err = errors.Join(err, fmt.Errorf("in use: %+v", usage))
	}
	return err
}

// change is a change of the configuration, or of the host.
func (d *duel) change() {
	s := d.setup
	switch pick(d.T, "what changes", []string{"mapping", "filtering", "isolated", "timeouts", "ports", "sessions per binding", "limits", "address", "network", "equal networks", "exclude", "path", "unsolicited"}) {
	case "mapping":
		s.mapping = drawBehaviors(d.T, "mapping", behaviors)
	case "filtering":
		s.filtering = drawBehaviors(d.T, "filtering", behaviors)
	case "isolated":
		s.isolated = !s.isolated
	case "timeouts":
		factor := time.Duration(rapid.IntRange(1, 3).Draw(d.T, "times"))
		t, of := &s.settings, dataplane.DefaultSettings()
		t.UDPTimeout, t.ICMPTimeout, t.TCPPartialOpenTimeout = factor*of.UDPTimeout, factor*of.ICMPTimeout, factor*of.TCPPartialOpenTimeout
		t.TCPClosingTimeout, t.TCPEstablishedTimeout = factor*of.TCPClosingTimeout, factor*of.TCPEstablishedTimeout
	case "ports":
		s.settings.PortLow = pick(d.T, "lowest", []uint16{1024, 5000, 6000})
		s.settings.PortHigh = s.settings.PortLow + pick(d.T, "and as many above it", []uint16{0, 3, 1000})
	case "sessions per binding":
		s.settings.SessionsPerBinding = pick(d.T, "sessions per binding", []uint32{1, 3, 1000})
	case "limits":
		s.limits = drawLimits(d.T)
	case "address":
		s.external = pick(d.T, "external addresses", d.pools())
	case "network":
		s.second = !s.second
	case "equal networks":
		s.equal = !s.equal
	case "exclude":
		s.exclude = pick(d.T, "exclude", exclusions)
	case "path":
		s.stack = !s.stack
	case "unsolicited":
		s.drop = !s.drop
	}
	before := d.setup.external
	d.Logf("change: %+v", s)
	d.must("configure", d.configure(s))
	d.must("sweep", d.world.wait(0))
	moved := !slices.Equal(s.external, before)
	d.nat.Configure(d.oracle())
	if moved { // what has waited for a port of the address that was waits for nothing
		d.pass(121 * time.Second)
	}
}

func (d *duel) passTime() {
	d.pass(pick(d.T, "for", waits))
}

func (d *duel) pass(by time.Duration) {
	d.Logf("wait %v", by)
	d.nat.Wait(by)
	d.must("wait", d.world.wait(by))
}

// sweep ends what has expired by now.
func (d *duel) sweep() {
	d.nat.Wait(0)
	d.must("sweep", d.world.wait(0))
}

var forwardPorts = []uint16{80, 81, 5000, 5001}

// forward adds a static binding as an operator does, or as Docker does, removes one, or gives them their hosts' packets.
func (d *duel) forward() {
	how := pick(d.T, "how", []string{"add", "publish", "remove", "index"})
	if how == "index" {
		d.nat.IndexForwards()
		d.must("index forwards", d.rig.DP.IndexForwards())
		return
	}
	f := dataplane.Forward{Protocol: d.forwardProtocol(), Network: "br0", Published: how == "publish", OverHostSocket: how == "publish",
		External: netip.AddrPortFrom(d.externalAddr(), pick(d.T, "external", forwardPorts)),
		Internal: netip.AddrPortFrom(d.hosts[1].addr, pick(d.T, "internal", forwardPorts))}
	p := oracle.Protocol(f.Protocol.String())
	var want bool
	var err error
	if how == "remove" {
		want, err = d.nat.RemoveForward(p, f.External), d.rig.DP.RemoveForward(f.Protocol, f.External)
	} else {
		want = d.nat.Forward("br0", p, f.External, f.Internal, f.Published)
		_, err = d.rig.DP.AddForward(f)
	}
	d.agree(how+" "+fmt.Sprint(f), want, err)
	d.sweep() // a claim of the host's that was taken over leaves its slot behind
}

func (d *duel) forwardProtocol() dataplane.Protocol {
	return pick(d.T, "protocol", []dataplane.Protocol{dataplane.UDP, dataplane.TCP})
}

// agree: done or refused, by both.
func (d *duel) agree(what string, want bool, err error) {
	d.Helper()
	d.Logf("%s: %v", what, want)
	if (err == nil) != want {
		d.Fatalf("%s: error %v, the oracle says that it is done: %v", what, err, want)
	}
}

// importSession is one that another NAT hands over.
func (d *duel) importSession() {
	s := dataplane.Session{Protocol: d.forwardProtocol(), Network: "br0",
		Internal: netip.AddrPortFrom(pick(d.T, "host", d.hosts[:2]).addr, pick(d.T, "port", insidePorts)),
		External: d.externalEndpoint(), Remote: pick(d.T, "remote", d.remotes)}
	if s.External.Port() == 0 {
		return // no endpoint: an ICMP binding's identifier
	}
	if s.Protocol == dataplane.TCP {
		s.State = "established"
	}
	want := d.nat.Import("br0", oracle.Protocol(s.Protocol.String()), s.Internal, s.External, s.Remote)
	d.agree(fmt.Sprintf("import %s %s %s %s", s.Protocol, s.Internal, s.External, s.Remote), want, d.rig.DP.ImportSession(s))
}

// owner says whose the address of a container is, or that it is gone.
func (d *duel) owner() {
	host := pick(d.T, "host", d.hosts[:2])
	if _, known := d.owners[host.addr]; known && rapid.Bool().Draw(d.T, "gone") {
		d.Logf("owner of %s is gone", host.addr)
		d.must("remove owner", d.rig.DP.RemoveOwner("br0", host.addr))
		delete(d.owners, host.addr)
		d.nat.RemoveOwner("br0", host.addr)
		return
	}
	o := dataplane.Owner{Network: "br0", Address: host.addr, ID: 7, Excluded: rapid.IntRange(0, 5).Draw(d.T, "excluded") == 5}
	if port := pick(d.T, "port", []string{"", "p1", "p2"}); port != "" {
		o.Port = d.rig.Ports[port]
	}
	if rapid.IntRange(0, 2).Draw(d.T, "own filtering") == 2 {
		own := drawBehaviors(d.T, "filtering", behaviors)
		o.Filtering = &own
	}
	d.Logf("owner: %+v", o)
	d.must("put owner", d.rig.DP.PutOwner(o))
	d.owners[host.addr] = o
	d.nat.PutOwner("br0", host.addr, d.ownerOf(o))
	d.sweep() // another filtering is another lifetime
}
