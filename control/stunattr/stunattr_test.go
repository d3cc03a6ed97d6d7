// SPDX-License-Identifier: Apache-2.0

package stunattr

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/pion/stun/v2"
)

// sent is a message as the other side decodes it.
func sent(t *testing.T, setters ...stun.Setter) *stun.Message {
	t.Helper()
	built, err := stun.Build(append([]stun.Setter{stun.TransactionID, stun.BindingRequest}, setters...)...)
	if err != nil {
		t.Fatal(err)
	}
	m := &stun.Message{Raw: built.Raw}
	if err := m.Decode(); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestSampleResponses: XOR-MAPPED-ADDRESS of RFC 5769, sections 2.2 and 2.3.
func TestSampleResponses(t *testing.T) {
	id := [stun.TransactionIDSize]byte{0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae}
	for text, value := range map[string][]byte{
		"192.0.2.1:32853": {0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43},
		"[2001:db8:1234:5678:11:2233:4455:6677]:32853": {0, 2, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79,
			0xbc, 0x25, 0xf4, 0xb5, 0xbe, 0xd2, 0xb9, 0xd9},
	} {
		m := &stun.Message{TransactionID: id}
		m.Add(stun.AttrXORMappedAddress, value)
		if got, err := GetXORMapped(m); err != nil || got.String() != text {
			t.Errorf("%x is %v, %v: want %s", value, got, err, text)
		}
		own := &stun.Message{TransactionID: id}
		if err := XORMapped(netip.MustParseAddrPort(text)).AddTo(own); err != nil {
			t.Fatal(err)
		}
		if a, _ := own.Attributes.Get(stun.AttrXORMappedAddress); !slices.Equal(a.Value, value) {
			t.Errorf("%s is encoded as %x, want %x", text, a.Value, value)
		}
	}
}

func TestAddresses(t *testing.T) {
	for _, text := range []string{"198.51.100.1:3478", "[2001:db8::1]:1", "0.0.0.0:0"} {
		want := netip.MustParseAddrPort(text)
		m := sent(t, XORMapped(want), Address{stun.AttrOtherAddress, want})
		xor, err := GetXORMapped(m)
		if err != nil || xor != want {
			t.Errorf("XOR-MAPPED-ADDRESS of %v is %v, %v", want, xor, err)
		}
		other, err := GetAddress(m, stun.AttrOtherAddress)
		if err != nil || other != want {
			t.Errorf("OTHER-ADDRESS of %v is %v, %v", want, other, err)
		}
		// pion agrees on the encoding.
		var theirs stun.XORMappedAddress
		if err := theirs.GetFrom(m); err != nil || theirs.String() != text {
			t.Errorf("pion reads %v as %v, %v", want, theirs, err)
		}
	}
	mapped := netip.MustParseAddrPort("[::ffff:198.51.100.1]:9")
	if got, err := GetXORMapped(sent(t, XORMapped(mapped))); err != nil || got.String() != "198.51.100.1:9" {
		t.Errorf("a mapped address comes as %v, %v", got, err)
	}
	if err := (Address{Type: stun.AttrOtherAddress}).AddTo(stun.New()); err == nil {
		t.Error("an invalid address was added")
	}
}

// A stranger's values, of every length, must neither panic nor be believed.
func TestMalformedValues(t *testing.T) {
	types := []stun.AttrType{stun.AttrXORMappedAddress, stun.AttrOtherAddress, stun.AttrChangeRequest, stun.AttrResponsePort}
	for length := range 24 {
		for family := range byte(4) {
			value := make([]byte, length)
			if length > 1 {
				value[1] = family
			}
			var raw []stun.Setter
			for _, a := range types {
				raw = append(raw, stun.RawAttribute{Type: a, Value: value})
			}
			m := sent(t, raw...)
			address := length == 8 && family == familyIPv4 || length == 20 && family == familyIPv6
			_, xor := GetXORMapped(m)
			_, other := GetAddress(m, stun.AttrOtherAddress)
			_, change := GetChangeRequest(m)
			_, port := GetResponsePort(m)
			got := []bool{xor == nil, other == nil, change == nil, port == nil}
			if diff := cmp.Diff([]bool{address, address, length == 4, length == 2 || length == 4}, got); diff != "" {
				t.Errorf("%d bytes, family %d: %s", length, family, diff)
			}
		}
	}
}

func TestRequestAttributes(t *testing.T) {
	for _, want := range []ChangeRequest{{}, {Address: true}, {Port: true}, {Address: true, Port: true}} {
		if got, err := GetChangeRequest(sent(t, want)); err != nil || got != want {
			t.Errorf("%+v comes as %+v, %v", want, got, err)
		}
	}
	m := sent(t, ResponsePort(3479), Padding(33), Unknown{1, 0x7fff, 0x24})
	port, err := GetResponsePort(m)
	if err != nil || port != 3479 {
		t.Errorf("RESPONSE-PORT is %d, %v", port, err)
	}
	if padding, err := m.Get(stun.AttrPadding); err != nil || len(padding) != 33 {
		t.Errorf("PADDING has %d bytes, %v", len(padding), err)
	}
	unknown, err := GetUnknown(m)
	if diff := cmp.Diff(Unknown{1, 0x7fff, 0x24}, unknown); diff != "" || err != nil {
		t.Errorf("UNKNOWN-ATTRIBUTES, %v: %s", err, diff)
	}
	if raw, _ := m.Get(stun.AttrUnknownAttributes); len(raw) != 6 {
		t.Errorf("UNKNOWN-ATTRIBUTES of three types has %d bytes, want 2 for each (RFC 8489, section 14.9)", len(raw))
	}
}

func TestAbsent(t *testing.T) {
	m := sent(t)
	_, xor := GetXORMapped(m)
	_, other := GetAddress(m, stun.AttrOtherAddress)
	_, change := GetChangeRequest(m)
	_, port := GetResponsePort(m)
	_, unknown := GetUnknown(m)
	for _, err := range []error{xor, other, change, port, unknown} {
		if diff := cmp.Diff(ErrAbsent, err, cmpopts.EquateErrors()); diff != "" || !errors.Is(err, ErrAbsent) {
			t.Error(diff)
		}
	}
}
