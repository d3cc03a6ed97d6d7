// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// A container's start is a burst of some ten messages; one reaction to all of them.
	debounce = 5 * time.Millisecond
	// How long to wait before a new subscription after one that could not be had.
	resubscribe = time.Second
)

// What a snapshot is made of, and RTNLGRP_TC: another agent that deletes a clsact qdisc or a filter takes hooks
// away. (A TCX link that is detached tells nobody.)
var groups = []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
	unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_TC}

// Changes is sent to when the host's network may have changed.
func (h *Host) Changes() <-chan struct{} { return h.changes }

// Watch listens until ctx ends. It has subscribed once ready is closed, so that a snapshot taken after that
// misses nothing; failed hears of every subscription that broke (and is made anew).
func (h *Host) Watch(ctx context.Context, ready chan<- struct{}, failed func(error)) error {
	raw := make(chan struct{}, 1)
	go h.debounce(ctx, raw)
	for {
		err := listen(ctx, raw, ready)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		ready = nil
		failed(err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(resubscribe):
		}
		poke(raw)
	}
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
	for {
		_, _, err := socket.Receive()
		switch {
		case err == nil, errors.Is(err, unix.ENOBUFS): // an overflow says that there was a change
			poke(raw)
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		default:
			return fmt.Errorf("read the kernel's network changes: %w", err)
		}
	}
}

// debounce passes a burst on as one change, the first one after a few milliseconds.
func (h *Host) debounce(ctx context.Context, raw <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-raw:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(debounce):
		}
		select {
		case <-raw:
		default:
		}
		poke(h.changes)
	}
}

func poke(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
