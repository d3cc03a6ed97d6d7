// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/cost/budget"
	"github.com/conenat/conenat/tests/topo"
)

// family is the first part of a row's name, after the contender.
const family = "ipv4"

// measure goes through all contenders, each in a lab of its own.
func measure(ctx context.Context, conenat string, progress io.Writer) (b budget.Budget, err error) {
	if err := counted(); err != nil {
		return b, err
	}
	if err := undisturbed(); err != nil {
		return b, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return b, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	b.Kernel = unix.ByteSliceToString(name.Release[:])
	for _, c := range bench.Contenders(conenat) {
		rows, err := measureContender(ctx, c, progress)
		if err != nil {
			return b, fmt.Errorf("%s: %w", c.Name, err)
		}
		b.Rows = append(b.Rows, rows...)
	}
	return b, nil
}

func measureContender(ctx context.Context, c bench.Contender, progress io.Writer) (rows []budget.Row, err error) {
	t, err := topo.New()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	l, err := bench.NewLab(ctx, t)
	if err != nil {
		return nil, err
	}
	if err := c.Start(ctx, l); err != nil {
		return nil, err
	}
	add := func(name string, cost float64, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		r := budget.Row{Name: c.Name + "/" + family + "/" + name, Instructions: int64(cost + 0.5)}
		fmt.Fprintf(progress, "cost: %-50s %7d\n", r.Name, r.Instructions)
		rows = append(rows, r)
		return nil
	}
	if c.Sweeps { // first: it counts all sessions that there are
		cost, err := expiry(ctx, l)
		if err := add(udp.name+"/expiry", cost, err); err != nil {
			return nil, err
		}
	}
	for _, trial := range trialsOf(l, c) {
		cost, err := trial.run(ctx, l)
		if err := add(trial.name, cost, err); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// run does the steps and measures the stream.
func (t trial) run(ctx context.Context, l *bench.Lab) (float64, error) {
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
	return t.cost(ctx, l)
}
