// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/topo"
)

// sendsFrom sends a datagram from each port of a range, out of a container.
func (l *lab) sendsFrom(container, first, ports int) {
	at := l.family.At
	l.t.Helper()
	err := l.Containers[container].Do(func() error {
		for port := first; port < first+ports; port++ {
			c, err := net.DialUDP(l.family.Network("udp"), &net.UDPAddr{Port: port}, net.UDPAddrFromAddrPort(at(topo.Peer1Addr, 9)))
			if err != nil {
				return fmt.Errorf("port %d: %w", port, err)
			}
			_, err = c.Write([]byte("x"))
			if err := errors.Join(err, c.Close()); err != nil {
				return fmt.Errorf("port %d: %w", port, err)
			}
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// network is how conenat shows the first one.
func (l *lab) network() api.Network {
	l.t.Helper()
	var list []api.Network
	if err := json.Unmarshal([]byte(l.Client("networks", "-o", "json")), &list); err != nil || len(list) == 0 {
		l.t.Fatalf("%v: networks %+v", err, list)
	}
	return list[0]
}

// told waits for an event of a type, and gives the first one.
func (l *lab) told(typ string) (e api.Event) {
	l.t.Helper()
	l.eventually("event "+typ, func() bool {
		line, _, found := strings.Cut(l.Client("events", "--since", "all", "--type", typ, "-o", "json"), "\n")
		return found && json.Unmarshal([]byte(line), &e) == nil
	})
	return e
}

// TestOneContainerCannotTakeAllPorts: by what holds where nothing is configured. The second one works on, and so does what the first
// one has; an event, status and networks say so.
func TestOneContainerCannotTakeAllPorts(t *testing.T) {
	family.Each(t, testOneContainerCannotTakeAllPorts)
}

func testOneContainerCannotTakeAllPorts(t *testing.T, fam family.Family) {
	at := fam.At
	const limit = 16384
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 2}, "")
	peer := l.udp(l.peer1, 3478)
	first := l.udp(l.containers[0], 5000)
	l.send(first, at(topo.Peer1Addr, 3478), "mine")
	l.receives(peer, "mine")

	l.sendsFrom(0, 10000, limit+500)
	n := l.network()
	if len(n.Hosts) != 1 || n.Hosts[0].Ports != limit || n.Usage.Ports != limit || n.Limits.PortsPerHost != limit {
		t.Errorf("%+v", n)
	}
	e := l.told("quota.exceeded")
	if host, err := netip.ParseAddrPort(e.Internal); err != nil || e.Limit != "host_ports" || host.Addr().String() != fam.Text("172.17.0.2") {
		t.Errorf("%+v", e)
	}
	if status := l.Client("status"); !strings.Contains(status, fmt.Sprintf("has %d of %d ports", limit, limit)) {
		t.Errorf("status: %s", status)
	}
	if got := l.Counter("dropped_host_ports"); got < 500 {
		t.Errorf("%d packets were dropped for the limit, want 500 or more", got)
	}
	l.send(first, at(topo.Peer1Addr, 3478), "still")
	l.receives(peer, "still")
	l.send(l.udp(l.containers[1], 5000), at(topo.Peer1Addr, 3478), "other")
	l.receives(peer, "other")
}

// TestPortBlocks: one event when a container gets its block, and one when it gives it back.
func TestPortBlocks(t *testing.T) { family.Each(t, testPortBlocks) }

func testPortBlocks(t *testing.T, fam family.Family) {
	at := fam.At
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 2}, quick+"block_size: 256\n")
	peer := l.udp(l.peer1, 3478)
	l.send(l.udp(l.containers[0], 5000), at(topo.Peer1Addr, 3478), "mine")
	from := l.receives(peer, "mine")
	l.sendsFrom(0, 10000, 100)
	allocated := l.told("block.allocated")
	var low, high uint16
	if _, err := fmt.Sscanf(allocated.Ports, "%d-%d", &low, &high); err != nil || from.Port() < low || from.Port() > high || high-low != 255 {
		t.Errorf("port %d of %+v: %v", from.Port(), allocated, err)
	}
	for _, b := range l.Bindings() {
		external, err := netip.ParseAddrPort(b.External)
		if err != nil || b.Protocol == "udp" && (external.Port() < low || external.Port() > high) {
			t.Errorf("%+v is not of the block %s: %v", b, allocated.Ports, err)
		}
	}
	released := l.told("block.released")
	released.Time, allocated.Time, released.Type = time.Time{}, time.Time{}, allocated.Type
	if released != allocated {
		t.Errorf("released %+v, allocated %+v", released, allocated)
	}
}
