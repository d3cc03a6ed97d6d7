// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
)

// The fixture's addresses, as in experiments of the paper: a bridge network, an uplink, two peers.
const (
	External = "198.51.100.1"
	Peer1    = "203.0.113.1"
	Peer2    = "203.0.113.2"
	C1       = "172.17.0.2"
	C2       = "172.17.0.3"
	Other    = "172.18.0.2" // in the second network
)

var (
	BridgeMAC = net.HardwareAddr{2, 0x42, 0, 0, 0, 1}
	Bridge2   = net.HardwareAddr{2, 0x42, 0, 0, 0, 2}
	C1MAC     = net.HardwareAddr{2, 0, 0, 0, 1, 1}
	C2MAC     = net.HardwareAddr{2, 0, 0, 0, 1, 2}
	UplinkMAC = net.HardwareAddr{2, 0, 0, 0, 2, 1}
	RouterMAC = net.HardwareAddr{2, 0, 0, 0, 2, 2}
)

const (
	ownBPFFS  = "/sys/fs/bpf" // in the fixture's mount namespace
	stateDir  = ownBPFFS + "/conenat"
	uplinkMTU = 1500
	beginning = time.Hour // of the virtual clock
)

// fixture is a dataplane in a network and mount namespace of its own, on a thread that ends with it.
type fixture struct {
	kind  kind
	calls chan func()
	DP    *dataplane.Dataplane
	ring  *ringbuf.Reader // of the events, to see whether there are any: dp reads them
	Ports map[string]int  // interface -> ifindex

	opened    tables   // right after Open
	furnished tables   // with settings, networks, an outside and hooks
	kernel    []string // what the kernel has then
}

func newFixture(k kind) (*fixture, error) {
	f := &fixture{kind: k, calls: make(chan func())}
	go f.thread()
	err := f.Do(func() error { return errors.Join(f.open(), f.furnish()) })
	if err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

// thread runs calls until the fixture is closed, on one CPU: what is kept for each CPU is then one. It is never
// unlocked: the thread dies, and its namespaces and mounts with it.
func (f *fixture) thread() {
	runtime.LockOSThread()
	pinThread(0)
	for call := range f.calls {
		call()
	}
}

func (f *fixture) Do(what func() error) error {
	done := make(chan error)
	f.calls <- func() { done <- what() }
	return <-done
}

// pinThread puts the calling thread on one of the CPUs that it may use.
func pinThread(n int) {
	var may, one unix.CPUSet
	if unix.SchedGetaffinity(0, &may) != nil {
		return
	}
	var cpus []int
	for cpu := range 1024 {
		if may.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	one.Set(cpus[n%len(cpus)])
	_ = unix.SchedSetaffinity(0, &one)
}

func (f *fixture) open() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("bpf", ownBPFFS, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs at %s: %w", ownBPFFS, err)
	}
	var err error
	if f.DP, err = dataplane.Open(dataplane.Options{StateDir: stateDir, Capacity: f.kind.Capacity,
		VerifierLog: true, VirtualClock: !f.kind.realClock}); err != nil {
		return err
	}
	if f.ring, err = ringbuf.NewReader(f.DP.Objects().Events); err != nil {
		return err
	}
	if f.kind.family == family.V6 {
		err = f.loadIPv6()
	}
	if err == nil {
		f.opened, err = f.readTables()
	}
	return err
}

// loadIPv6 has its tables among those that are opened: they come with the first network of it.
func (f *fixture) loadIPv6() error {
	return errors.Join(f.DP.PutNetwork(dataplane.Network{Name: "first", IfIndex: 1, Gateway: BridgeMAC,
		Prefixes: []netip.Prefix{netip.MustParsePrefix("fd00::/64")}}), f.DP.RemoveNetwork("first"))
}

// furnish enters a new network namespace and equips it and the tables, which are as right after Open.
func (f *fixture) furnish() (err error) {
	if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	f.Ports = map[string]int{}
	if err = f.interfaces(); err == nil {
		err = f.equip()
	}
	if err == nil {
		f.furnished, err = f.readTables()
	}
	if err == nil {
		err = f.writeTables(f.furnished) // as each other test will have it
	}
	if err == nil {
		f.kernel, err = f.kernelState()
	}
	return err
}

// rest is when a test is done with it: nothing goes on in the tables by itself.
func (f *fixture) rest() error { return f.Do(f.stopTimer) }

// bringBack makes it what it was when it was new.
func (f *fixture) bringBack() error { return f.Do(f.bringBackHere) }

// bringBackHere is bringBack on the fixture's thread. Where a test has left the kernel's things as they were, it is
// enough to write the tables; else all is made anew but the programs and the maps.
func (f *fixture) bringBackHere() error {
	before := f.kernel
	now, err := f.kernelState()
	if err != nil {
		return err
	}
	if gocmp.Equal(before, now) {
		return f.writeTables(f.furnished)
	}
	if err = f.detach(); err == nil {
		err = f.writeTables(f.opened)
	}
	if err == nil {
		err = f.furnish()
	}
	if err != nil {
		return err
	}
	// Indices of interfaces begin anew in a new namespace.
	if diff := gocmp.Diff(before, f.kernel); diff != "" {
		return fmt.Errorf("the kernel's things made anew (-first +now):\n%s", diff)
	}
	return nil
}

// detach takes the hooks off: their pins would be taken for those of new interfaces, whose indices are the same.
func (f *fixture) detach() error {
	links, err := f.DP.Links()
	for _, l := range links {
		err = errors.Join(err, f.DP.Detach(l.IfIndex))
	}
	return err
}

func (f *fixture) close() error {
	err := f.Do(func() (err error) {
		if f.ring != nil {
			err = f.ring.Close()
		}
		if f.DP != nil {
			err = errors.Join(err, f.DP.Close())
		}
		return err
	})
	close(f.calls)
	return err
}

func (f *fixture) interfaces() error {
	if err := f.quiet(); err != nil {
		return err
	}
	for _, b := range []struct {
		name, addr string
		mac        net.HardwareAddr
	}{{"br0", "172.17.0.1/16", BridgeMAC}, {"br1", "172.18.0.1/16", Bridge2}} {
		l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: b.name, HardwareAddr: b.mac}}
		if err := f.add(l, b.addr); err != nil {
			return err
		}
	}
	for _, port := range []string{"p1", "p2", "q1"} {
		master := f.Ports["br0"]
		if port == "q1" {
			master = f.Ports["br1"]
		}
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port, MasterIndex: master}, PeerName: port + "c"}
		if err := f.add(v, ""); err != nil {
			return err
		}
	}
	up := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", HardwareAddr: UplinkMAC, MTU: uplinkMTU}, PeerName: "wire"}
	if err := f.add(up, External+"/24"); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err == nil {
		err = f.sysctl(f.kind.family.Forwarding())
	}
	if err != nil {
		return err
	}
	gateway := f.kind.family.Addr(netip.MustParseAddr("198.51.100.254"))
	return netlink.RouteAdd(&netlink.Route{LinkIndex: f.Ports["eth0"], Gw: gateway.AsSlice()})
}

// quiet keeps the interfaces' own chatter off the counters: in IPv6, nothing leaves that the kernel says of itself. Its
// addresses are those that it is given.
func (f *fixture) quiet() error {
	settings := []string{"disable_ipv6=1"}
	if f.kind.family == family.V6 {
		settings = []string{"accept_dad=0", "addr_gen_mode=1"}
	}
	for _, setting := range settings {
		if err := errors.Join(f.sysctl("net.ipv6.conf.all."+setting), f.sysctl("net.ipv6.conf.default."+setting)); err != nil {
			return err
		}
	}
	if f.kind.family == family.V6 {
		return silence()
	}
	return nil
}

// silence drops what the host itself sends by IPv6.
func silence() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table, drop := conn.AddTable(&nftables.Table{Name: "silence", Family: nftables.TableFamilyIPv6}), nftables.ChainPolicyDrop
	conn.AddChain(&nftables.Chain{Name: "output", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput,
		Priority: nftables.ChainPriorityFilter, Policy: &drop})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("drop what the kernel sends of itself: %w", err)
	}
	return nil
}

// sysctl takes "key=value".
func (f *fixture) sysctl(setting string) error {
	key, value, _ := strings.Cut(setting, "=")
	return os.WriteFile("/proc/sys/"+strings.ReplaceAll(key, ".", "/"), []byte(value), 0)
}

func (f *fixture) add(l netlink.Link, addr string) error {
	name := l.Attrs().Name
	if err := netlink.LinkAdd(l); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	made, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	f.Ports[name] = made.Attrs().Index
	if v, ok := l.(*netlink.Veth); ok {
		peer, err := netlink.LinkByName(v.PeerName)
		if err == nil {
			err = netlink.LinkSetUp(peer)
		}
		if err != nil {
			return err
		}
	}
	if addr != "" {
		a, err := netlink.ParseAddr(f.kind.family.Text(addr))
		if err == nil {
			err = netlink.AddrAdd(made, a)
		}
		if err != nil {
			return fmt.Errorf("address of %s: %w", name, err)
		}
	}
	return netlink.LinkSetUp(made)
}

// equip gives the dataplane its networks, an outside and hooks.
func (f *fixture) equip() error {
	if !f.kind.realClock {
		if err := f.DP.SetClock(uint64(beginning)); err != nil {
			return err
		}
	}
	return errors.Join(
		f.putNetworks(dataplane.EndpointIndependent, dataplane.AddressDependent, func(*dataplane.Network) {}),
		f.DP.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: f.Ports["eth0"], Addresses: []netip.Addr{f.kind.family.Addr(netip.MustParseAddr(External))}}),
		f.link("br0", dataplane.InsideDevice, "br0"), f.link("p1", dataplane.InsidePort, "br0"),
		f.link("p2", dataplane.InsidePort, "br0"), f.link("br1", dataplane.InsideDevice, "br1"),
		f.link("q1", dataplane.InsidePort, "br1"), f.link("eth0", dataplane.OutsideLink, "eth0"),
	)
}

// putNetworks gives both networks a mapping and a filtering for all protocols, and what else change does to them.
func (f *fixture) putNetworks(mapping, filtering dataplane.Behavior, change func(*dataplane.Network)) error {
	prefix := func(s string) netip.Prefix { return f.kind.family.Prefix(netip.MustParsePrefix(s)) }
	var errs []error
	for _, n := range []dataplane.Network{
		{Name: "br0", IfIndex: f.Ports["br0"], Gateway: BridgeMAC, Prefixes: []netip.Prefix{prefix("172.17.0.0/16")}},
		{Name: "br1", IfIndex: f.Ports["br1"], Gateway: Bridge2, Prefixes: []netip.Prefix{prefix("172.18.0.0/16")}},
	} {
		n.Mapping = [3]dataplane.Behavior{mapping, mapping, mapping}
		n.Filtering = [3]dataplane.Behavior{filtering, filtering, filtering}
		change(&n)
		if f.kind.family == family.V6 {
			n.Address, n.Address6 = netip.Addr{}, f.kind.family.Addr(n.Address)
		}
		for _, prefixes := range [][]netip.Prefix{n.Prefixes, n.Exclude} {
			for i, p := range prefixes {
				prefixes[i] = f.kind.family.Prefix(p)
			}
		}
		errs = append(errs, f.DP.PutNetwork(n))
	}
	return errors.Join(errs...)
}

func (f *fixture) link(name string, kind dataplane.LinkKind, owner string) error {
	return f.DP.Attach(dataplane.Link{IfIndex: f.Ports[name], Name: name, Kind: kind, Owner: owner, Peer: kind == dataplane.InsidePort})
}
