// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/cost/budget"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/topo"
)

// measure goes through all contenders, or those of these names, each in a lab of its own.
func measure(ctx context.Context, conenat string, progress io.Writer, only ...string) (b budget.Budget, err error) {
	if err := counted(); err != nil {
		return b, err
	}
	if err := undisturbed(); err != nil {
		return b, err
	}
	if err := alignClocks(); err != nil {
		return b, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return b, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	b.Kernel = unix.ByteSliceToString(name.Release[:])
	m := meter{progress: progress, only: only}
	for _, m.family = range []family.Family{family.V4, family.V6} {
		for _, c := range bench.Contenders(conenat) {
			if err := m.inLab(ctx, c, m.trials); err != nil {
				return b, err
			}
		}
		if err := m.inLab(ctx, bench.Expiring(conenat), m.expiry); err != nil {
			return b, err
		}
		for _, c := range bench.Gateways(conenat) {
			if err := m.inLab(ctx, c, m.gateways); err != nil {
				return b, err
			}
		}
	}
	b.Rows = m.rows
	return b, nil
}

// meter collects rows.
type meter struct {
	family   family.Family // in which it measures
	rows     []budget.Row
	progress io.Writer
	only     []string // contenders; none: all
}

// inLab does something with a contender that is started in a lab of its own.
func (m *meter) inLab(ctx context.Context, c bench.Contender, do func(context.Context, *bench.Lab, bench.Contender) error) (err error) {
	if len(m.only) > 0 && !slices.Contains(m.only, c.Name) {
		return nil
	}
	t, err := topo.New()
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, t.Close()); err != nil {
			err = fmt.Errorf("%s, %s: %w", c.Name, m.family, err)
		}
	}()
	l, err := c.Lab(ctx, t, m.family)
	if err != nil {
		return err
	}
	if err := c.Start(ctx, l); err != nil {
		return err
	}
	return do(ctx, l, c)
}

func (m *meter) add(c bench.Contender, name string, cost float64) {
	r := budget.Row{Name: c.Name + "/" + strings.ToLower(m.family.String()) + "/" + name, Instructions: int64(math.Round(cost))}
	fmt.Fprintf(m.progress, "cost: %7d  %s\n", r.Instructions, r.Name)
	m.rows = append(m.rows, r)
}

func (m *meter) expiry(ctx context.Context, l *bench.Lab, c bench.Contender) error {
	cost, err := expiry(l)
	if err != nil {
		return fmt.Errorf("expiry: %w", err)
	}
	m.add(c, udp.name+"/expiry", cost)
	return nil
}

// trials measures all of a contender's, each less what its protocol's packets take where nothing is on the way.
func (m *meter) trials(ctx context.Context, l *bench.Lab, c bench.Contender) error {
	generator := map[string]float64{} // by protocol
	for _, trial := range trialsOf(l, c) {
		protocol := trial.want.Protocol
		if _, known := generator[protocol]; !known {
			var err error
			if generator[protocol], err = trial.nowhere(l).perPacket(ctx); err != nil {
				return fmt.Errorf("%s: the generator alone: %w", trial.name, err)
			}
		}
		all, err := trial.run(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", trial.name, err)
		}
		m.add(c, trial.name, all-generator[protocol])
	}
	return nil
}

// run does the steps and sends the stream.
func (t trial) run(ctx context.Context) (float64, error) {
	for _, s := range t.steps {
		inject, err := newInjector(s.from, 1)
		if err != nil {
			return 0, err
		}
		_, err = inject.send([][]byte{s.packet.frame(s.from)})
		inject.close()
		if err != nil {
			return 0, err
		}
	}
	return t.perPacket(ctx)
}
