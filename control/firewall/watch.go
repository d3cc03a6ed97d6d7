// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/control/changes"
)

const (
	// A container's start is dozens of transactions; one reaction to all of them.
	debounce = 50 * time.Millisecond
	// Legacy iptables announces nothing: how often to look.
	legacyPeriod = 2 * time.Second

	nftablesGroup = 7 // NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h
)

// Changes is sent to when the host's rules may have changed.
func (f *Firewall) Changes() <-chan struct{} { return f.changes }

// Watch listens until ctx ends. It has subscribed once ready is closed, so that an Inspect after that misses
// nothing; failed hears of every subscription that broke (and is made anew), and of legacy rules that cannot
// be read. Changes of legacy iptables' rules are found within two seconds.
func (f *Firewall) Watch(ctx context.Context, ready chan<- struct{}, failed func(error)) error {
	raw := make(chan struct{}, 1)
	legacy := legacyWatch{raw: raw, failed: failed}
	legacy.look() // before ready: what it compares with
	go legacy.run(ctx)
	return changes.Follow(ctx, raw, f.changes, debounce, listen, ready, failed)
}

// listen is one subscription, to nftables and to xfrm, and ends with the first of the two that breaks.
func listen(ctx context.Context, raw chan<- struct{}, ready chan<- struct{}) error {
	rules, err := nl.Subscribe(unix.NETLINK_NETFILTER, nftablesGroup)
	if err != nil {
		return fmt.Errorf("subscribe to changes of the host's nftables rules: %w", err)
	}
	defer rules.Close()
	policies, err := nl.Subscribe(unix.NETLINK_XFRM, nl.XFRMNLGRP_POLICY, nl.XFRMNLGRP_EXPIRE)
	sockets := []*nl.NetlinkSocket{rules, policies}
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		sockets = sockets[:1] // a kernel without xfrm has no policies either
	} else if err != nil {
		return fmt.Errorf("subscribe to changes of the host's xfrm policies: %w", err)
	} else {
		defer policies.Close()
	}
	if ready != nil {
		close(ready)
	}
	return receiveAll(ctx, sockets, raw)
}

func receiveAll(ctx context.Context, sockets []*nl.NetlinkSocket, raw chan<- struct{}) error {
	ended := make(chan error, len(sockets))
	for _, s := range sockets {
		go func() { ended <- changes.Receive(s, raw, "the host's rules") }()
	}
	var err error
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case err = <-ended:
		ended <- err // counted below
	}
	for _, s := range sockets {
		s.Close() // ends receive
	}
	for range sockets {
		<-ended
	}
	return err
}

// legacyWatch compares what the legacy rules are with what they were.
type legacyWatch struct {
	raw    chan<- struct{}
	failed func(error)
	last   [sha256.Size]byte
	told   string // the error that failed has heard of
}

func (l *legacyWatch) run(ctx context.Context) {
	tick := time.NewTicker(legacyPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.look()
		}
	}
}

// look pokes also when rules cannot be read any more, or again: Inspect then says so.
func (l *legacyWatch) look() {
	now, err := legacyState()
	told := ""
	if err != nil {
		told = err.Error()
	}
	if now != l.last || told != l.told {
		changes.Tell(l.raw)
	}
	if err != nil && told != l.told {
		l.failed(err)
	}
	l.last, l.told = now, told
}

var counters = regexp.MustCompile(`(?m)\[\d+:\d+\]$|^#.*$`)

// legacyState is a digest of the legacy rules without their counters and times; zero: there are none.
func legacyState() (digest [sha256.Size]byte, err error) {
	var text []byte
	for _, f := range []*family{ipv4, ipv6} {
		of, err := f.legacyText()
		if err != nil {
			return digest, err
		}
		text = append(text, of...)
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return digest, nil
	}
	return sha256.Sum256(counters.ReplaceAll(text, nil)), nil
}
