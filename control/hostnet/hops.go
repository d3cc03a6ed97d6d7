// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/control/changes"
)

// What a next hop depends on: routes, rules, nexthop objects, links (the kernel announces no IPv4 route that ends with its link)
// and neighbours.
var hopGroups = []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_NEXTHOP,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE}

// Hops is sent to when the next hop of a route, or its MAC, may be another one.
func (h *Host) Hops() <-chan struct{} { return h.hops }

// WatchHops is Watch for Hops.
func (h *Host) WatchHops(ctx context.Context, ready chan<- struct{}, failed func(error)) error {
	return changes.Follow(ctx, make(chan struct{}, 1), h.hops, debounce, listenHops, ready, failed)
}

// listenHops is one subscription.
func listenHops(ctx context.Context, raw chan<- struct{}, ready chan<- struct{}) error {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, hopGroups...)
	if err != nil {
		return fmt.Errorf("subscribe to the kernel's routes and neighbours: %w", err)
	}
	defer socket.Close()
	stop := context.AfterFunc(ctx, socket.Close) // ends Receive
	defer stop()
	known, err := listNeighbours()
	if err != nil {
		return err
	}
	if ready != nil {
		close(ready)
	}
	for {
		messages, _, err := socket.Receive()
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		case errors.Is(err, unix.ENOBUFS): // something was missed
			if known, err = listNeighbours(); err != nil {
				return err
			}
			changes.Tell(raw)
		case err != nil:
			return fmt.Errorf("read changes of routes and neighbours: %w", err)
		}
		for _, m := range messages {
			if known.moved(m) {
				changes.Tell(raw)
			}
		}
	}
}

// neighbours are the MACs of those that packets can be sent to. Most messages tell of one that was confirmed, or is about to be.
type neighbours map[neighbour]string

type neighbour struct {
	link    int
	address netip.Addr
}

// usable: the kernel sends to neighbours in these states without asking first (NUD_VALID of include/net/neighbour.h).
const usable = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY

func listNeighbours() (neighbours, error) {
	list, err := retry(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the host's neighbours: %w", err)
	}
	known := neighbours{}
	for _, n := range list {
		known.put(n)
	}
	return known, nil
}

// put says whether a neighbour that packets could be sent to has another MAC, or none.
func (known neighbours) put(n netlink.Neigh) bool {
	address, ok := netip.AddrFromSlice(n.IP)
	if !ok { // a bridge's forwarding entry
		return false
	}
	key := neighbour{n.LinkIndex, address.Unmap()}
	before, was := known[key]
	if n.State&usable == 0 {
		delete(known, key)
		return was
	}
	known[key] = string(n.HardwareAddr)
	return was && before != known[key]
}

// moved says whether after a message a next hop may be another one.
func (known neighbours) moved(m syscall.NetlinkMessage) bool {
	if m.Header.Type != unix.RTM_NEWNEIGH && m.Header.Type != unix.RTM_DELNEIGH {
		return true
	}
	n, err := netlink.NeighDeserialize(m.Data)
	if err != nil {
		return true
	}
	if m.Header.Type == unix.RTM_DELNEIGH {
		n.State = unix.NUD_NONE
	}
	return known.put(*n)
}
