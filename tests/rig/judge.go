// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/conenat/conenat/tests/packets"
)

const (
	L3 = 14      // offset of the IPv4 header in a frame
	L4 = 14 + 20 // of a transport header behind one without options
)

// Untouched sends a frame that may pass or be dropped, but not be changed; send checks that one counter moved.
func (r *Rig) Untouched(h Hook, frame []byte) {
	r.T.Helper()
	res := r.Send(h.Program, h.Dev, frame, h.Change)
	verdict := uint32(Next)
	if strings.HasPrefix(res.Reason, "dropped_") {
		if res.Verdict == Redirect && IsReply(frame, res.out) {
			return
		}
		verdict = Shot
	} else if !strings.HasPrefix(res.Reason, "passed_") {
		r.T.Errorf("%s: counted as %q", h.Name, res.Reason)
	}
	res.Check(verdict, res.Reason, frame)
}

// OpenAll makes the sessions of wellFormed.
func (r *Rig) OpenAll() {
	r.T.Helper()
	r.Inside(packets.UDP(C1+":2000", Peer1+":53", "x"))
	r.Inside(packets.TCP(C1+":2000", Peer1+":80", "S", ""))
	r.Inside(packets.Ping(C1+":2000", Peer1))
}

// Renumbered is want with the ID that its datagram got on its way from in to out, where it was due one that nobody can
// foresee: it has another source now, and may be cut or was (RFC 6864).
func Renumbered(in, want, out []byte) []byte {
	if len(in) < L4 || len(out) < L4 || len(want) < L4 || in[L3]>>4 != 4 || bytes.Equal(in[L3+12:L3+16], want[L3+12:L3+16]) {
		return want
	}
	id, control := out[L3+4:L3+6], binary.BigEndian.Uint16(in[L3+6:])
	if control&0x7fff == 0x4000 || bytes.Equal(id, []byte{0, 0}) {
		return want
	}
	want = bytes.Clone(want)
	setID(want[L3:], id)
	return want
}

// setID changes an IPv4 header's ID; a checksum that is wrong stays as wrong as it was (RFC 1624).
func setID(ip, id []byte) {
	field := binary.BigEndian.Uint16
	sum := uint32(^field(ip[10:])) + uint32(^field(ip[4:])) + uint32(field(id))
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	copy(ip[4:], id[:2])
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
}

// shape is where things lie in a packet of a family without options or extension headers, from its IP header on.
type shape struct {
	protocol, src, dst, address, header int
	icmp                                byte
	told                                string // types of the NAT's own errors
}

var shapes = map[byte]shape{
	4: {protocol: 9, src: 12, dst: 16, address: 4, header: 20, icmp: 1, told: "\x03\x0b"},
	6: {protocol: 6, src: 8, dst: 24, address: 16, header: 40, icmp: 58, told: "\x01\x02\x03"},
}

// IsReply says whether a dropped packet became an ICMP error about itself, to its sender (packets.Told).
func IsReply(in, out []byte) bool {
	if len(in) <= L3 || len(out) <= L3 || in[L3]>>4 != out[L3]>>4 {
		return false
	}
	s := shapes[in[L3]>>4]
	sent, told, icmp := in[L3:], out[L3:], s.header+8
	if s.header == 0 || len(sent) < s.header || len(told) < icmp || !bytes.Equal(out[:12], slices.Concat(in[6:12], in[:6])) {
		return false
	}
	if told[s.protocol] != s.icmp || strings.IndexByte(s.told, told[s.header]) < 0 {
		return false
	}
	header, transport := packets.Sums(told)
	toSender := bytes.Equal(told[s.dst:s.dst+s.address], sent[s.src:s.src+s.address])
	return header != packets.WrongSum && transport == packets.RightSum && toSender && bytes.HasPrefix(sent, told[icmp:])
}

// Judge sends a frame and says what is wrong with what came of it; nothing: "".
func (r *Rig) Judge(h Hook, frame []byte) (problem string) {
	r.T.Helper()
	_, _, problem = r.Judged(h, frame)
	return problem
}

// JudgeXDP sends a frame to the XDP program in front of a hook, then to the hook, and says where they disagree: XDP hands a frame
// on as it came, or makes of it what tc does.
func (r *Rig) JudgeXDP(h Hook, frame []byte) (problem string) {
	r.T.Helper()
	byXDP := r.XDP(h.XDP, h.Dev, frame)
	if byXDP.Verdict == XDPPass {
		if byXDP.Reason != "" || !bytes.Equal(byXDP.out, frame) {
			return "handed on, for " + byXDP.Reason + ", as\n" + packets.Dump(byXDP.out)
		}
		return ""
	}
	byTC := r.Send(h.Program, h.Dev, frame, h.Change)
	verdict := map[uint32]uint32{XDPDrop: Shot, XDPRedirect: Redirect}[byXDP.Verdict]
	out := r.AtTC(frame, byXDP.out)
	if verdict != byTC.Verdict || byXDP.Reason != byTC.Reason || !bytes.Equal(out, Renumbered(frame, byTC.out, out)) {
		return fmt.Sprintf("verdict %d of XDP for %s, %d of tc for %s\n%s\n%s", byXDP.Verdict, byXDP.Reason, byTC.Verdict, byTC.Reason,
			packets.Dump(byXDP.out), packets.Dump(byTC.out))
	}
	return ""
}

// Judged is Judge with what came of the frame.
func (r *Rig) Judged(h Hook, frame []byte) (reason string, out []byte, problem string) {
	r.T.Helper()
	res := r.Send(h.Program, h.Dev, frame, h.Change)
	return res.Reason, res.out, res.judge()
}

func (res result) judge() string {
	frame := res.in
	switch kind, _, _ := strings.Cut(res.Reason, "_"); {
	case res.Reason == "":
		return "no counter moved"
	case kind == "dropped" && res.Verdict == Redirect && IsReply(frame, res.out):
		return ""
	case kind == "passed" && res.Verdict != Next, kind == "dropped" && res.Verdict != Shot:
		return fmt.Sprintf("verdict %d for %s", int32(res.Verdict), res.Reason)
	case kind != "translated":
		if string(res.out) != string(frame) {
			return res.Reason + ", and changed to\n" + packets.Dump(res.out)
		}
		return ""
	}
	ip, transport := packets.Sums(frame[L3:])
	ipAfter, transportAfter := packets.Sums(res.out[L3:])
	if ip != ipAfter || transport != transportAfter {
		return fmt.Sprintf("%s: checksums right before: %v %d, after: %v %d\n%s", res.Reason, ip, transport, ipAfter, transportAfter, packets.Dump(res.out))
	}
	return ""
}
