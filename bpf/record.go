// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"unsafe"
)

// The structs of abi.h are compiled once for each family, with the same fields and addresses of another width. Go has them once,
// in IPv6's form: a Codec reads and writes what lies in IPv4's tables.

// Addr is an address in IPv6's width, in network byte order. One of IPv4 is IPv4-mapped (RFC 4291 section 2.5.5.2); none is zeros.
type Addr = nat6NatAddr

// AddrOf is none for an address that is not valid.
func AddrOf(a netip.Addr) (raw Addr) {
	if !a.IsValid() {
		return raw
	}
	b := a.As16()
	for i := range raw.Word {
		raw.Word[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return raw
}

// NetIP is not valid where there is none.
func NetIP(raw Addr) netip.Addr {
	if raw == (Addr{}) {
		return netip.Addr{}
	}
	var b [16]byte
	for i, word := range raw.Word {
		binary.NativeEndian.PutUint32(b[4*i:], word)
	}
	return netip.AddrFrom16(b).Unmap()
}

// mapped is what an address of IPv4 has in its third word.
var mapped = AddrOf(netip.AddrFrom4([4]byte{1})).Word[2]

// Codec knows a record of IPv4's tables, N, and the same in IPv6's form, W.
type Codec[N, W any] struct{ steps []codecStep }

// codecStep is a run of bytes that is the same in both, or one field that is not.
type codecStep struct {
	narrow, wide uintptr // offsets
	size         uintptr // of the run; 0: an address, or a number of another width
	width        uintptr // of the number in W; 0: it is an address
}

// NewCodec panics where the two are not of one struct of abi.h: a mistake in this program, that a test of each finds.
func NewCodec[N, W any]() Codec[N, W] {
	var c Codec[N, W]
	c.plan(reflect.TypeFor[N](), reflect.TypeFor[W](), 0, 0)
	return c
}

func (c *Codec[N, W]) plan(n, w reflect.Type, narrow, wide uintptr) {
	number := n.Kind() == reflect.Uint16 && w.Kind() == reflect.Uint32
	switch {
	case n.Kind() == reflect.Uint32 && w == reflect.TypeFor[Addr]():
		c.steps = append(c.steps, codecStep{narrow: narrow, wide: wide})
	case number:
		c.steps = append(c.steps, codecStep{narrow: narrow, wide: wide, width: w.Size()})
	case n.Kind() != w.Kind():
		panic(fmt.Sprintf("%s and %s are not of one struct", n, w))
	case n.Kind() == reflect.Struct:
		c.planStruct(n, w, narrow, wide)
	case n.Kind() == reflect.Array && n.Len() == w.Len() && n.Elem() != w.Elem():
		for i := range uintptr(n.Len()) {
			c.plan(n.Elem(), w.Elem(), narrow+i*n.Elem().Size(), wide+i*w.Elem().Size())
		}
	case n.Size() == w.Size():
		c.steps = append(c.steps, codecStep{narrow: narrow, wide: wide, size: n.Size()})
	default:
		panic(fmt.Sprintf("%s and %s are not of one struct", n, w))
	}
}

func (c *Codec[N, W]) planStruct(n, w reflect.Type, narrow, wide uintptr) {
	fields := func(t reflect.Type) (fields []reflect.StructField) {
		for _, f := range reflect.VisibleFields(t) {
			if f.IsExported() && !strings.HasPrefix(f.Name, "Pad") {
				fields = append(fields, f)
			}
		}
		return fields
	}
	ns, ws := fields(n), fields(w)
	if len(ns) != len(ws) {
		panic(fmt.Sprintf("%s has %d fields, %s has %d", n, len(ns), w, len(ws)))
	}
	for i, f := range ns {
		if f.Name != ws[i].Name {
			panic(fmt.Sprintf("%s has %s where %s has %s", n, f.Name, w, ws[i].Name))
		}
		c.plan(f.Type, ws[i].Type, narrow+f.Offset, wide+ws[i].Offset)
	}
}

// Widen is the record in IPv6's form.
func (c Codec[N, W]) Widen(n N) (w W) {
	from, to := unsafe.Pointer(&n), unsafe.Pointer(&w)
	for _, s := range c.steps {
		a, b := unsafe.Add(from, s.narrow), unsafe.Add(to, s.wide)
		switch {
		case s.size > 0:
			copy(unsafe.Slice((*byte)(b), s.size), unsafe.Slice((*byte)(a), s.size))
		case s.width > 0:
			*(*uint32)(b) = uint32(*(*uint16)(a))
		case *(*uint32)(a) != 0:
			*(*Addr)(b) = Addr{Word: [4]uint32{2: mapped, 3: *(*uint32)(a)}}
		}
	}
	return w
}

// Narrow is the record as it lies in IPv4's table; its addresses are of IPv4, or none.
func (c Codec[N, W]) Narrow(w W) (n N) {
	from, to := unsafe.Pointer(&w), unsafe.Pointer(&n)
	for _, s := range c.steps {
		a, b := unsafe.Add(from, s.wide), unsafe.Add(to, s.narrow)
		switch {
		case s.size > 0:
			copy(unsafe.Slice((*byte)(b), s.size), unsafe.Slice((*byte)(a), s.size))
		case s.width > 0:
			*(*uint16)(b) = uint16(*(*uint32)(a))
		default:
			*(*uint32)(b) = (*Addr)(a).Word[3]
		}
	}
	return n
}
