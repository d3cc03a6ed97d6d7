// SPDX-License-Identifier: Apache-2.0

package changes

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A burst is one change, and a subscription that breaks is made anew, with a change for what it may have missed.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		raw, out, ready := make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
		broken := errors.New("broken")
		var failures []error
		subscriptions := 0
		listen := func(ctx context.Context, raw chan<- struct{}, ready chan<- struct{}) error {
			subscriptions++
			if subscriptions == 1 {
				close(ready)
				for range 100 {
					Tell(raw)
				}
				time.Sleep(time.Minute)
				return broken
			}
			<-ctx.Done()
			return ctx.Err()
		}
		done := make(chan error)
		go func() {
			done <- Follow(ctx, raw, out, 5*time.Millisecond, listen, ready, func(err error) { failures = append(failures, err) })
		}()
		<-ready
		start := time.Now()
		<-out
		if after := time.Since(start); after != 5*time.Millisecond {
			t.Errorf("the burst is told after %v", after)
		}
		<-out
		if after := time.Since(start); after != time.Minute+resubscribe+5*time.Millisecond {
			t.Errorf("the new subscription is told after %v", after)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Follow returns %v", err)
		}
		if len(failures) != 1 || subscriptions != 2 {
			t.Errorf("%d subscriptions, failures %v", subscriptions, failures)
		}
	})
}
