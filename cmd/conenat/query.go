// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/control/api/client"
	"github.com/conenat/conenat/dataplane"
)

// listing is a command that asks for a list and prints it.
type listing[T any] struct {
	use, short, example string
	get                 func(*client.Client, context.Context) ([]T, error)
	table               func(io.Writer, []T) // columns are ended by tabs
}

func (l listing[T]) command(e env) *cobra.Command {
	cmd := &cobra.Command{Use: l.use, Short: l.short, Example: l.example, Args: cobra.NoArgs}
	socket := socketFlag(cmd)
	l.run(e, cmd, socket)
	return cmd
}

func (l listing[T]) run(e env, cmd *cobra.Command, socket *string) {
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = action(func(cmd *cobra.Command, _ []string) error {
		list, err := l.get(client.New(*socket), cmd.Context())
		if err != nil {
			return err
		}
		if output.value == "json" {
			return printJSON(e.stdout, list)
		}
		w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
		l.table(w, list)
		return w.Flush()
	})
}

// choice is a flag value out of a few.
type choice struct {
	value string
	of    []string
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return strings.Join(c.of, "|") }

// Set refuses what is none of the choices.
func (c *choice) Set(s string) error {
	if !slices.Contains(c.of, s) {
		return fmt.Errorf("want %s", strings.Join(c.of, " or "))
	}
	c.value = s
	return nil
}

func outputFlag(cmd *cobra.Command, of ...string) *choice {
	c := &choice{value: of[0], of: of}
	cmd.Flags().VarP(c, "output", "o", "output format")
	return c
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func statusCommand(e env) *cobra.Command {
	return listing[api.Status]{"status", "Show the daemon's state: interfaces, use, counters, warnings",
		"  conenat status\n  conenat status -o json", (*client.Client).Status, statusTable}.command(e)
}

func bindingsCommand(e env) *cobra.Command {
	return listing[api.Binding]{"bindings", "List the bindings: internal and external endpoints",
		"  conenat bindings\n  conenat bindings -o json | jq -r '.[].external'", (*client.Client).Bindings, bindingsTable}.command(e)
}

func sessionsCommand(e env) *cobra.Command {
	return listing[api.Session]{"sessions", "List the sessions: each binding's remote endpoints",
		"  conenat sessions\n  conenat sessions -o json", (*client.Client).Sessions, sessionsTable}.command(e)
}

func networksCommand(e env) *cobra.Command {
	return listing[api.Network]{"networks", "List the inside networks",
		"  conenat networks\n  conenat networks -o json", (*client.Client).Networks, networksTable}.command(e)
}

func bindingsTable(w io.Writer, list []api.Binding) {
	fmt.Fprintln(w, "NETWORK\tPROTOCOL\tINTERNAL\tEXTERNAL\tREMOTE\tKIND\tSESSIONS\tEXPIRES IN")
	for _, b := range list {
		kind, expires := "dynamic", seconds(b.ExpiresInS)
		if b.Static {
			kind, expires = "static", "never"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", b.Network, b.Protocol, b.Internal, b.External, cmp.Or(b.Remote, "any"), kind, b.Sessions, expires)
	}
}

func sessionsTable(w io.Writer, list []api.Session) {
	fmt.Fprintln(w, "NETWORK\tPROTOCOL\tINTERNAL\tEXTERNAL\tREMOTE\tSTATE\tEXPIRES IN")
	for _, s := range list {
		state := s.State
		if s.Hairpin {
			state += ", hairpin"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Network, s.Protocol, s.Internal, s.External, s.Remote, state, seconds(s.ExpiresInS))
	}
}

func networksTable(w io.Writer, list []api.Network) {
	fmt.Fprintln(w, "NAME\tINTERFACE\tDRIVER\tSTATE\tPREFIXES\tPORTS\tOUTSIDE\tMAPPING\tFILTERING\tUSED PORTS\tSESSIONS\tPER HOST")
	for _, n := range list {
		if n.Reason != "" {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s: %s\n", n.Name, dash(n.Interface), dash(n.Driver), n.State, n.Reason)
			continue
		}
		outside := list1(n.Outside)
		if len(n.External) > 0 {
			outside += " as " + list1(n.External)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, n.Interface, dash(n.Driver), n.State, prefixesText(n), list1(n.Ports), outside,
			behaviorsText(n.Mapping), behaviorsText(n.Filtering),
			ofLimit(n.Usage.Ports, n.Limits.PortsPerNetwork), ofLimit(n.Usage.Sessions, n.Limits.SessionsPerNetwork), perHost(n.Limits, n.BlockSize))
	}
}

// prefixesText says what they become outside, where that is no binding's matter.
func prefixesText(n api.Network) string {
	text := list1(n.Prefixes)
	if n.ExternalPrefix != "" {
		text += " as " + n.ExternalPrefix
	}
	return text + unlessNAT(n.Mode)
}

// ofLimit is "12 of 100", or "12" without a limit.
func ofLimit(has, limit uint32) string {
	if limit == 0 {
		return fmt.Sprint(has)
	}
	return fmt.Sprintf("%d of %d", has, limit)
}

// perHost is what each host may have.
func perHost(l api.Limits, block uint32) string {
	var parts []string
	if l.PortsPerHost > 0 {
		parts = append(parts, fmt.Sprintf("%d ports", l.PortsPerHost))
	}
	if l.SessionsPerHost > 0 {
		parts = append(parts, fmt.Sprintf("%d sessions", l.SessionsPerHost))
	}
	if block > 0 {
		parts = append(parts, fmt.Sprintf("blocks of %d", block))
	}
	return dash(strings.Join(parts, ", "))
}

func behaviorsText(b api.Behaviors) string {
	if b.UDP == b.TCP && b.TCP == b.ICMP {
		return b.UDP
	}
	return fmt.Sprintf("udp %s, tcp %s, icmp %s", b.UDP, b.TCP, b.ICMP)
}

func statusTable(w io.Writer, list []api.Status) {
	for _, s := range list {
		statusHead(w, s)
		fmt.Fprintln(w, "\nVERDICT\tREASON\tPACKETS")
		for _, c := range s.Counters {
			if c.Packets > 0 {
				fmt.Fprintf(w, "%s\t%s\t%d%s\n", c.Verdict, c.Name, c.Packets, atXDP(c))
			}
		}
		if len(s.Warnings) > 0 {
			fmt.Fprintln(w, "\nWARNINGS")
		}
		for _, text := range s.Warnings {
			fmt.Fprintf(w, "- %s\n", text)
		}
	}
}

func atXDP(c api.Counter) string {
	if c.XDP == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d at XDP)", c.XDP)
}

func statusHead(w io.Writer, s api.Status) {
	adopted := ""
	if s.Adopted {
		adopted = " (adopted)"
	}
	fmt.Fprintf(w, "version\t%s\n", s.Version)
	fmt.Fprintf(w, "daemon\tpid %d, up %s\n", s.PID, seconds(s.UptimeS))
	fmt.Fprintf(w, "kernel\t%s, %s hooks, %s path\n", s.Kernel, s.Mechanism, s.Path)
	for _, reason := range s.PathReasons {
		fmt.Fprintf(w, "path\t%s: %s\n", s.Path, reason)
	}
	if s.Docker != nil {
		fmt.Fprintf(w, "docker\t%s\n", cmp.Or(s.Docker.Problem, s.Docker.Engine))
	}
	fmt.Fprintf(w, "state\t%s%s\n", s.StateDir, adopted)
	for _, o := range s.Outsides {
		fmt.Fprintf(w, "outside\t%s (index %d), external address %s%s, %s\n", o.Name, o.IfIndex, dash(o.Address), poolText(o), o.State)
	}
	for _, line := range xdpLines(s.XDP) {
		fmt.Fprintf(w, "xdp\t%s\n", line)
	}
	fmt.Fprintf(w, "bindings\t%d of %d%s\n", s.Usage.Bindings, s.Capacity.Bindings, ofIPv6(s.UsageIPv6.Bindings, s.Capacity.Bindings))
	fmt.Fprintf(w, "sessions\t%d of %d%s\n", s.Usage.Sessions, s.Capacity.Sessions, ofIPv6(s.UsageIPv6.Sessions, s.Capacity.Sessions))
	for _, n := range s.Networks {
		fmt.Fprintf(w, "network\t%s%s: %s ports, %s sessions of %d hosts%s\n", n.Name, unlessNAT(n.Mode), ofLimit(n.Usage.Ports, n.Limits.PortsPerNetwork),
			ofLimit(n.Usage.Sessions, n.Limits.SessionsPerNetwork), n.Hosts, busiest(n))
	}
	fmt.Fprintf(w, "events lost\t%d\n", s.EventsLost)
}

// xdpLines are one for each interface, but for the ports of containers that are as they should be: these are counted.
func xdpLines(list []api.XDP) (lines []string) {
	containers, ready := 0, 0
	for _, x := range list {
		port := x.Kind == dataplane.InsidePort.String()
		if port {
			containers++
		}
		if port && x.State != "none" {
			ready++
			continue
		}
		lines = append(lines, xdpText(x))
	}
	if containers > 0 {
		lines = append(lines, fmt.Sprintf("straight into %d of %d containers", ready, containers))
	}
	return lines
}

// xdpText says what XDP does on an interface, and why not.
func xdpText(x api.XDP) string {
	text := fmt.Sprintf("%s (%s): %s", x.Interface, x.Kind, x.State)
	if x.State != "none" {
		text += ", to " + x.Use
	}
	if x.Reason != "" {
		text += ": " + x.Reason
	}
	return text
}

func ofIPv6(used, capacity uint32) string {
	if used == 0 {
		return ""
	}
	return fmt.Sprintf("; IPv6: %d of %d", used, capacity)
}

// poolText is what an outside has besides one address: how many, and how many of all that nobody has named.
func poolText(o api.Outside) string {
	text := ""
	if more := len(o.Addresses) - 1; more > 0 {
		text = fmt.Sprintf(" and %d more", more)
	}
	if len(o.Pool) < len(o.Addresses) {
		text += fmt.Sprintf(" (%d in the pool)", len(o.Pool))
	}
	return text
}

// unlessNAT is a mode that is not the usual one, behind a network's name.
func unlessNAT(mode string) string {
	if mode == "" || mode == "nat" {
		return ""
	}
	return " (" + mode + ")"
}

// busiest is the host that has most, against what each may have.
func busiest(n api.NetworkUse) string {
	if n.Busiest.Address == "" {
		return ""
	}
	return fmt.Sprintf("; %s has %s ports, %s sessions", n.Busiest.Address, ofLimit(n.Busiest.Ports, n.Limits.PortsPerHost),
		ofLimit(n.Busiest.Sessions, n.Limits.SessionsPerHost))
}

func seconds(s float64) string {
	return (time.Duration(s * float64(time.Second))).Round(time.Second).String()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func list1(s []string) string { return dash(strings.Join(s, ",")) }
