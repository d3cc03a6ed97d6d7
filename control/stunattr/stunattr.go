// SPDX-License-Identifier: Apache-2.0

package stunattr

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/pion/stun/v2"
)

// ErrAbsent says that a message does not have the attribute.
var ErrAbsent = errors.New("attribute is absent")

// The address families of MAPPED-ADDRESS (RFC 8489, section 14.1).
const (
	familyIPv4 = 1
	familyIPv6 = 2
)

// magicCookie is what XOR-MAPPED-ADDRESS is xored with, before the transaction ID (RFC 8489, section 5).
const magicCookie = 0x2112A442

// Address is an attribute of MAPPED-ADDRESS's form: RESPONSE-ORIGIN, OTHER-ADDRESS, and RFC 3489's.
type Address struct {
	Type stun.AttrType
	Addr netip.AddrPort
}

// AddTo adds the attribute.
func (a Address) AddTo(m *stun.Message) error {
	value, err := encode(a.Addr)
	if err != nil {
		return fmt.Errorf("add %v: %w", a.Type, err)
	}
	m.Add(a.Type, value)
	return nil
}

// GetAddress reads an attribute of MAPPED-ADDRESS's form.
func GetAddress(m *stun.Message, t stun.AttrType) (netip.AddrPort, error) {
	value, err := get(m, t)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return decode(t, value)
}

// XORMapped is XOR-MAPPED-ADDRESS. AddTo needs the message's transaction ID.
type XORMapped netip.AddrPort

// AddTo adds the attribute.
func (a XORMapped) AddTo(m *stun.Message) error {
	value, err := encode(netip.AddrPort(a))
	if err != nil {
		return fmt.Errorf("add XOR-MAPPED-ADDRESS: %w", err)
	}
	mask(value, m.TransactionID)
	m.Add(stun.AttrXORMappedAddress, value)
	return nil
}

// GetXORMapped reads XOR-MAPPED-ADDRESS.
func GetXORMapped(m *stun.Message) (netip.AddrPort, error) {
	value, err := get(m, stun.AttrXORMappedAddress)
	if err != nil {
		return netip.AddrPort{}, err
	}
	value = append([]byte(nil), value...) // the message stays as it is
	mask(value, m.TransactionID)
	return decode(stun.AttrXORMappedAddress, value)
}

// mask xors port and address of an encoded address (RFC 8489, section 14.2).
func mask(value []byte, id [stun.TransactionIDSize]byte) {
	var key [4 + stun.TransactionIDSize]byte
	binary.BigEndian.PutUint32(key[:], magicCookie)
	copy(key[4:], id[:])
	for i := 0; i < 2 && 2+i < len(value); i++ {
		value[2+i] ^= key[i]
	}
	for i := 0; i < len(key) && 4+i < len(value); i++ {
		value[4+i] ^= key[i]
	}
}

func encode(a netip.AddrPort) ([]byte, error) {
	if !a.IsValid() {
		return nil, errors.New("no address")
	}
	value := []byte{0, familyIPv4, 0, 0}
	if a.Addr().Unmap().Is6() {
		value[1] = familyIPv6
	}
	binary.BigEndian.PutUint16(value[2:], a.Port())
	return append(value, a.Addr().Unmap().AsSlice()...), nil
}

func decode(t stun.AttrType, value []byte) (netip.AddrPort, error) {
	want := map[byte]int{familyIPv4: 8, familyIPv6: 20}
	if len(value) < 8 || len(value) != want[value[1]] {
		return netip.AddrPort{}, fmt.Errorf("%v of %d bytes is no address", t, len(value))
	}
	addr, _ := netip.AddrFromSlice(value[4:])
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(value[2:])), nil
}

// get is the attribute's value, or ErrAbsent.
func get(m *stun.Message, t stun.AttrType) ([]byte, error) {
	attr, ok := m.Attributes.Get(t)
	if !ok {
		return nil, fmt.Errorf("%v: %w", t, ErrAbsent)
	}
	return attr.Value, nil
}

// ChangeRequest is CHANGE-REQUEST (RFC 5780, section 7.2): from where the server is to answer.
type ChangeRequest struct {
	Address bool // from the other address ("change IP")
	Port    bool // from the other port
}

const (
	changeAddress = 0x4
	changePort    = 0x2
)

// AddTo adds the attribute.
func (c ChangeRequest) AddTo(m *stun.Message) error {
	value := make([]byte, 4)
	if c.Address {
		value[3] |= changeAddress
	}
	if c.Port {
		value[3] |= changePort
	}
	m.Add(stun.AttrChangeRequest, value)
	return nil
}

// GetChangeRequest reads CHANGE-REQUEST.
func GetChangeRequest(m *stun.Message) (ChangeRequest, error) {
	value, err := get(m, stun.AttrChangeRequest)
	if err != nil {
		return ChangeRequest{}, err
	}
	if len(value) != 4 {
		return ChangeRequest{}, fmt.Errorf("CHANGE-REQUEST of %d bytes: want 4", len(value))
	}
	return ChangeRequest{Address: value[3]&changeAddress != 0, Port: value[3]&changePort != 0}, nil
}

// ResponsePort is RESPONSE-PORT (RFC 5780, section 7.5): the port of the client's address to answer to.
type ResponsePort uint16

// AddTo adds the attribute. Its length is 2, and padding follows; coturn takes it like that, too.
func (p ResponsePort) AddTo(m *stun.Message) error {
	m.Add(stun.AttrResponsePort, binary.BigEndian.AppendUint16(nil, uint16(p)))
	return nil
}

// GetResponsePort reads RESPONSE-PORT. A length of 4, the padding counted in, is taken too.
func GetResponsePort(m *stun.Message) (uint16, error) {
	value, err := get(m, stun.AttrResponsePort)
	if err != nil {
		return 0, err
	}
	if len(value) != 2 && len(value) != 4 {
		return 0, fmt.Errorf("RESPONSE-PORT of %d bytes: want 2", len(value))
	}
	return binary.BigEndian.Uint16(value), nil
}

// Padding is PADDING (RFC 5780, section 7.6) of that many bytes.
type Padding int

// AddTo adds the attribute.
func (p Padding) AddTo(m *stun.Message) error {
	m.Add(stun.AttrPadding, make([]byte, p))
	return nil
}

// Unknown is UNKNOWN-ATTRIBUTES (RFC 8489, section 14.9). pion's has 4 bytes for each type, the RFC 2.
type Unknown []stun.AttrType

// AddTo adds the attribute.
func (u Unknown) AddTo(m *stun.Message) error {
	var value []byte
	for _, t := range u {
		value = binary.BigEndian.AppendUint16(value, t.Value())
	}
	m.Add(stun.AttrUnknownAttributes, value)
	return nil
}

// GetUnknown reads UNKNOWN-ATTRIBUTES.
func GetUnknown(m *stun.Message) (types Unknown, err error) {
	value, err := get(m, stun.AttrUnknownAttributes)
	if err != nil {
		return nil, err
	}
	for ; len(value) >= 2; value = value[2:] {
		types = append(types, stun.AttrType(binary.BigEndian.Uint16(value)))
	}
	return types, nil
}
