// SPDX-License-Identifier: Apache-2.0

package stunattr

import (
	"errors"
	"net/netip"
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
