// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/conenat/conenat/control/natcheck"
	"github.com/conenat/conenat/control/stunserver"
)

func checkCommand(e env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Tell what the NAT in front of this place does (RFC 5780)",
		Long: "Tell what the NAT between here and a STUN server does: mapping, filtering, hairpinning, port preservation, whether\n" +
			"mapping stays the same after unsolicited packets (RFC 4787, REQ-11), mapping over TCP, and the type's name in\n" +
			"RFC 3489. It tests from where it runs: in a container's network namespace it tells what the container has.\n" +
			"The server must do RFC 5780, such as `conenat stun-server`.",
		Example: "  conenat check --server 203.0.113.1\n" +
			"  conenat check --server stun.example.org:3478 --lifetime 5m\n" +
			"  conenat check --server '[2001:db8::1]:3478'    # what a NAT of IPv6 does\n" +
			"  docker run --rm -v /usr/local/bin/conenat:/conenat:ro alpine /conenat check --server 203.0.113.1 -o json",
		Args: cobra.NoArgs,
	}
	output := outputFlag(cmd, "table", "json")
	f := cmd.Flags()
	server := f.String("server", "", "STUN server `ADDR[:PORT]`; the port's default is 3478")
	lifetime := f.Duration("lifetime", 0, "look for a UDP binding's lifetime up to `DURATION`, and take as long as the binding lives")
	timeout := f.Duration("timeout", natcheck.DefaultTimeout, "wait `DURATION` for an answer, of which some do not come through a NAT that filters")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		host, port, err := parseServer(*server)
		switch {
		case err != nil:
			return err
		case *lifetime != 0 && *lifetime < time.Second:
			return fmt.Errorf("--lifetime %v: want at least 1s, or 0 for none", *lifetime)
		case *timeout < 100*time.Millisecond:
			return fmt.Errorf("--timeout %v: want at least 100ms", *timeout)
		}
		o := natcheck.Options{Lifetime: *lifetime, Timeout: *timeout}
		return action(func(cmd *cobra.Command, _ []string) error {
			addr, err := resolve(cmd.Context(), host)
			if err != nil {
				return err
			}
			o.Server = netip.AddrPortFrom(addr, port)
			return check(cmd.Context(), e, o, output.value == "json")
		})(cmd, nil)
	}
	return cmd
}

// parseServer takes an address or a name, with or without a port; an IPv6 address with a port has brackets.
func parseServer(s string) (host string, port uint16, err error) {
	if s == "" {
		return "", 0, errors.New("no server: name one by --server ADDR[:PORT]")
	}
	if addr, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return addr.String(), stunserver.DefaultPort, nil
	}
	if endpoint, err := netip.ParseAddrPort(s); err == nil && endpoint.Port() != 0 {
		return endpoint.Addr().String(), endpoint.Port(), nil
	}
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		host, text = s, strconv.Itoa(stunserver.DefaultPort)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || host == "" || strings.ContainsAny(host, " :/[]") {
		return "", 0, fmt.Errorf("--server %q: want ADDR or ADDR:PORT", s)
	}
	return host, uint16(n), nil
}

// resolve prefers IPv4, which is what is translated nearly everywhere; an address of IPv6 is asked by giving it.
func resolve(ctx context.Context, host string) (netip.Addr, error) {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find the STUN server's address: %w", err)
	}
	best := addrs[0].Unmap()
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() && !best.Is4() {
			best = a
		}
	}
	return best, nil
}

// check prints the report, whatever the error.
func check(ctx context.Context, e env, o natcheck.Options, asJSON bool) error {
	if o.Lifetime > 0 {
		fmt.Fprintf(e.stderr, "looking for a binding's lifetime; that takes as long as it lives, %v at the most\n", o.Lifetime)
	}
	report, err := natcheck.Run(ctx, o)
	printed := func() error {
		if asJSON {
			return printJSON(e.stdout, []natcheck.Report{report})
		}
		w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
		checkTable(w, report)
		return w.Flush()
	}()
	return errors.Join(err, printed)
}

func checkTable(w io.Writer, r natcheck.Report) {
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t"+format+"\n", append([]any{name}, args...)...)
	}
	row("server", "%v, other address %v", r.Server, endpoint(r.OtherAddress))
	row("internal endpoint", "%v", endpoint(r.Internal))
	row("external endpoint", "%v", endpoint(r.External))
	row("NAT", "%s%s", told(r.NAT), portText(r.PortPreserved))
	row("mapping", "%v", r.Mapping)
	row("filtering", "%v", r.Filtering)
	row("stable", "%s", stableText(r))
	row("hairpin", "%s", hairpinText(r))
	row("lifetime", "%s", lifetimeText(r.Lifetime))
	row("TCP mapping", "%v%s", r.TCP.Mapping, portText(r.TCP.PortPreserved))
	row("RFC 3489 type", "%s", typeText(r))
	if unstable(r) {
		mappedTable(w, r.Mapped)
	}
	for _, text := range r.Problems {
		fmt.Fprintf(w, "\nproblem: %s\n", text)
	}
	for _, text := range r.Notes {
		fmt.Fprintf(w, "\nnote: %s\n", text)
	}
}

// mappedTable shows where another external endpoint was seen.
func mappedTable(w io.Writer, list []natcheck.Mapped) {
	fmt.Fprintln(w, "\nREMOTE\tINTERNAL\tEXTERNAL\tUNSOLICITED PACKETS BEFORE")
	for _, m := range list {
		if m.Protocol == "udp" {
			fmt.Fprintf(w, "%v\t%v\t%v\t%s\n", m.Remote, m.Internal, m.External, told(&m.AfterUnsolicited))
		}
	}
}

func endpoint(a netip.AddrPort) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

// told is yes, no, or unknown.
func told(b *bool) string {
	switch {
	case b == nil:
		return "unknown"
	case *b:
		return "yes"
	}
	return "no"
}

func portText(preserved *bool) string {
	switch {
	case preserved == nil:
		return ""
	case *preserved:
		return ", port preserved"
	}
	return ", port not preserved"
}

func unstable(r natcheck.Report) bool { return r.Stable != nil && !*r.Stable }

func stableText(r natcheck.Report) string {
	if !unstable(r) {
		return told(r.Stable)
	}
	return fmt.Sprintf("no: after unsolicited packets, mapping is %v", r.AfterUnsolicited)
}

func hairpinText(r natcheck.Report) string {
	switch {
	case r.Hairpin == nil && r.Mapping == natcheck.None:
		return "-"
	case r.HairpinSource == "internal":
		return "yes, but from the internal address"
	}
	return told(r.Hairpin)
}

func lifetimeText(l natcheck.Lifetime) string {
	switch {
	case !l.Asked:
		return "not asked (--lifetime)"
	case l.AtLeast == nil && l.Below == nil:
		return "unknown"
	case l.Below == nil:
		return "at least " + age(*l.AtLeast)
	case l.AtLeast == nil:
		return "below " + age(*l.Below)
	}
	return fmt.Sprintf("%s to %s", age(*l.AtLeast), age(*l.Below))
}

// age is exact to the tenth of a second.
func age(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(100 * time.Millisecond).String()
}

// typeText names what an unstable NAT turns into, which RFC 3489 did not know.
func typeText(r natcheck.Report) string {
	if unstable(r) {
		return r.RFC3489 + ", and symmetric after unsolicited packets"
	}
	return r.RFC3489
}
