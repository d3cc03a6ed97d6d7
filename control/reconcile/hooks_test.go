// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/dataplane"
)

// TestHooksTakenAway: they are back within a second although nothing announces it, which is told once.
func TestHooksTakenAway(t *testing.T) {
	tests := []struct {
		name  string
		index int
	}{
		{"eth0", 2},
		{"docker0", 3},
		{"veth0", 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, config.Config{})
				var told []string
				w.tell = func(e dataplane.Event) { told = append(told, string(e.Type)+" "+e.Link) }
				w.start(t)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- w.Run(ctx) }()
				synctest.Wait()
				w.dp.TakeHooks(tt.index)
				time.Sleep(hookPeriod + time.Millisecond)
				synctest.Wait()
				links, _ := w.dp.Links()
				for _, l := range links {
					if l.Mechanism == "" {
						t.Errorf("no hooks on %s after %v", l.Name, hookPeriod)
					}
				}
				time.Sleep(2 * resyncPeriod)
				synctest.Wait()
				cancel()
				<-done
				if diff := cmp.Diff([]string{"link.reattached " + tt.name}, told); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// TestRetriesGoOnBesideTheHooks: looking for hooks each second does not put off what waits for longer.
func TestRetriesGoOnBesideTheHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, config.Config{})
		w.start(t)
		tries := 0
		w.dp.Fail = func(op string) error {
			if op != "attach outside 2" {
				return nil
			}
			tries++
			return context.DeadlineExceeded
		}
		w.mu.Lock()
		w.stale[2] = true
		w.mu.Unlock()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		w.host.changes <- struct{}{}
		time.Sleep(retryFirst*(1+2+4+8+16) + time.Millisecond) // the last of them after 4 s
		synctest.Wait()
		cancel()
		<-done
		if tries < 6 {
			t.Errorf("tried %d times, want 6", tries)
		}
	})
}
