// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/docker"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// What IPv4 has nothing like: advertised addresses and routes, duplicate address detection, a host without IPv4, networks whose
// IPv6 is not Docker's to translate.

// uplinkNetwork is the network of the host's uplink.
var uplinkNetwork = netip.MustParsePrefix("2001:db8:100::/64")

// advertise sends a router advertisement (RFC 4861 section 4.2) to the host: its router is one for so many seconds, and has
// addresses of the uplink's network to give.
func (l *lab) advertise(lifetime uint16) {
	l.t.Helper()
	const addresses = 3600 // seconds
	ra := []byte{134, 0, 0, 0, 64, 0}
	ra = binary.BigEndian.AppendUint16(ra, lifetime)
	ra = append(ra, make([]byte, 8)...)                          // the times of neighbour discovery: unspecified
	ra = append(ra, 3, 4, byte(uplinkNetwork.Bits()), 0x80|0x40) // prefix information: on the link, and for addresses
	ra = binary.BigEndian.AppendUint32(ra, addresses)            // valid
	ra = binary.BigEndian.AppendUint32(ra, addresses)            // preferred
	ra = append(append(ra, 0, 0, 0, 0), uplinkNetwork.Addr().AsSlice()...)
	l.must(l.Router.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		index, err := l.Router.IfIndex("wan")
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255)
		}
		if err != nil {
			return err
		}
		return unix.Sendto(fd, ra, 0, &unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::1").As16(), ZoneId: uint32(index)})
	}))
}

// addresses are the global ones of eth0 that the kernel has and that have a flag, or have it not.
func (l *lab) addresses(flag int, set bool) (list []netip.Addr) {
	l.t.Helper()
	link, err := l.Host.Netlink().LinkByName("eth0")
	l.must(err)
	all, err := l.Host.Netlink().AddrList(link, netlink.FAMILY_V6)
	l.must(err)
	for _, a := range all {
		addr, _ := netip.AddrFromSlice(a.IP)
		if a.Scope == unix.RT_SCOPE_UNIVERSE && (a.Flags&flag != 0) == set {
			list = append(list, addr)
		}
	}
	return list
}

// detects has the host look for duplicates of what eth0 gets, which takes a second for each address.
func (l *lab) detects() {
	l.t.Helper()
	l.must(l.Host.Sysctl("net.ipv6.conf.eth0.accept_dad=1", "net.ipv6.conf.eth0.dad_transmits=1"))
}

// usable waits until the pool has what is wanted and no address that the kernel still finds tentative.
func (l *lab) usable(what string, want func(pool []netip.Addr) bool) {
	l.t.Helper()
	l.eventually(what, func() bool {
		pool := l.pool()
		for _, a := range l.addresses(unix.IFA_F_TENTATIVE, true) {
			if slices.Contains(pool, a) {
				l.t.Fatalf("%s is tentative, and in the pool %s", a, pool)
			}
		}
		return want(pool)
	})
}

// TestRouterAdvertisements: the uplink has its address and its default route from a router, beside a temporary address (RFC 8981),
// and the host forwards (accept_ra=2). The lasting address is the external one, once it is no duplicate; what lives on it goes on
// when the route comes back.
func TestRouterAdvertisements(t *testing.T) {
	l := placeUplinkLab(t, topo.Figure3Config{IPv6: true}, topo.UplinkConfig{}, "")
	l.ip("route del default\naddress flush dev eth0 scope global\n")
	l.must(l.Host.Sysctl("net.ipv6.conf.eth0.accept_ra=2", "net.ipv6.conf.eth0.use_tempaddr=2"))
	l.detects()
	l.Run()
	if pool := l.pool(); len(pool) != 0 {
		t.Errorf("without an address, the pool is %s", pool)
	}
	l.advertise(1800)
	l.usable("the advertised address is external", func(pool []netip.Addr) bool { return len(pool) == 1 })
	external := l.pool()[0]
	if lasting := l.addresses(unix.IFA_F_TEMPORARY, false); !slices.Contains(lasting, external) {
		t.Errorf("the external address is %s, the lasting one %s", external, lasting)
	}
	l.leavesAs(l.near, external)
	v := l.live()
	l.advertise(0)
	l.eventually("the default route is gone", func() bool { return l.defaults() == 0 })
	l.advertise(1800)
	l.eventually("the default route is back", func() bool { return l.defaults() == 1 })
	v.goesOn()
	l.nothingEnded(external)
	if w := l.status().Warnings; len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
	checkReplay(l.lab)
}

// defaults counts the host's default routes of IPv6.
func (l *lab) defaults() int {
	l.t.Helper()
	routes, err := l.Host.Run(l.t.Context(), "", "ip", "-6", "route", "show", "default")
	l.must(err)
	return strings.Count(routes, "default via")
}

// TestTentativeAddresses: of the addresses that eth0 gets, one is another host's already: it is never external. The other one is
// once that is known.
func TestTentativeAddresses(t *testing.T) {
	l := newLabIn(family.V6, t, topo.Figure3Config{Containers: 1}, "external: 198.51.100.0/24\n")
	taken, free := family.V6.Addr(extra(7)), family.V6.Addr(extra(8))
	l.must(l.Router.AddAddr("wan", netip.PrefixFrom(taken, 64).String()))
	l.detects()
	for _, a := range []netip.Addr{taken, free} {
		l.ip("address add " + netip.PrefixFrom(a, 64).String() + " dev eth0\n")
	}
	l.usable("the free one is in the pool", func(pool []netip.Addr) bool { return slices.Contains(pool, free) })
	l.eventually("the duplicate is found", func() bool { return slices.Contains(l.addresses(unix.IFA_F_DADFAILED, true), taken) })
	l.usable("both are known", func(pool []netip.Addr) bool {
		return slices.Equal(pool, []netip.Addr{family.V6.Addr(topo.HostAddr), free})
	})
}

// TestIPv6Alone: neither the host nor its container has IPv4.
func TestIPv6Alone(t *testing.T) {
	l := placeUplinkLab(t, topo.Figure3Config{IPv6: true}, topo.UplinkConfig{}, "")
	for _, link := range []string{"eth0", "docker0", "net2"} {
		_, err := l.Host.Run(t.Context(), "", "ip", "-4", "address", "flush", "dev", link)
		l.must(err)
	}
	l.must(l.Host.Sysctl("net.ipv4.ip_forward=0"))
	l.Run()
	l.publish(topo.HostAddr, "172.17.0.2")
	l.leavesAs(l.near, topo.HostAddr)
	l.reaches(topo.HostAddr, l.near)
	v := l.live()
	l.Kill()
	v.goesOn()
	l.Run()
	v.goesOn()
	if w := l.status().Warnings; len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
	l.must(l.Host.Sysctl("net.ipv6.conf.all.forwarding=0"))
	l.eventually("a warning", func() bool {
		return slices.ContainsFunc(l.status().Warnings, func(w string) bool { return strings.Contains(w, "sysctl -w net.ipv6.conf.all.forwarding=1") })
	})
	l.must(l.Host.Sysctl("net.ipv6.conf.all.forwarding=1"))
	l.Detach()
	for what, out := range leftovers(l.lab) {
		t.Errorf("%s: %s", what, out)
	}
}

const gatewayMode6 = "com.docker.network.bridge.gateway_mode_ipv6"

// TestDockerIPv6LeftAlone: where Docker only routes IPv6, so does conenat, and says so; --inside translates it all the same.
func TestDockerIPv6LeftAlone(t *testing.T) {
	h := newDockerHostIn(family.V6, t, docker.Config{Args: []string{"--ip6tables=false"}})
	h.must(h.Router.AddRoute("172.17.0.0/16", topo.HostAddr.String()))
	for name, subnet := range map[string]string{"routed": "172.20.0.0/16", "isolated": "172.21.0.0/16"} {
		h.must(h.docker.CreateNetwork(t.Context(), docker.NetworkSpec{Name: name, Bridge: "br-" + name, Subnet: subnet,
			Options: map[string]string{gatewayMode6: name}})) // which Docker 20.10 takes for nobody's
	}
	c := h.run(docker.Spec{Name: "plain"})
	h.eventually("each is listed", func() bool {
		list := h.Client("networks")
		return strings.Contains(list, "IPv6: gateway mode routed ("+gatewayMode6+")") && strings.Contains(list, "IPv6: gateway mode isolated") &&
			strings.Contains(list, "IPv6: dockerd has no NAT for it (--ip6tables)")
	})
	h.untranslatedOrAs(c, 20000, c.Addr)
	four := probe.InFamily(family.V4, c.NS)
	if err := h.dial(four, at(topo.Peer1Addr, h.serveIn(family.V4, h.Peer1, 8081))).Echo("IPv4"); err != nil {
		t.Error(err)
	}
	if b := h.Bindings(); !slices.ContainsFunc(b, func(b harness.Binding) bool { return strings.HasPrefix(b.Internal, "172.17.0.2:") }) {
		t.Errorf("IPv4 of the same network is not translated: %+v", b)
	}
	h.Stop()
	h.RunWith("--docker", "--inside", "docker0")
	h.untranslatedOrAs(c, 20002, h.family.Addr(topo.HostAddr))
}

// untranslatedOrAs: whom peer 1 sees a container's datagrams as.
func (h *dockerHost) untranslatedOrAs(c *docker.Container, port uint16, want netip.Addr) {
	h.t.Helper()
	peer := h.udp(h.peer1, 3478)
	defer peer.Close()
	if from := h.heard(h.udp(c, port), h.family.At(topo.Peer1Addr, 3478), peer); from != at(want, port) {
		h.t.Errorf("seen as %s, want %s", from, want)
	}
}

// serveIn is serve in a family, and gives the port.
func (l *lab) serveIn(fam family.Family, ns *topo.NS, port uint16) uint16 {
	l.t.Helper()
	return l.serve(probe.InFamily(fam, ns), port).Port()
}
