// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/reconcile"
	"github.com/conenat/conenat/control/watch"
	"github.com/conenat/conenat/dataplane"
)

// Dataplane is what the daemon needs of one.
type Dataplane interface {
	reconcile.Dataplane
	watch.Source
	Counters() ([]dataplane.Counter, error)
	Capacity() dataplane.Capacity
	Usage() (dataplane.Usage, error)
	NetworkUsages() (map[string]dataplane.NetworkUsage, error)
	Features() dataplane.Features
	Close() error
}

// Host is what the daemon needs of the host.
type Host interface {
	reconcile.Host
	Watch(ctx context.Context, ready chan<- struct{}, failed func(error)) error
	WatchHops(ctx context.Context, ready chan<- struct{}, failed func(error)) error
}

// Docker is what the daemon needs of the Engine.
type Docker interface {
	reconcile.Docker
	Watch(ctx context.Context, ready chan<- struct{}) error
}

// Firewall is what the daemon needs of the host's rules.
type Firewall interface {
	reconcile.Firewall
	Watch(ctx context.Context, ready chan<- struct{}, failed func(error)) error
}

// Exceptions is conenat's nftables table.
type Exceptions interface {
	reconcile.Exceptions
	Remove() (bool, error)
}

// Deps is the world that a daemon runs in.
type Deps struct {
	Version    string
	Log        *slog.Logger
	Open       func() (Dataplane, error)
	Remove     func() error // takes away what Open made
	Host       Host
	Exceptions Exceptions
	Docker     Docker // nil without Docker
	Firewall   Firewall
	Conntrack  reconcile.Conntrack
}

// Run is the daemon. It returns nil when ctx ends it, and leaves the dataplane at work then.
func Run(ctx context.Context, cfg config.Config, deps Deps) error {
	for _, w := range cfg.Warnings {
		deps.Log.Warn(w)
	}
	outer := ctx
	group, ctx := errgroup.WithContext(ctx)
	parts, cancel := context.WithCancel(ctx)
	defer cancel()
	dp, err := begin(parts, group, cfg, deps)
	if err != nil {
		cancel()
		_ = group.Wait() // what it says is that it was cancelled
		if outer.Err() != nil && errors.Is(err, outer.Err()) {
			return nil
		}
		return err
	}
	err = errors.Join(group.Wait(), dp.Close())
	if outer.Err() != nil && !errors.Is(err, errFailed) {
		deps.Log.Info("stopped: the dataplane goes on translating; `conenat detach` takes it away")
		return nil
	}
	return err
}

// begin is the start: either everything runs then, or nothing does and nothing is left.
func begin(ctx context.Context, group *errgroup.Group, cfg config.Config, deps Deps) (Dataplane, error) {
	if err := follow(ctx, group, deps.Log, "the host's network", deps.Host.Watch); err != nil {
		return nil, err
	}
	if cfg.XDP.Mode == config.XDPGateway {
		if err := follow(ctx, group, deps.Log, "the host's routes and neighbours", deps.Host.WatchHops); err != nil {
			return nil, err
		}
	}
	if deps.Firewall != nil {
		if err := follow(ctx, group, deps.Log, "the host's firewall rules", deps.Firewall.Watch); err != nil {
			return nil, err
		}
	}
	if deps.Docker != nil {
		if err := followDocker(ctx, group, deps.Docker); err != nil {
			return nil, err
		}
	}
	host, err := deps.Host.Snapshot()
	if err != nil {
		return nil, err
	}
	if err := reconcile.Check(cfg, host); err != nil {
		return nil, err
	}
	dp, err := deps.Open()
	if err != nil {
		return nil, err
	}
	d, err := start(cfg, deps, dp)
	if err != nil {
		return nil, errors.Join(err, undo(deps, dp))
	}
	d.serve(ctx, group)
	return dp, nil
}

// errFailed marks what ended the daemon other than its context.
var errFailed = errors.New("daemon failed")

// follow listens to a part of the host before anything is read from it, so that no change is missed.
func follow(ctx context.Context, group *errgroup.Group, log *slog.Logger, what string,
	watch func(context.Context, chan<- struct{}, func(error)) error) error {
	ready, failed := make(chan struct{}), make(chan error, 1)
	report := func(err error) {
		log.Error("following "+what+" failed: trying again", "error", err)
		select {
		case failed <- err:
		default:
		}
	}
	group.Go(func() error { return watch(ctx, ready, report) })
	select {
	case <-ready:
		return nil
	case err := <-failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// followDocker waits for the first answer, or for the first failure to get one: the rest goes on without Docker.
func followDocker(ctx context.Context, group *errgroup.Group, engine Docker) error {
	ready := make(chan struct{})
	group.Go(func() error { return engine.Watch(ctx, ready) })
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// daemon is the parts of a running daemon.
type daemon struct {
	cfg      config.Config
	deps     Deps
	dp       Dataplane
	loop     *reconcile.Reconciler
	watcher  *watch.Watcher
	listener net.Listener
	since    time.Time
}

// start makes the parts and the first pass.
func start(cfg config.Config, deps Deps, dp Dataplane) (*daemon, error) {
	d := &daemon{cfg: cfg, deps: deps, dp: dp, since: time.Now(), watcher: watch.New(dp, watch.DefaultHistory, deps.Log)}
	d.loop = reconcile.New(cfg, d.world())
	var err error
	if d.listener, err = api.Listen(cfg.Socket); err != nil {
		return nil, err
	}
	if err = d.watcher.Start(); err == nil {
		err = d.begin()
	}
	if err != nil {
		d.listener.Close()
		return nil, err
	}
	return d, nil
}

func (d *daemon) world() reconcile.World {
	w := reconcile.World{Dataplane: d.dp, Host: d.deps.Host, Exceptions: d.deps.Exceptions, Firewall: d.deps.Firewall,
		Conntrack: d.deps.Conntrack, Tell: d.watcher.Tell, Log: d.deps.Log}
	if d.deps.Docker != nil { // not a nil pointer in an interface
		w.Docker = d.deps.Docker
	}
	return w
}

// begin makes the first pass. Where it fails, and nothing was adopted, the table goes that it has made; before
// it there is none of this daemon's.
func (d *daemon) begin() error {
	err := d.loop.Start()
	if err == nil || d.dp.Adopted() {
		return err
	}
	_, removeErr := d.deps.Exceptions.Remove()
	return errors.Join(err, removeErr)
}

// undo takes a start that failed back, unless it adopted what was there before.
func undo(deps Deps, dp Dataplane) error {
	adopted := dp.Adopted()
	err := dp.Close()
	if adopted {
		deps.Log.Warn("the start failed: what an earlier daemon attached is still at work")
		return err
	}
	return errors.Join(err, deps.Remove())
}

func (d *daemon) serve(ctx context.Context, group *errgroup.Group) {
	part := func(name string, run func() error) {
		group.Go(func() error {
			err := run()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%w: %s: %w", errFailed, name, err)
		})
	}
	part("loop", func() error { return d.loop.Run(ctx) })
	part("next hops", func() error { return d.loop.FollowHops(ctx) })
	part("events", func() error { return d.watcher.Run(ctx) })
	part("api", func() error { return api.Serve(ctx, d.listener, d, d.deps.Log) })
	d.deps.Log.Info("ready", "version", d.deps.Version, "pid", os.Getpid(), "socket", d.cfg.Socket, "state_dir", d.cfg.StateDir,
		"adopted", d.dp.Adopted(), "mechanism", d.mechanism(), "inside", d.insideNames(), "outside", d.outsideNames(), "path", d.loop.View().Path.String())
}
