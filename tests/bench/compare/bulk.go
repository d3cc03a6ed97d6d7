// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/bench/report"
)

// iperfPort is the server's.
const iperfPort = 5201

// measureBulk: TCP from inside to outside by iperf3, and what of the CPUs a gigabit takes.
func measureBulk(ctx context.Context, o options, r *recorder) error {
	all := prepare(ctx, o, r, report.Bulk, bench.Scale{}, func(c bench.Contender) bool { return !c.Proxy })
	defer all.finish(r)
	all.each(ctx, r, report.Bulk, func(c *course) error { return c.lab.Open(ctx) })
	for round := range o.rounds {
		for _, streams := range o.streams {
			words := streamWords(streams)
			all.each(ctx, r, report.Bulk+", "+words, func(c *course) error {
				b, err := c.bulk(ctx, streams, max(time.Second, 2*o.time))
				if err != nil {
					return err
				}
				r.add(report.Measurement{Contender: c.Name, Figure: report.Bulk, Load: words, Round: round + 1, Value: b.rate() / 1e6, Unit: "Mbit/s", Note: c.note()})
				r.add(report.Measurement{Contender: c.Name, Figure: report.CPU, Load: words, Round: round + 1, Value: b.perGigabit(), Unit: "ms of CPU/Gbit", Note: c.note()})
				return nil
			})
		}
	}
	return ctx.Err()
}

func streamWords(n int) string {
	if n == 1 {
		return "1 stream"
	}
	return fmt.Sprintf("%d streams", n)
}

// note says what the lab of a contender with XDP takes from its sockets.
func (c *course) note() string {
	if c.XDP {
		return "without checksum and segmentation offload, which XDP on a veth does not keep"
	}
	return ""
}

// transfer is what one run of iperf3 was.
type transfer struct {
	bits float64
	took time.Duration
	busy time.Duration // of all CPUs
}

func (t transfer) rate() float64 { return t.bits / t.took.Seconds() }

func (t transfer) perGigabit() float64 {
	return float64(t.busy.Microseconds()) / 1000 / (t.bits / 1e9)
}

func (c *course) bulk(ctx context.Context, streams int, d time.Duration) (t transfer, err error) {
	if err := c.startServer(ctx); err != nil {
		return t, err
	}
	before, err := busyTime()
	if err != nil {
		return t, err
	}
	seconds := strconv.Itoa(int(d.Round(time.Second).Seconds()))
	out, err := c.inside.NS.Run(ctx, "", "iperf3", "--json", "--client", c.outside.Addr.String(), "--port", strconv.Itoa(iperfPort),
		"--parallel", strconv.Itoa(streams), "--time", seconds)
	if err != nil {
		return t, fmt.Errorf("%w: %s", err, out)
	}
	after, err := busyTime()
	if err != nil {
		return t, err
	}
	t, err = parseIperf([]byte(out))
	t.busy = after - before
	return t, err
}

// startServer starts a server for one client, and waits until it listens.
func (c *course) startServer(ctx context.Context) error {
	told, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := c.outside.NS.Command(context.Background(), "iperf3", "--server", "--one-off", "--forceflush", "--port", strconv.Itoa(iperfPort))
	cmd.Stdout, cmd.Stderr = tell, tell
	_, err = c.lab.Start("iperf3", cmd)
	tell.Close()
	if err != nil {
		told.Close()
		return err
	}
	lines := bufio.NewScanner(told)
	var seen []string
	for lines.Scan() {
		if strings.Contains(lines.Text(), "listening") {
			go func() { // what it says later would block it
				_, _ = io.Copy(io.Discard, told)
				told.Close()
			}()
			return ctx.Err()
		}
		seen = append(seen, lines.Text())
	}
	told.Close()
	return fmt.Errorf("iperf3 --server does not listen: %q", seen)
}

// parseIperf reads what iperf3 --json says: what the receiver got.
func parseIperf(text []byte) (transfer, error) {
	var result struct {
		Error string
		End   struct {
			Received struct {
				Seconds float64
				Bytes   float64
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(text, &result); err != nil {
		return transfer{}, fmt.Errorf("parse what iperf3 says: %w", err)
	}
	got := result.End.Received
	if result.Error != "" || got.Bytes <= 0 || got.Seconds <= 0 {
		return transfer{}, fmt.Errorf("iperf3: %q, %v bytes in %v s", result.Error, got.Bytes, got.Seconds)
	}
	return transfer{bits: 8 * got.Bytes, took: time.Duration(got.Seconds * float64(time.Second))}, nil
}

// busyTime is what /proc/stat counts of all CPUs but idle, iowait, and what a hypervisor took.
func busyTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseStat(string(text))
}

// tick is USER_HZ.
const tick = 10 * time.Millisecond

func parseStat(text string) (busy time.Duration, err error) {
	first, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(first) // cpu user nice system idle iowait irq softirq steal …
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", first)
	}
	for _, i := range []int{1, 2, 3, 6, 7} {
		ticks, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		busy += time.Duration(ticks) * tick
	}
	return busy, nil
}
