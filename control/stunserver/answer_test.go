// SPDX-License-Identifier: Apache-2.0

package stunserver

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun/v2"

	"github.com/conenat/conenat/control/stunattr"
)

var (
	four   = layout{addrs: [2]netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.9")}, ports: [2]uint16{3478, 3479}}
	client = netip.MustParseAddrPort("198.51.100.1:40000")
)

func request1(t testing.TB, setters ...stun.Setter) []byte {
	t.Helper()
	m, err := stun.Build(append([]stun.Setter{stun.TransactionID, stun.BindingRequest}, setters...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m.Raw
}

// said is what an answer says.
type said struct {
	From, To    string // the packet's
	Error       stun.ErrorCode
	Unknown     stunattr.Unknown
	XOR, Mapped string
	Origin      string
	Other       string
	Padding     int
	Fingerprint bool
}

func read(t *testing.T, packet []byte, r reply) said {
	t.Helper()
	m := &stun.Message{Raw: r.raw}
	if err := m.Decode(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m.Raw[8:20], packet[8:20]) {
		t.Errorf("answer to transaction %x is for %x", packet[8:20], m.Raw[8:20])
	}
	if m.Contains(stun.AttrFingerprint) && stun.Fingerprint.Check(m) != nil {
		t.Error("wrong fingerprint")
	}
	address := func(a netip.AddrPort, err error) string {
		if err != nil {
			return ""
		}
		return a.String()
	}
	var code stun.ErrorCodeAttribute
	_ = code.GetFrom(m)
	if failed := m.Type == stun.BindingError; failed != (code.Code != 0) || !failed && m.Type != stun.BindingSuccess {
		t.Errorf("%v with error code %d", m.Type, code.Code)
	}
	unknown, _ := stunattr.GetUnknown(m)
	padding, _ := m.Get(stun.AttrPadding)
	return said{From: four.endpoint(r.from).String(), To: r.to.String(), Error: code.Code, Unknown: unknown,
		XOR: address(stunattr.GetXORMapped(m)), Mapped: address(stunattr.GetAddress(m, stun.AttrMappedAddress)),
		Origin: address(stunattr.GetAddress(m, stun.AttrResponseOrigin)), Other: address(stunattr.GetAddress(m, stun.AttrOtherAddress)),
		Padding: len(padding), Fingerprint: m.Contains(stun.AttrFingerprint)}
}

func TestAnswers(t *testing.T) {
	const a, b, c, d = "203.0.113.1:3478", "203.0.113.1:3479", "203.0.113.9:3478", "203.0.113.9:3479"
	primary, last := place{0, 0}, place{1, 1}
	ok := func(from, other string) said {
		return said{From: from, To: client.String(), XOR: client.String(), Mapped: client.String(), Origin: from, Other: other}
	}
	with := func(s said, change func(*said)) said { change(&s); return s }
	refused := func(code stun.ErrorCode, unknown ...stun.AttrType) said {
		return said{From: a, To: client.String(), Error: code, Unknown: unknown}
	}
	change := func(address, port bool) stun.Setter { return stunattr.ChangeRequest{Address: address, Port: port} }
	raw := func(t stun.AttrType, n int) stun.Setter { return stun.RawAttribute{Type: t, Value: make([]byte, n)} }
	for name, tc := range map[string]struct {
		at      place
		tcp     bool
		request []stun.Setter
		want    said
	}{
		"Plain":                 {request: nil, at: primary, want: ok(a, d)},
		"PlainAtTheLast":        {request: nil, at: last, want: ok(d, a)},
		"PlainBetween":          {request: nil, at: place{0, 1}, want: ok(b, c)},
		"OverTCP":               {request: nil, at: primary, tcp: true, want: ok(a, d)},
		"ChangeNothing":         {request: []stun.Setter{change(false, false)}, want: ok(a, d)},
		"ChangePort":            {request: []stun.Setter{change(false, true)}, want: ok(b, d)},
		"ChangeAddress":         {request: []stun.Setter{change(true, false)}, want: ok(c, d)},
		"ChangeBoth":            {request: []stun.Setter{change(true, true)}, want: ok(d, d)},
		"ChangeBothAtTheLast":   {at: last, request: []stun.Setter{change(true, true)}, want: ok(a, a)},
		"ChangeOverTCP":         {tcp: true, request: []stun.Setter{change(true, true)}, want: refused(400)},
		"ChangeMalformed":       {request: []stun.Setter{raw(stun.AttrChangeRequest, 3)}, want: refused(400)},
		"ResponsePort":          {request: []stun.Setter{stunattr.ResponsePort(9)}, want: with(ok(a, d), func(s *said) { s.To = "198.51.100.1:9" })},
		"ResponsePortChanged":   {request: []stun.Setter{stunattr.ResponsePort(9), change(true, true)}, want: with(ok(d, d), func(s *said) { s.To = "198.51.100.1:9" })},
		"ResponsePortZero":      {request: []stun.Setter{stunattr.ResponsePort(0)}, want: refused(400)},
		"ResponsePortMalformed": {request: []stun.Setter{raw(stun.AttrResponsePort, 1)}, want: refused(400)},
		"ResponsePortOverTCP":   {tcp: true, request: []stun.Setter{stunattr.ResponsePort(9)}, want: refused(400)},
		"ResponsePortPadded":    {request: []stun.Setter{stunattr.ResponsePort(9), stunattr.Padding(100)}, want: refused(400)},
		"Padding":               {request: []stun.Setter{stunattr.Padding(1500)}, want: with(ok(a, d), func(s *said) { s.Padding = 1500 })},
		"PaddingTooLong":        {request: []stun.Setter{stunattr.Padding(65000)}, want: with(ok(a, d), func(s *said) { s.Padding = largestPadding })},
		"Fingerprint":           {request: []stun.Setter{stun.Fingerprint}, want: with(ok(a, d), func(s *said) { s.Fingerprint = true })},
		"Unknown":               {request: []stun.Setter{raw(0x24, 4), raw(2, 8), raw(0x24, 4)}, want: refused(420, 0x24, 2)},
		"UnknownWithFingerprint": {request: []stun.Setter{raw(0x7fff, 0), stun.Fingerprint},
			want: with(refused(420, 0x7fff), func(s *said) { s.Fingerprint = true })},
		"OptionalUnknown": {request: []stun.Setter{raw(0x8fff, 4), stun.NewSoftware("x")}, want: ok(a, d)},
		"Credentials":     {request: []stun.Setter{stun.NewUsername("u"), stun.NewShortTermIntegrity("p")}, want: ok(a, d)},
	} {
		t.Run(name, func(t *testing.T) {
			packet := request1(t, tc.request...)
			r, answered := four.answer(packet, tc.at, client, !tc.tcp)
			if !answered {
				t.Fatal("no answer")
			}
			if diff := cmp.Diff(tc.want, read(t, packet, r)); diff != "" {
				t.Error(diff)
			}
			amplification(t, packet, r)
		})
	}
}

// amplification: what doc.go promises, of the headers of IPv4 and UDP and what they carry.
func amplification(t *testing.T, packet []byte, r reply) {
	t.Helper()
	const headers = 28
	if sent, got := len(packet)+headers, len(r.raw)+headers; got > 2*sent {
		t.Errorf("%d bytes for %d", got, sent)
	}
}

// RFC 3489's clients have 16 bytes of transaction ID, no cookie, and know neither XOR-MAPPED-ADDRESS nor padding.
func TestClassicClient(t *testing.T) {
	packet := request1(t, stunattr.ChangeRequest{Port: true})
	copy(packet[4:8], "abcd")
	r, ok := four.answer(packet, place{0, 0}, client, true)
	if !ok || !bytes.Equal(r.raw[4:20], packet[4:20]) || r.from != (place{0, 1}) {
		t.Fatalf("%v %+v, asked %x", ok, r, packet)
	}
	binary.BigEndian.PutUint32(r.raw[4:], magicCookie)
	m := &stun.Message{Raw: r.raw}
	if err := m.Decode(); err != nil {
		t.Fatal(err)
	}
	got := map[stun.AttrType]string{}
	for _, a := range m.Attributes {
		addr, err := stunattr.GetAddress(m, a.Type)
		if err != nil {
			t.Error(err)
		}
		got[a.Type] = addr.String()
	}
	want := map[stun.AttrType]string{stun.AttrMappedAddress: client.String(), stun.AttrSourceAddress: "203.0.113.1:3479", stun.AttrChangedAddress: "203.0.113.9:3479"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// RESPONSE-ADDRESS would let anybody send to everybody.
	packet = request1(t, stun.RawAttribute{Type: 2, Value: make([]byte, 8)})
	copy(packet[4:8], "abcd")
	if r, ok := four.answer(packet, place{0, 0}, client, true); !ok || r.to != client || binary.BigEndian.Uint16(r.raw) != stun.BindingError.Value() {
		t.Errorf("%v %+v", ok, r)
	}
}

func TestIgnored(t *testing.T) {
	good := request1(t, stun.Fingerprint)
	edit := func(edit func(b []byte) []byte) []byte { return edit(bytes.Clone(good)) }
	typed := func(m stun.MessageType) []byte {
		return edit(func(b []byte) []byte { binary.BigEndian.PutUint16(b, m.Value()); return b })
	}
	for name, packet := range map[string][]byte{
		"Empty":            nil,
		"NoSTUN":           []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"Short":            good[:19],
		"Cut":              good[:len(good)-4],
		"Trailing":         edit(func(b []byte) []byte { return append(b, 0, 0, 0, 0) }),
		"LengthTooLong":    edit(func(b []byte) []byte { b[3] += 4; return b }),
		"AttributeTooLong": edit(func(b []byte) []byte { b[23] = 200; return b }),
		"WrongFingerprint": edit(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }),
		"FingerprintFirst": request1(t, stun.Fingerprint, stun.NewSoftware("x")),
		"UpperBits":        edit(func(b []byte) []byte { b[0] |= 0x80; return b }),
		"Success":          typed(stun.BindingSuccess),
		"Error":            typed(stun.BindingError),
		"Indication":       typed(stun.NewType(stun.MethodBinding, stun.ClassIndication)),
		"Allocate":         typed(stun.NewType(stun.MethodAllocate, stun.ClassRequest)),
	} {
		if r, ok := four.answer(packet, place{0, 0}, client, true); ok {
			t.Errorf("%s: answered by %x", name, r.raw)
		}
	}
	if _, ok := four.answer(good, place{0, 0}, client, true); !ok {
		t.Error("what was edited was no good request")
	}
}

// Whatever comes: no panic, nobody but the sender's address is sent to, at most twice as much as came, and no answer provokes another answer.
func FuzzAnswer(f *testing.F) {
	f.Add(request1(f), true)
	f.Add(request1(f, stunattr.ChangeRequest{Address: true}, stunattr.ResponsePort(7), stun.Fingerprint), true)
	f.Add(request1(f, stunattr.Padding(3), stun.RawAttribute{Type: 0x33, Value: []byte{1}}), false)
	f.Fuzz(func(t *testing.T, packet []byte, udp bool) {
		r, ok := four.answer(packet, place{1, 0}, client, udp)
		if !ok {
			return
		}
		if r.to.Addr() != client.Addr() || len(r.raw)+28 > 2*(len(packet)+28) {
			t.Errorf("%+v for %x", r, packet)
		}
		if again, ok := four.answer(r.raw, place{0, 0}, client, udp); ok {
			t.Errorf("the answer %x is answered by %x", r.raw, again.raw)
		}
	})
}
