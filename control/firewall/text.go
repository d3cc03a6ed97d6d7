// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"fmt"
	"net/netip"
	"strings"
)

// text is the rule as its tool prints it. What could not be decoded is shown by the rule's handle.
func (r *rule) text(b backend, chain string) string {
	switch {
	case r.raw != "":
		return r.raw
	case b == nft:
		return r.nftText()
	}
	return r.iptablesText(chain)
}

// iptablesText is the order of iptables-save.
func (r *rule) iptablesText(chain string) string {
	out := []string{"-A " + chain}
	for _, option := range []struct {
		flag string
		list []addrs
	}{{"-s", r.src}, {"-d", r.dst}} {
		for _, m := range option.list {
			out = append(out, not(m.not, "! ")+option.flag+" "+join(m.prefixes, ","))
		}
	}
	for _, option := range []struct {
		flag string
		list []names
	}{{"-i", r.in}, {"-o", r.out}} {
		for _, m := range option.list {
			out = append(out, not(m.not, "! ")+option.flag+" "+strings.ReplaceAll(strings.Join(m.patterns, ","), "*", "+"))
		}
	}
	for _, m := range r.protocols {
		out = append(out, not(m.not, "! ")+"-p "+protocolNames(m.values))
	}
	for _, m := range r.ports {
		out = append(out, r.iptablesPorts(m))
	}
	if r.local {
		out = append(out, "-m addrtype --dst-type LOCAL")
	}
	out = append(out, r.extra...)
	if r.comment != "" {
		out = append(out, r.comment)
	}
	out = append(out, r.effects...)
	if v := r.iptablesVerdict(); v != "" {
		out = append(out, v)
	}
	if r.partial {
		out = append(out, fmt.Sprintf("(handle %d)", r.handle))
	}
	return strings.Join(out, " ")
}

func (r *rule) iptablesPorts(m ports) string {
	ranges := strings.ReplaceAll(portNames(m.ranges), "-", ":")
	if len(m.ranges) == 1 {
		match := ""
		if len(r.protocols) == 1 {
			match = "-m " + protocolNames(r.protocols[0].values) + " "
		}
		return match + not(m.not, "! ") + "--dport " + ranges
	}
	return "-m multiport " + not(m.not, "! ") + "--dports " + strings.ReplaceAll(ranges, ", ", ",")
}

func (r *rule) iptablesVerdict() string {
	switch r.verdict {
	case accepts:
		return "-j ACCEPT"
	case drops:
		return "-j DROP"
	case rejects:
		return "-j REJECT" + r.target
	case returns:
		return "-j RETURN"
	case gotos:
		return "-g " + r.target
	case none:
		return ""
	}
	return "-j " + r.target
}

func (r *rule) nftText() string {
	var out []string
	for _, m := range r.in {
		out = append(out, "iifname "+nftNames(m))
	}
	for _, m := range r.out {
		out = append(out, "oifname "+nftNames(m))
	}
	for _, m := range r.src {
		out = append(out, word(m)+" saddr "+not(m.not, "!= ")+braces(join(m.prefixes, ", ")))
	}
	for _, m := range r.dst {
		out = append(out, word(m)+" daddr "+not(m.not, "!= ")+braces(join(m.prefixes, ", ")))
	}
	out = append(out, r.nftPorts()...)
	if r.local {
		out = append(out, "fib daddr type local")
	}
	out = append(out, r.extra...)
	out = append(out, r.effects...)
	if v := r.nftVerdict(); v != "" {
		out = append(out, v)
	}
	return strings.Join(append(out, fmt.Sprintf("# handle %d", r.handle)), " ")
}

// word is how nft calls the header that has the addresses.
func word(m addrs) string {
	if len(m.prefixes) > 0 && m.prefixes[0].Addr().Is6() {
		return ipv6.word
	}
	return ipv4.word
}

// nftPorts are the protocol and its ports, "tcp dport 80" if it is that simple.
func (r *rule) nftPorts() (out []string) {
	name := "th"
	if len(r.protocols) == 1 && len(r.ports) > 0 && !r.protocols[0].not && len(r.protocols[0].values) == 1 {
		name = protocolNames(r.protocols[0].values)
	} else {
		for _, m := range r.protocols {
			out = append(out, "meta l4proto "+not(m.not, "!= ")+braces(protocolNames(m.values)))
		}
	}
	for _, m := range r.ports {
		out = append(out, name+" dport "+not(m.not, "!= ")+braces(portNames(m.ranges)))
	}
	return out
}

func (r *rule) nftVerdict() string {
	switch r.verdict {
	case accepts:
		return "accept"
	case drops:
		return "drop"
	case rejects:
		return "reject"
	case returns:
		return "return"
	case jumps:
		return "jump " + r.target
	case gotos:
		return "goto " + r.target
	case none:
		return ""
	}
	return r.target
}

func nftNames(m names) string {
	quoted := make([]string, len(m.patterns))
	for i, p := range m.patterns {
		quoted[i] = `"` + p + `"`
	}
	return not(m.not, "!= ") + braces(strings.Join(quoted, ", "))
}

func not(negated bool, text string) string {
	if negated {
		return text
	}
	return ""
}

func braces(list string) string {
	if strings.Contains(list, ", ") {
		return "{ " + list + " }"
	}
	return list
}

func join(prefixes []netip.Prefix, separator string) string {
	out := make([]string, len(prefixes))
	for i, p := range prefixes {
		out[i] = p.String()
	}
	return strings.Join(out, separator)
}

var protocolNumbers = map[string]uint8{"icmp": 1, "igmp": 2, "ipip": 4, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41,
	"gre": 47, "esp": 50, "ah": 51, "ipv6-icmp": 58, "icmpv6": 58, "ospf": 89, "vrrp": 112, "sctp": 132, "udplite": 136}

func protocolNames(values []uint8) string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = protocolName(v)
	}
	return strings.Join(out, ", ")
}

func protocolName(value uint8) string {
	name := fmt.Sprint(value)
	for n, v := range protocolNumbers {
		if v == value && n != "icmpv6" {
			name = n
		}
	}
	return name
}

func portNames(ranges []portRange) string {
	out := make([]string, len(ranges))
	for i, r := range ranges {
		out[i] = fmt.Sprint(r.low)
		if r.low != r.high {
			out[i] += fmt.Sprintf("-%d", r.high)
		}
	}
	return strings.Join(out, ", ")
}
