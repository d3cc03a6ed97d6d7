// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// iptables-nft keeps what nftables has no expression for as the matches and targets of xtables, whose
// content is their C struct, in the host's byte order. Older versions keep tcp, udp and multiport so too.

// match is one match extension.
func (r *rule) match(name string, revision uint32, info []byte) {
	known := false
	switch name {
	case "comment": // never fails
		known = true
		if comment := text(info); comment != "" {
			r.comment = fmt.Sprintf("-m comment --comment %q", comment)
		}
	case "tcp":
		known = len(info) >= 12 && info[8] == 0 && info[9] == 0 && r.xtPorts(info, info[11])
	case "udp":
		known = len(info) >= 9 && r.xtPorts(info, info[8])
	case "multiport":
		known = revision == 1 && r.multiport(info)
	case "addrtype":
		known = revision == 1 && r.addrtype(info)
	case "conntrack":
		known = revision >= 2 && r.conntrackState(info)
	case "set":
		known = r.ipset(revision, info)
	}
	if !known {
		r.partial = true
		r.extra = append(r.extra, "-m "+name)
	}
}

// xtPorts reads the ports of struct xt_tcp and xt_udp: source, then destination, each from and to; the
// inverse flags are 1 and 2.
func (r *rule) xtPorts(info []byte, inverse uint8) bool {
	sport := [2]uint16{binary.NativeEndian.Uint16(info), binary.NativeEndian.Uint16(info[2:])}
	dport := portRange{binary.NativeEndian.Uint16(info[4:]), binary.NativeEndian.Uint16(info[6:])}
	if sport != [2]uint16{0, 65535} || inverse&^2 != 0 {
		return false
	}
	if (dport != portRange{0, 65535}) || inverse&2 != 0 {
		r.ports = append(r.ports, ports{inverse&2 != 0, []portRange{dport}})
	}
	return true
}

// multiport reads struct xt_multiport_v1: flags, count, ports[15], pflags[15], invert.
func (r *rule) multiport(info []byte) bool {
	const destinations, most = 1, 15
	if len(info) < 2+3*most+1 || info[0] != destinations || int(info[1]) > most {
		return false
	}
	var list []portRange
	for i := 0; i < int(info[1]); i++ {
		low := binary.NativeEndian.Uint16(info[2+2*i:])
		high := low
		if info[2+2*most+i] != 0 && i+1 < int(info[1]) { // the next one is this one's end
			i++
			high = binary.NativeEndian.Uint16(info[2+2*i:])
		}
		list = append(list, portRange{low, high})
	}
	r.ports = append(r.ports, ports{info[2+3*most] != 0, list})
	return true
}

// addrtype reads struct xt_addrtype_info_v1: source and destination types by bit, flags.
func (r *rule) addrtype(info []byte) bool {
	if len(info) < 8 || binary.NativeEndian.Uint16(info) != 0 || binary.NativeEndian.Uint32(info[4:]) != 0 ||
		binary.NativeEndian.Uint16(info[2:]) != 1<<unix.RTN_LOCAL {
		return false
	}
	r.local = true
	return true
}

// conntrackState reads struct xt_conntrack_mtinfo2 and 3, if they match the state alone.
func (r *rule) conntrackState(info []byte) bool {
	const flagsAt, inverseAt, statesAt, stateFlag = 146, 148, 150, 1
	if len(info) < statesAt+2 || binary.NativeEndian.Uint16(info[flagsAt:]) != stateFlag {
		return false
	}
	inverse := binary.NativeEndian.Uint16(info[inverseAt:])&stateFlag != 0
	mask := binary.NativeEndian.Uint16(info[statesAt:])
	var list []string
	for _, s := range []struct { // the order in which iptables prints them
		bit  uint16
		name string
	}{{1, "INVALID"}, {8, "NEW"}, {4, "RELATED"}, {2, "ESTABLISHED"}, {256, "UNTRACKED"}, {64, "SNAT"}, {128, "DNAT"}} {
		if mask&s.bit != 0 {
			list = append(list, s.name)
		}
	}
	r.extra = append(r.extra, "-m conntrack "+not(inverse, "! ")+"--ctstate "+strings.Join(list, ","))
	return true
}

// extension is one target extension; those that nftables has a verdict for are none.
func (r *rule) extension(f *family, name string, info []byte) {
	r.target = name
	switch name {
	case "REJECT":
		r.verdict, r.target = rejects, f.rejectOption(info)
	case "DNAT", "REDIRECT", "NETMAP":
		r.verdict, r.partial = diverts, true
	default:
		r.verdict, r.partial = others, true
	}
}

// rejectOption reads struct ipt_reject_info or ip6t_reject_info, which are one enum.
func (f *family) rejectOption(info []byte) string {
	if len(info) < 4 || int(binary.NativeEndian.Uint32(info)) >= len(f.rejects) {
		return ""
	}
	return " --reject-with " + f.rejects[binary.NativeEndian.Uint32(info)]
}
