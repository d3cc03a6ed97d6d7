// SPDX-License-Identifier: Apache-2.0

package stunserver

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/pion/stun/v2"

	"github.com/conenat/conenat/control/stunattr"
)

const (
	headerSize      = 20
	fingerprintSize = 8
	magicCookie     = 0x2112A442
	// largestPadding keeps the answer below what one UDP datagram holds.
	largestPadding = 60000
)

// layout is the server's two addresses and two ports; the primary is 0, the alternate 1.
type layout struct {
	addrs [2]netip.Addr
	ports [2]uint16
}

// place is one of the four endpoints: the index of its address and of its port.
type place struct{ addr, port int }

var places = []place{{0, 0}, {0, 1}, {1, 0}, {1, 1}}

func (l layout) endpoint(p place) netip.AddrPort {
	return netip.AddrPortFrom(l.addrs[p.addr], l.ports[p.port])
}

// other is the place with the other address and the other port: OTHER-ADDRESS.
func (p place) other() place { return place{1 - p.addr, 1 - p.port} }

// reply is what to send: from which of the endpoints, and to whom.
type reply struct {
	raw  []byte
	from place
	to   netip.AddrPort
}

// request is a binding request that was understood.
type request struct {
	*stun.Message
	at      place
	from    netip.AddrPort
	udp     bool
	classic []byte // RFC 3489's first four bytes of the transaction ID, where the magic cookie is now; nil: RFC 5389 or later
}

// answer is the reply to a packet; false: none, for it is no binding request.
func (l layout) answer(packet []byte, at place, from netip.AddrPort, udp bool) (reply, bool) {
	r, ok := parse(packet)
	if !ok {
		return reply{}, false
	}
	r.at, r.from, r.udp = at, from, udp
	out, setters := l.decide(r)
	message := &stun.Message{TransactionID: r.TransactionID}
	message.WriteHeader()
	for _, s := range setters {
		if s.AddTo(message) != nil {
			return reply{}, false // an address of no family: cannot happen with a packet that came
		}
	}
	if r.classic != nil {
		copy(message.Raw[4:8], r.classic)
	} else if r.Contains(stun.AttrFingerprint) && stun.Fingerprint.AddTo(message) != nil {
		return reply{}, false
	}
	out.raw = message.Raw
	return out, true
}

// parse takes binding requests alone: what is no STUN, is cut, has another length than it says or a wrong
// fingerprint is ignored, and so are answers and indications, or two servers could keep each other busy.
func parse(packet []byte) (request, bool) {
	if len(packet) < headerSize || int(binary.BigEndian.Uint16(packet[2:])) != len(packet)-headerSize {
		return request{}, false
	}
	r := request{Message: &stun.Message{Raw: slices.Clone(packet)}}
	if binary.BigEndian.Uint32(packet[4:]) != magicCookie {
		r.classic = packet[4:8]
		binary.BigEndian.PutUint32(r.Raw[4:], magicCookie)
	}
	// The two uppermost bits are no part of the type that pion decodes.
	if packet[0]&0xc0 != 0 || r.Decode() != nil || r.Type != stun.BindingRequest {
		return request{}, false
	}
	return r, r.classic != nil || r.fingerprintHolds()
}

// fingerprintHolds: a FINGERPRINT, if there is one, is the last attribute, and right (RFC 8489, section 14.7).
func (r request) fingerprintHolds() bool {
	i := slices.IndexFunc(r.Attributes, func(a stun.RawAttribute) bool { return a.Type == stun.AttrFingerprint })
	if i < 0 {
		return true
	}
	return i == len(r.Attributes)-1 && len(r.Raw) >= headerSize+fingerprintSize && stun.Fingerprint.Check(r.Message) == nil
}

// decide is the answer's origin and content.
func (l layout) decide(r request) (reply, []stun.Setter) {
	out := reply{from: r.at, to: r.from}
	if unknown := r.unknown(); len(unknown) > 0 {
		return out, []stun.Setter{stun.BindingError, stun.CodeUnknownAttribute, unknown}
	}
	change, noChange := stunattr.GetChangeRequest(r.Message)
	port, noPort := stunattr.GetResponsePort(r.Message)
	padding, padded := r.Attributes.Get(stun.AttrPadding)
	switch {
	case malformed(noChange) || malformed(noPort):
		return out, refuse("malformed CHANGE-REQUEST or RESPONSE-PORT")
	case !r.udp && (noChange == nil || noPort == nil):
		return out, refuse("CHANGE-REQUEST and RESPONSE-PORT are for UDP")
	case noPort == nil && port == 0:
		return out, refuse("RESPONSE-PORT 0")
	case noPort == nil && padded:
		return out, refuse("RESPONSE-PORT with PADDING")
	}
	if change.Address {
		out.from.addr = 1 - r.at.addr
	}
	if change.Port {
		out.from.port = 1 - r.at.port
	}
	if noPort == nil {
		out.to = netip.AddrPortFrom(r.from.Addr(), port)
	}
	setters := l.success(r, out.from)
	if padded && r.classic == nil {
		setters = append(setters, stunattr.Padding(min(len(padding.Value), largestPadding)))
	}
	return out, setters
}

func malformed(err error) bool { return err != nil && !errors.Is(err, stunattr.ErrAbsent) }

func refuse(why string) []stun.Setter {
	return []stun.Setter{stun.BindingError, stun.ErrorCodeAttribute{Code: stun.CodeBadRequest, Reason: []byte(why)}}
}

// success has MAPPED-ADDRESS beside XOR-MAPPED-ADDRESS, for the one that is rewritten on the way tells of it
// (RFC 5780, section 6.1), and to RFC 3489's clients what those know.
func (l layout) success(r request, origin place) []stun.Setter {
	address := func(t stun.AttrType, a netip.AddrPort) stun.Setter { return stunattr.Address{Type: t, Addr: a} }
	from, other := l.endpoint(origin), l.endpoint(r.at.other())
	if r.classic != nil {
		return []stun.Setter{stun.BindingSuccess, address(stun.AttrMappedAddress, r.from),
			address(stun.AttrSourceAddress, from), address(stun.AttrChangedAddress, other)}
	}
	return []stun.Setter{stun.BindingSuccess, stunattr.XORMapped(r.from), address(stun.AttrMappedAddress, r.from),
		address(stun.AttrResponseOrigin, from), address(stun.AttrOtherAddress, other)}
}

// The comprehension-required attributes that a binding request may have here. Credentials are understood and
// not asked for.
var known = []stun.AttrType{
	stun.AttrMappedAddress, stun.AttrChangeRequest, stun.AttrUsername, stun.AttrMessageIntegrity, stun.AttrErrorCode,
	stun.AttrUnknownAttributes, stun.AttrRealm, stun.AttrNonce, stun.AttrMessageIntegritySHA256, stun.AttrPasswordAlgorithm,
	stun.AttrUserhash, stun.AttrXORMappedAddress, stun.AttrPadding, stun.AttrResponsePort,
}

// unknown lists the comprehension-required attributes that are not known, each once (RFC 8489, section 6.3.1).
func (r request) unknown() (types stunattr.Unknown) {
	for _, a := range r.Attributes {
		if a.Type.Required() && !slices.Contains(known, a.Type) && !slices.Contains(types, a.Type) {
			types = append(types, a.Type)
		}
	}
	return types
}
