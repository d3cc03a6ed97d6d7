// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net"
	"net/netip"

	"github.com/conenat/conenat/tests/family"
)

// Place is where sockets are opened: a *topo.NS, or Here.
type Place interface {
	Do(func() error) error
}

// Here is the network namespace of this process.
type Here struct{}

// Do runs fn.
func (Here) Do(fn func() error) error { return fn() }

// In is the Host at a place that this process can open sockets in, with IPv4.
func In(place Place) Host { return InFamily(family.V4, place) }

// InFamily is In with a family's sockets.
func InFamily(f family.Family, place Place) Host { return local{place, f} }

type local struct {
	place  Place
	family family.Family
}

func (l local) ListenUDP(port uint16) (Socket, error) {
	var conn *net.UDPConn
	err := l.place.Do(func() (err error) {
		conn, err = net.ListenUDP(l.family.Network("udp"), &net.UDPAddr{Port: int(port)})
		return err
	})
	if err != nil {
		return nil, err
	}
	return newUDP(conn), nil
}

func (l local) DialTCP(localPort uint16, server netip.AddrPort) (Conn, error) {
	conn, err := dialTCP(l.place, localPort, server, Timeout)
	if err != nil {
		return nil, err
	}
	return newTCPClient(conn), nil
}

func (l local) ServeTCP(port uint16) (Server, error) {
	var listener net.Listener
	err := l.place.Do(func() (err error) {
		listener, err = listenTCP(l.family.Network("tcp"), port)
		return err
	})
	if err != nil {
		return nil, err
	}
	return serveTCP(listener), nil
}

func (l local) Ping(spec PingSpec) (Pinger, error) {
	var conn *net.IPConn
	err := l.place.Do(func() (err error) {
		conn, err = net.DialIP(messages[family.Of(spec.To)].network, nil, &net.IPAddr{IP: spec.To.AsSlice()})
		return err
	})
	if err != nil {
		return nil, err
	}
	return startPing(conn, spec), nil
}
