// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/conenat/conenat/tests/bench"
)

// A batch takes some 0.3 ms of the machine's time, so that the tick, which comes each 4 ms, meets few of them and
// the median none.
const (
	batchPackets = 32
	warmBatches  = 6
	batches      = 31
	totalPackets = (warmBatches + batches) * batchPackets
)

// stream is packets of one kind, from a port to a sink.
type stream struct {
	from   bench.Port
	to     bench.Sink
	want   bench.Want
	packet func(n int) packet // the nth
}

// nowhere is the same packets between ends that have nothing between them.
func (s stream) nowhere(l *bench.Lab) stream {
	sent := s.packet(0)
	return stream{from: l.Generator, to: bench.SinkAt(l.GeneratorEnd), packet: s.packet, want: bench.Want{
		Protocol: s.want.Protocol, Src: netip.AddrPortFrom(sent.src.Addr(), 0), Dst: netip.AddrPortFrom(sent.dst.Addr(), 0)}}
}

// perPacket sends all batches and returns the median of what a packet takes. All of them have to arrive.
func (s stream) perPacket(ctx context.Context) (float64, error) {
	frames := make([][]byte, totalPackets)
	for n := range frames {
		frames[n] = s.packet(n).frame(s.from)
	}
	inject, err := newInjector(s.from, batchPackets)
	if err != nil {
		return 0, err
	}
	defer inject.close()
	if err := s.to.Aim(ctx, s.want); err != nil {
		return 0, err
	}
	var took []int64
	for batch := range slices.Chunk(frames, batchPackets) {
		othersTurn()
		t, err := inject.send(batch)
		if err != nil {
			return 0, err
		}
		took = append(took, t)
	}
	arrived, err := s.to.Count()
	if err != nil {
		return 0, err
	}
	if arrived != totalPackets {
		return 0, fmt.Errorf("%d of %d packets arrived as %+v", arrived, totalPackets, s.want)
	}
	return float64(median(took[warmBatches:])) / batchPackets, nil
}

func median(values []int64) int64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
