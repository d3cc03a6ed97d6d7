// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/google/nftables"

	"github.com/conenat/conenat/tests/topo"
)

// Sink drops all packets at a place, and counts those among them that are as they should be.
type Sink struct {
	ns     *topo.NS
	family string // nft's
	chain  string // the base chain's type, hook and policy
}

// SinkAt is at a port's ingress, before the stack behind it.
func SinkAt(p Port) Sink {
	return Sink{p.NS, "netdev", fmt.Sprintf("type filter hook ingress device %q priority 0; policy drop;", p.Name)}
}

// SinkInHost is where the host's own sockets would get the packet; others go on.
func SinkInHost(l *Lab) Sink {
	return Sink{l.Host, l.Family.Table(), "type filter hook input priority 0;"}
}

// Want is what a packet has to be to count: a port of 0 is any.
type Want struct {
	Protocol string // as nft says it: udp, tcp, icmp, icmpv6
	Src, Dst netip.AddrPort
}

func (w Want) match() string {
	s := fmt.Sprintf("ip protocol %s ip saddr %s ip daddr %s", w.Protocol, w.Src.Addr(), w.Dst.Addr())
	if w.Src.Addr().Is6() {
		s = fmt.Sprintf("ip6 nexthdr %s ip6 saddr %s ip6 daddr %s", w.Protocol, w.Src.Addr(), w.Dst.Addr())
	}
	if w.Src.Port() != 0 {
		s += fmt.Sprintf(" %s sport %d", w.Protocol, w.Src.Port())
	}
	if w.Dst.Port() != 0 {
		s += fmt.Sprintf(" %s dport %d", w.Protocol, w.Dst.Port())
	}
	return s
}

// Aim counts from 0 what is as wanted, and drops it.
func (s Sink) Aim(ctx context.Context, want Want) error {
	return s.aim(ctx, want.match()+" counter name arrived drop")
}

func (s Sink) aim(ctx context.Context, rule string) error {
	_, err := s.ns.Run(ctx, fmt.Sprintf(`
table %[1]s bench_sink
delete table %[1]s bench_sink
table %[1]s bench_sink {
	counter arrived { }
	chain sink {
		%[2]s
		%[3]s
	}
}
`, s.family, s.chain, rule), "nft", "-f", "-")
	return err
}

// remove takes the sink away.
func (s Sink) remove(ctx context.Context) error {
	_, err := s.ns.Run(ctx, fmt.Sprintf("delete table %s bench_sink\n", s.family), "nft", "-f", "-")
	return err
}

// Count is how many have come since Aim.
func (s Sink) Count() (packets uint64, err error) {
	family := map[string]nftables.TableFamily{"netdev": nftables.TableFamilyNetdev, "ip": nftables.TableFamilyIPv4,
		"ip6": nftables.TableFamilyIPv6}[s.family]
	err = s.ns.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		arrived, err := conn.GetObject(&nftables.CounterObj{Table: &nftables.Table{Name: "bench_sink", Family: family}, Name: "arrived"})
		if err != nil {
			return err
		}
		counter, ok := arrived.(*nftables.CounterObj)
		if !ok {
			return fmt.Errorf("it is a %T", arrived)
		}
		packets = counter.Packets
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read the counter of %s's sink: %w", s.ns.Name, err)
	}
	return packets, nil
}
