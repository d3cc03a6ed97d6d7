// SPDX-License-Identifier: Apache-2.0

// Package changes owns how parts of the host are followed: a netlink subscription that is made anew when it breaks,
// and bursts of messages that are passed on as one "something changed".
//
// It never looks at what a message says: who hears of a change reads the truth anew.
//
// Lifecycle: Follow runs until its context ends.
package changes

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// resubscribe is how long to wait before a new subscription after one that could not be had.
const resubscribe = time.Second

// Listener is one subscription: it closes ready, unless that is nil, once it has subscribed, tells raw of every
// message, and returns when the subscription breaks or ctx ends.
type Listener func(ctx context.Context, raw chan<- struct{}, ready chan<- struct{}) error

// Follow listens until ctx ends, whose error it returns. ready is closed once the first subscription stands; failed hears
// of every one that broke, and is made anew. What raw is told within period after the first message of a burst is one
// change for out.
func Follow(ctx context.Context, raw chan struct{}, out chan<- struct{}, period time.Duration, listen Listener,
	ready chan<- struct{}, failed func(error)) error {
	go debounce(ctx, raw, out, period)
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
		Tell(raw)
	}
}

// Receive tells raw of a socket's messages until it breaks or is closed; what names it in the error.
func Receive(socket *nl.NetlinkSocket, raw chan<- struct{}, what string) error {
	for {
		_, _, err := socket.Receive()
		switch {
		case err == nil, errors.Is(err, unix.ENOBUFS): // an overflow says that there was a change
			Tell(raw)
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		default:
			return fmt.Errorf("read changes of %s: %w", what, err)
		}
	}
}

// Tell sends to a channel of room for one, unless it holds one already.
func Tell(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func debounce(ctx context.Context, raw <-chan struct{}, out chan<- struct{}, period time.Duration) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-raw:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(period):
		}
		select {
		case <-raw:
		default:
		}
		Tell(out)
	}
}
