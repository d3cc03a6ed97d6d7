// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/docker"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// TestDockerLabelEnable: what is excluded is Docker's, its published port as well, beside what is translated.
func TestDockerLabelEnable(t *testing.T) {
	h := newDockerHost(t, docker.Config{})
	h.must(h.docker.CreateNetwork(t.Context(), docker.NetworkSpec{Name: "off", Bridge: "br-off", Labels: map[string]string{"conenat.enable": "false"}}))
	disabled := map[string]string{"conenat.enable": "false"}
	ours := h.run(docker.Spec{Name: "ours", Publish: map[string]string{"80/tcp": ":8080"}})
	h.publishes("the translated container runs", binding("tcp", at(topo.HostAddr, 8080), ours.Addr, 80))
	h.serve(ours, 80)
	peer := h.udp(h.peer1, 3478)
	for i, c := range []*docker.Container{
		h.run(docker.Spec{Name: "theirs", Labels: disabled, Publish: map[string]string{"80/tcp": ":8081"}}),
		h.run(docker.Spec{Name: "off", Network: "off", Publish: map[string]string{"80/tcp": ":8082"}}),
	} {
		if c.Name == "theirs" {
			h.eventually("it is known to be excluded", func() bool { return strings.Contains(h.Log(), "put container "+c.Addr.String()) })
		}
		h.serve(c, 80)
		h.reaches(c.Name, at(topo.HostAddr, uint16(8081+i)))
		port := uint16(20000 + i)
		socket := h.udp(c, port)
		if from := h.heard(socket, at(topo.Peer1Addr, 3478), peer); from != at(topo.HostAddr, port) {
			t.Errorf("%s is seen as %s", c.Name, from)
		}
		if from := h.heard(peer, at(topo.HostAddr, port), socket); from != at(topo.Peer1Addr, 3478) {
			t.Errorf("%s is answered from %s", c.Name, from)
		}
		if n := conntracked(h.lab, 3478); n != i+1 {
			t.Errorf("%s: conntrack has %d entries of Docker's masquerade, want %d", c.Name, n, i+1)
		}
		if err := h.dial(c, at(topo.HostAddr, 8080)).Echo("to the translated container's port"); err != nil {
			t.Errorf("%s to the translated container's port: %v", c.Name, err)
		}
		if err := h.dial(ours, at(topo.HostAddr, uint16(8081+i))).Echo("to the port of the excluded one"); err != nil {
			t.Errorf("the translated container to %s's port: %v", c.Name, err)
		}
	}
	for _, b := range h.Bindings() {
		if !strings.HasPrefix(b.Internal, ours.Addr.String()+":") {
			t.Errorf("binding %+v", b)
		}
	}
}

// TestDockerLabelFiltering: a full cone beside one that is address-dependent, by the label of the container, of the
// network, and by protocol.
func TestDockerLabelFiltering(t *testing.T) {
	h := newDockerHost(t, docker.Config{})
	open := map[string]string{"conenat.filtering": "endpoint-independent"}
	strict := map[string]string{"conenat.filtering": "udp=address-and-port-dependent"}
	h.must(h.docker.CreateNetwork(t.Context(), docker.NetworkSpec{Name: "open", Bridge: "br-open", Labels: open}))
	for i, tt := range []struct {
		name string
		spec docker.Spec
		want []string
	}{
		{"by default", docker.Spec{}, []string{"asked", "its address"}},
		{"container", docker.Spec{Labels: open}, []string{"asked", "everybody", "its address"}},
		{"container, stricter", docker.Spec{Labels: strict}, []string{"asked"}},
		{"network", docker.Spec{Network: "open"}, []string{"asked", "everybody", "its address"}},
		{"container against its network", docker.Spec{Network: "open", Labels: strict}, []string{"asked"}},
	} {
		before := strings.Count(h.Log(), "put container")
		c := h.run(tt.spec)
		h.eventually("the container is known", func() bool { return strings.Count(h.Log(), "put container") > before })
		if got := h.admitted(c, uint16(20000+i)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: admits %q, want %q", tt.name, got, tt.want)
		}
	}
	if n := h.networks()["open"]; n.Filtering.UDP != "endpoint-independent" || n.Filtering.TCP != "endpoint-independent" {
		t.Errorf("%+v", n)
	}
}

// TestDockerLabelMapping: a symmetric network beside one that is not, by the network's label, for UDP alone.
func TestDockerLabelMapping(t *testing.T) {
	h := newDockerHost(t, docker.Config{})
	symmetric := map[string]string{"conenat.mapping": "udp=address-and-port-dependent"}
	h.must(h.docker.CreateNetwork(t.Context(), docker.NetworkSpec{Name: "symmetric", Bridge: "br-symmetric", Labels: symmetric}))
	h.warns("network symmetric: label conenat.mapping: address-and-port-dependent mapping of udp", "RFC 4787 REQ-1")
	if n := h.networks()["symmetric"]; n.Mapping != (behaviors{"address-and-port-dependent", "endpoint-independent"}) {
		t.Errorf("%+v", n)
	}
	peers := []probe.Socket{h.udp(h.peer1, 3478), h.udp(h.peer1, 3479), h.udp(h.peer2, 3478)}
	for i, network := range []string{"", "symmetric"} {
		socket := h.udp(h.run(docker.Spec{Network: network}), uint16(20000+i))
		var from []netip.AddrPort
		for j, to := range []netip.AddrPort{at(topo.Peer1Addr, 3478), at(topo.Peer1Addr, 3479), at(topo.Peer2Addr, 3478)} {
			from = append(from, h.heard(socket, to, peers[j]))
		}
		slices.SortFunc(from, netip.AddrPort.Compare)
		if n := len(slices.Compact(slices.Clone(from))); n != []int{1, 3}[i] {
			t.Errorf("network %q: three peers see %v", network, from)
		}
	}
	remotes := 0
	for _, b := range h.Bindings() {
		if b.Remote != "" {
			remotes++
		}
	}
	if remotes != 3 {
		t.Errorf("%d bindings towards a remote, want 3: %+v", remotes, h.Bindings())
	}
}

// TestDockerLabelExclude: a network's containers reach a destination untranslated, by its label; the default network's do not, and
// the label's network is translated towards all others.
func TestDockerLabelExclude(t *testing.T) {
	h := newDockerHost(t, docker.Config{})
	label := map[string]string{"conenat.exclude": topo.Peer1Addr.String() + "/32, 192.0.2.0/24"}
	h.must(h.docker.CreateNetwork(t.Context(), docker.NetworkSpec{Name: "lan", Bridge: "br-lan", Labels: label}))
	near, far := h.udp(h.peer1, 3478), h.udp(h.peer2, 3478)
	for i, network := range []string{"", "lan"} {
		c, port := h.run(docker.Spec{Network: network}), uint16(20000+i)
		socket, own := h.udp(c, port), at(topo.HostAddr, port)
		if network == "lan" {
			own = at(c.Addr, port)
			h.must(h.Router.AddRoute(c.Addr.String()+"/32", topo.HostAddr.String()))
			h.eventually("the label is followed", func() bool {
				return strings.Contains(h.Client("networks", "-o", "json"), topo.Peer1Addr.String()+"/32")
			})
		}
		if from := h.heard(socket, at(topo.Peer1Addr, 3478), near); from != own {
			t.Errorf("network %q: the excluded peer sees %s, want %s", network, from, own)
		}
		if from := h.heard(near, own, socket); from != at(topo.Peer1Addr, 3478) {
			t.Errorf("network %q: answered from %s", network, from)
		}
		if from := h.heard(socket, at(topo.Peer2Addr, 3478), far); from != at(topo.HostAddr, port) {
			t.Errorf("network %q: the other peer sees %s", network, from)
		}
	}
}

// admitted says who gets in to a container's endpoint, after it has sent to peer 1's port 3478.
func (h *dockerHost) admitted(c *docker.Container, port uint16) (list []string) {
	h.t.Helper()
	asked, other, stranger := h.udp(h.peer1, 3478), h.udp(h.peer1, 0), h.udp(h.peer2, 0)
	defer asked.Close()
	socket := h.udp(c, port)
	mapped := h.heard(socket, at(topo.Peer1Addr, 3478), asked)
	filtered := h.Counter("dropped_filtered")
	senders := map[string]probe.Socket{"asked": asked, "its address": other, "everybody": stranger}
	for text, s := range senders {
		h.send(s, mapped, text)
	}
	h.eventually("all have arrived or are filtered", func() bool {
		if p, err := socket.Receive(10 * time.Millisecond); err == nil {
			list = append(list, p.Text)
		}
		return len(list)+int(h.Counter("dropped_filtered")-filtered) == len(senders)
	})
	slices.Sort(list)
	return list
}

// TestDockerLabelsRefused: what cannot be used is named, and the container works as if it were not there.
func TestDockerLabelsRefused(t *testing.T) {
	h := newDockerHost(t, docker.Config{})
	h.must(h.docker.CreateNetwork(t.Context(), docker.NetworkSpec{Name: "user", Bridge: "br-user", Labels: map[string]string{"conenat.mapping": "banana"}}))
	c := h.run(docker.Spec{Name: "web", Network: "user", Publish: map[string]string{"80/tcp": ":8080"}, Labels: map[string]string{
		"conenat.mapping": "address-dependent", "conenat.external": "198.51.100.7-", "conenat.enable": "no",
		"conenat.filtering": "udp=open", "conenat.filter": "none", "other.label": "x"}})
	h.publishes("it runs", binding("tcp", at(topo.HostAddr, 8080), c.Addr, 80))
	want := []string{
		`container web: ignore label conenat.enable="no": want true or false`,
		`container web: ignore label conenat.external="198.51.100.7-": "198.51.100.7-" are no external addresses: want ADDR, ADDR/BITS or ADDR-ADDR, as 203.0.113.8-203.0.113.15`,
		`container web: ignore label conenat.filter="none": no such label: want conenat.enable, conenat.filtering, conenat.mapping, conenat.max-ports, conenat.max-sessions, conenat.block-size, conenat.refusal, conenat.mss, conenat.exclude, conenat.external, conenat.one-to-one, conenat.mode or conenat.external-prefix`,
		`container web: ignore label conenat.filtering="udp=open": unknown behaviour "open": want endpoint-independent, address-dependent or address-and-port-dependent`,
		`container web: ignore label conenat.mapping="address-dependent": mapping is a network's: give the label to the network`,
		`network user: ignore label conenat.mapping="banana": unknown behaviour "banana": want endpoint-independent, address-dependent or address-and-port-dependent`,
	}
	h.eventually("status warns of each", func() bool { return slices.Equal(want, h.followed().Warnings) })
	h.eventually("the log says each", func() bool { return containsAll(strings.ReplaceAll(h.Log(), `\"`, `"`), want) })
	h.serve(c, 80)
	h.reaches("the published port", at(topo.HostAddr, 8080))
	if got := h.admitted(c, 20000); !slices.Equal(got, []string{"asked", "its address"}) {
		t.Errorf("admits %q", got)
	}
	h.must(c.Remove(t.Context()))
	h.eventually("only the network's label is left", func() bool { return slices.Equal(h.followed().Warnings, want[5:]) })
}
