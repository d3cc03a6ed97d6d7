// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/conenat/conenat/tests/bench"
)

const pageHead = `# Benchmarks

Written by ` + "`make bench-full`" + `; do not edit. All ways are measured in one run on one machine, in turn and in several rounds, and what
counts is the ratio of their medians: the figures themselves are this machine's.

`

const method = `## Method
After RFC 9693. In phase 1 each session's first packet goes through, out and back, and has to arrive; phase 2 measures, and counts
what arrives at the other end as it should be (addresses translated, ports kept). Loss is stated with each figure.

- **Packets** come from an XDP program that BPF_PROG_RUN runs as live frames on one CPU; everything up to the sink happens on that CPU,
  in its softirq. *Packets* are those that arrived in a second, for each core at work: with ` + "`both`" + `, each direction has a core
  of its own. *Cost* is a packet's nanoseconds less those of the generator alone, into a pair of interfaces that leads nowhere.
- A session is one of 1,024 internal ports (all ports of 1,000 sessions and fewer) and one of as many remote addresses as it takes; they take turns.
- **The bridge topology**: container, docker0, host, uplink, as Docker has it. **gateway-**: the inside is a plain interface, as of a router
  with two network cards; XDP is compared there with forwarding and nftables in the same topology. A veth stands for a network card.
- Sinks are at tc where packets come as sk_buffs, and at XDP where they come as frames.
- *New sessions*: first packets of sessions that nothing is known of. *Teardown*: from the command that takes all sessions away (` + "`conenat detach`, `conntrack -F`" + `)
  to its end. *Capacity*: sessions whose answers still get in after more have been opened than the table holds, with the sizes that
  each comes with. *Memory*: for conenat what the kernel accounts for its maps of sessions, over the sessions that they hold;
  for netfilter the growth of the slab nf_conntrack over the sessions (*all slabs* has its extensions, too).
- netfilter's limit of connections and the size of its table, which are equal as they come, are raised together where a load needs it;
  conenat's capacity is the load's sessions. No session ends by itself while others are measured.
- *TCP bulk* is iperf3 with the offloads of veth (GSO and GRO of 64 KB). *CPU* is the time of all CPUs that /proc/stat counts as not
  idle while it runs, iperf3's own included, over the gigabits.
- *Round trips* are of one byte between two blocking sockets; *under load* means beside 60-byte packets of 1,000 sessions, from
  each CPU a burst each millisecond. *Published port*: the same from outside to a port of the host's address; docker-proxy has no rule that
  would take it past the proxy.
- *Expiry*: packets of 1,000 sessions that live, while as many as said that are idle expire, over those of before.

`

const notShown = `## What it does not show
- No network card, no cable, no second machine: drivers, DMA, interrupts and RSS are not in it. ` + "`tests/bench/pktgen/`" + ` has scripts for real ones.
- A virtual machine's cores are shared with others; that is why contenders take turns, and why a difference of a few percent is none.
- Each session sends in turn, which is the worst order for caches; real traffic has elephants.
- One CPU per direction: how much more cores give was not measured.
- The kernel's defaults: nftables' flowtable, which this kernel has not, would skip most of netfilter for established sessions.

`

// Page is docs/benchmarks.md. The plots are in the directory benchmarks beside it.
func (r Results) Page(plots map[string][]byte) string {
	var b strings.Builder
	b.WriteString(pageHead)
	m := r.Machine
	fmt.Fprintf(&b, "Linux %s, %d CPUs (%s), %s of memory; commit %s, %s; load average before it: %s.\n%s.\n\n",
		m.Kernel, m.CPUs, m.CPU, m.Memory, m.Commit, m.Started, m.Busy, m.Method)
	b.WriteString("## Targets\n| | target | measured | |\n| --- | --- | --- | --- |\n")
	for _, must := range []bool{true, false} {
		for _, t := range Targets() {
			if t.Must == must {
				measured, verdict := t.Judge(r)
				fmt.Fprintf(&b, "| %s | %s%s | %s | %s |\n", t.What, t.bound(), map[bool]string{true: "", false: " (worked towards)"}[must], measured, verdict)
			}
		}
	}
	b.WriteByte('\n')
	b.WriteString(contenders)
	b.WriteString(method)
	for _, name := range slices.Sorted(maps.Keys(plots)) {
		fmt.Fprintf(&b, "![%s](benchmarks/%s)\n\n", strings.TrimSuffix(name, ".svg"), name)
	}
	b.WriteString("## Figures\nMedians, with their ratio (×) to nftables in the same topology. *Spread* is the widest of a row, from its least to its most round;\n" +
		"*lost* is the worst of what was sent and did not arrive. Each round stands in `bin/bench.jsonl`.\n\n")
	for _, figure := range r.figures() {
		r.section(&b, figure)
	}
	if notes := r.notes(); notes != "" {
		b.WriteString("## Notes\n")
		for line := range strings.Lines(notes) {
			b.WriteString("- " + line)
		}
		b.WriteByte('\n')
	}
	b.WriteString(notShown)
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// section is a figure: a row for each load, a column for each contender.
func (r Results) section(b *strings.Builder, figure string) {
	names := r.distinct(func(m Measurement) (string, bool) { return m.Contender, m.Figure == figure })
	unit := r.distinct(func(m Measurement) (string, bool) { return m.Unit, m.Figure == figure })
	fmt.Fprintf(b, "### %s\n| %s | %s | spread | lost |\n| --- |%s\n",
		upperFirst(figure), strings.Join(unit, ", "), strings.Join(names, " | "), strings.Repeat(" ---: |", len(names)+2))
	for _, load := range r.loads(figure) {
		words := load
		if l, err := ParseLoad(load); err == nil {
			words = l.Words()
		}
		fmt.Fprintf(b, "| %s |", words)
		var spread, lost worst
		for _, name := range names {
			fmt.Fprintf(b, " %s |", r.cell(figure, load, name))
			if f, ok := r.Find(figure, load, name); ok {
				spread.see(f.Spread(), name)
				lost.see(f.Lost(), name)
			}
		}
		fmt.Fprintf(b, " %s | %s |\n", spread, lost)
	}
	b.WriteByte('\n')
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func (r Results) cell(figure, load, contender string) string {
	f, ok := r.Find(figure, load, contender)
	if !ok {
		return "-"
	}
	peer := bench.Peer(contender, bench.NFTables)
	if ratio, ok := r.ratio(figure, load, contender, peer); ok && contender != peer {
		return fmt.Sprintf("%s ×%.2f", number(f.Median()), ratio)
	}
	return number(f.Median())
}

// worst is the largest of what was seen, and whose it is.
type worst struct {
	part float64
	name string
}

func (w *worst) see(part float64, name string) {
	if part > w.part {
		*w = worst{part, name}
	}
}

func (w worst) String() string {
	if w.part < 0.0005 {
		return "0"
	}
	return fmt.Sprintf("%.1f %% (%s)", 100*w.part, w.name)
}

const contenders = `## Contenders
| | |
| --- | --- |
| ` + bench.Forwarding + ` | the kernel routes, nothing translates |
| ` + bench.NFTables + ` | nftables: masquerade and port forwards, no other rule, br_netfilter off |
| ` + bench.Docker + ` | the rules of Docker 20.10 (iptables), with a published port, and br_netfilter on, where the kernel has it |
| ` + bench.DockerProxy + ` | the same without the rule of the published port: docker-proxy, the userland proxy, carries it |
| ` + bench.Stack + `, ` + bench.Direct + ` | conenat through the host's stack; from interface to interface |
| ` + bench.Gateway + bench.XDPForwarding + ` | XDP rewrites MACs and the TTL, and redirects: the limit of what XDP can do here |
| ` + bench.Gateway + bench.XDP + ` | conenat's XDP in gateway mode |

`
