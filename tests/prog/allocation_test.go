// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/rig"
)

// allPorts has room for all ports of one protocol.
func allPorts(o *rig.RigOptions) {
	o.Capacity = dataplane.Capacity{Sessions: 1 << 17, Bindings: 1 << 17}
}

// opening is the first packet of host i of br0, from a port.
func opening(proto string, i, port int) []byte {
	host := fmt.Sprintf("172.17.%d.%d:%d", i>>8, i&255, port)
	s := UDP(host, rig.Peer1+":9", "x")
	switch proto {
	case "tcp":
		s = TCP(host, rig.Peer1+":9", "S", "")
	case "icmp":
		s = Ping(host, rig.Peer1)
	}
	return rig.FromContainer(s).Bytes()
}

// fill opens bindings of the hosts from to to-1, from the ports that port says.
func fill(r *rig.Rig, proto string, from, to int, port func(i int) int) {
	r.T.Helper()
	r.Must("fill", func() error {
		for i := from; i < to; i++ {
			verdict, err := r.Run(r.DP.Objects().NatInside, "p1", opening(proto, i, port(i)))
			if err != nil || verdict == shot {
				return fmt.Errorf("binding %d of %d: verdict %d: %v", i, to, verdict, err)
			}
		}
		return nil
	})
}

// shot is TC_ACT_SHOT.
const shot = 2

// TestRangeIsUsedToTheLastPort: every port of a range gets its binding, whatever is preserved and whatever the parity that is
// asked for, and the next packet is refused (RFC 6888 REQ-13).
func TestRangeIsUsedToTheLastPort(t *testing.T) {
	require.Long(t, "opens 300,000 bindings")
	same := func(int) int { return 5000 }
	for name, c := range map[string]struct {
		proto string
		ports int
		from  func(i int) int
	}{
		"UDPOneParity": {"udp", 64512, same},
		"UDPBoth":      {"udp", 64512, func(i int) int { return 5000 + i%2 }},
		"TCP":          {"tcp", 64512, same},
		"Preserved":    {"tcp", 64512, func(i int) int { return 1024 + i*40503%64512 }}, // some are taken already
		"Identifiers":  {"icmp", 65536, func(i int) int { return i * 40503 % 65536 }},   // 0 is had by preservation alone
		"LowUDP":       {"udp", 1023, func(int) int { return 53 }},
		"LowTCP":       {"tcp", 1023, func(i int) int { return 1 + i%700 }},
		"Few":          {"udp", 101, same},
	} {
		t.Run(name, func(t *testing.T) {
			options := []rig.Option{allPorts}
			if name == "Few" {
				options = append(options, rig.WithPorts(40001, 40101))
			}
			r := rig.New(t, options...)
			fill(r, c.proto, 0, c.ports, c.from)
			if all, _ := used(r); all != fmt.Sprintf("%d %d", c.ports, c.ports) {
				t.Errorf("%s ports and sessions are used, want %d", all, c.ports)
			}
			verdict := uint32(0)
			r.Must("one more", func() (err error) {
				verdict, err = r.Run(r.DP.Objects().NatInside, "p1", opening(c.proto, 9, c.from(9)+1))
				return err
			})
			if verdict != shot || r.Count("dropped_port_exhausted") != 1 {
				t.Errorf("one more: verdict %d, port_exhausted %d", verdict, r.Count("dropped_port_exhausted"))
			}
		})
	}
}

// TestPortsAreRandom: where the internal port is taken, the external ones spread evenly, and one says nothing of the next (RFC 6056,
// RFC 7857 section 9). Bounds that random ports pass but once in 10^9 runs: chi-square of 63 degrees of freedom has the mean 63
// and the deviation 11.2; of 4,000 pairs, 8 lie within one word of the bitmap, with a deviation of 2.8.
func TestPortsAreRandom(t *testing.T) {
	const n, buckets = 4000, 64
	for _, proto := range []string{"udp", "tcp"} {
		t.Run(proto, func(t *testing.T) {
			r := rig.New(t, allPorts)
			fill(r, proto, 0, n+1, func(int) int { return 5000 })
			ports := map[netip.Addr]int{}
			r.Must("read the bindings", func() error {
				all, err := r.DP.Bindings()
				for _, b := range all {
					ports[b.Internal.Addr()] = int(b.External.Port())
				}
				return err
			})
			var counts [buckets]float64
			near, last := 0, 0
			for i := 1; i <= n; i++ { // the first one has 5000
				port := ports[netip.AddrFrom4([4]byte{172, 17, byte(i >> 8), byte(i)})]
				counts[(port-1024)*buckets/64512]++
				if math.Abs(float64(port-last)) < 64 {
					near++
				}
				last = port
			}
			chi, expected := 0.0, float64(n)/buckets
			for _, c := range counts {
				chi += (c - expected) * (c - expected) / expected
			}
			if chi > 160 || chi < 10 || near > 40 {
				t.Errorf("%d ports: chi-square %.1f over %d parts of the range, %d within a word of the one before", n, chi, buckets, near)
			}
		})
	}
}

// TestAllocationTime prints the table of docs/ports.md: run it with -v.
func TestAllocationTime(t *testing.T) {
	require.Long(t, "measures")
	const ports, samples = 64512, 200
	same := func(int) int { return 5000 }
	r := rig.New(t, allPorts)
	r.Must("count the programs' time", func() error {
		stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
		if err == nil {
			t.Cleanup(func() { stats.Close() })
		}
		return err
	})
	timed := func(i int) (took time.Duration) {
		before := runtimeOf(r)
		fill(r, "udp", i, i+1, same)
		return runtimeOf(r) - before
	}
	next := 0
	for _, full := range []float64{0, 50, 90, 99, 99.9} {
		level := int(ports * full / 100)
		fill(r, "udp", next, max(level, 1), same) // the first one has the port that all others want
		next = max(level, 1)
		var took []time.Duration
		for range min(samples, (ports-next)/2) {
			took = append(took, timed(next))
			next++
		}
		slices.Sort(took)
		t.Logf("%5.1f %% full: median %v, 90 %% below %v, most %v, of %d", full, took[len(took)/2], took[len(took)*9/10], took[len(took)-1], len(took))
	}
	fill(r, "udp", next, ports, same)
	refused := runtimeOf(r)
	r.Must("one more", func() error {
		_, err := r.Run(r.DP.Objects().NatInside, "p1", opening("udp", 9, 5001))
		return err
	})
	t.Logf("full, refused: %v", runtimeOf(r)-refused)
}

// runtimeOf is how long nat_inside has run so far.
func runtimeOf(r *rig.Rig) (total time.Duration) {
	r.T.Helper()
	r.Must("read the program's statistics", func() error {
		stats, err := r.DP.Objects().NatInside.Stats()
		if err == nil {
			total = stats.Runtime
		}
		return err
	})
	return total
}
