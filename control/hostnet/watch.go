// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/control/changes"
)

// debounce: a container's start is a burst of some ten messages; one reaction to all of them.
const debounce = 5 * time.Millisecond

// What a snapshot is made of, and RTNLGRP_TC: another agent that deletes a clsact qdisc or a filter takes hooks
// away. (A TCX link that is detached tells nobody.)
var groups = []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_TC,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV4_NETCONF,
	unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV6_NETCONF}

// Changes is sent to when the host's network may have changed.
func (h *Host) Changes() <-chan struct{} { return h.changes }

// Watch listens until ctx ends. It has subscribed once ready is closed, so that a snapshot taken after that
// misses nothing; failed hears of every subscription that broke (and is made anew).
func (h *Host) Watch(ctx context.Context, ready chan<- struct{}, failed func(error)) error {
	return changes.Follow(ctx, make(chan struct{}, 1), h.changes, debounce, listen, ready, failed)
}

// listen is one subscription.
func listen(ctx context.Context, raw chan<- struct{}, ready chan<- struct{}) error {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, groups...)
	if err != nil {
		return fmt.Errorf("subscribe to the kernel's network changes: %w", err)
	}
	defer socket.Close()
	stop := context.AfterFunc(ctx, socket.Close) // ends Receive
	defer stop()
	if ready != nil {
		close(ready)
	}
	return changes.Receive(socket, raw, "the host's network")
}
