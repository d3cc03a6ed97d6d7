// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"reflect"
	"testing"
	"unsafe"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestAddr(t *testing.T) {
	for _, s := range []string{"192.0.2.1", "2001:db8::1", "255.255.0.0", "ff02::1"} {
		a := netip.MustParseAddr(s)
		if got := NetIP(AddrOf(a)); got != a {
			t.Errorf("%s comes back as %s", a, got)
		}
	}
	if got := NetIP(AddrOf(netip.Addr{})); got.IsValid() {
		t.Errorf("none comes back as %s", got)
	}
}

// checkCodec: any record of IPv4's table comes back as it was, and no byte of it but the padding is left out.
func checkCodec[N comparable, W any](t *testing.T) {
	t.Helper()
	t.Run(reflect.TypeFor[N]().Name(), func(t *testing.T) {
		c := NewCodec[N, W]()
		covered := uintptr(0)
		for _, s := range c.steps {
			switch {
			case s.size > 0:
				covered += s.size
			case s.width > 0:
				covered += 2
			default:
				covered += 4
			}
		}
		if size, pad := reflect.TypeFor[N]().Size(), padding(reflect.TypeFor[N]()); covered+pad != size {
			t.Errorf("%d bytes of %d are of fields, and %d of padding", covered, size, pad)
		}
		rapid.Check(t, func(t *rapid.T) {
			var n N
			bytes := rapid.SliceOfN(rapid.Byte(), int(unsafe.Sizeof(n)), int(unsafe.Sizeof(n))).Draw(t, "record")
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&n)), unsafe.Sizeof(n)), bytes)
			clean := c.Narrow(c.Widen(n)) // without what was in the padding
			if again := c.Narrow(c.Widen(clean)); again != clean {
				t.Errorf("comes back otherwise:\n%s", gocmp.Diff(clean, again, gocmp.Exporter(func(reflect.Type) bool { return true })))
			}
			if wide := c.Widen(n); !reflect.DeepEqual(wide, c.Widen(clean)) {
				t.Error("what comes back is another record")
			}
		})
	})
}

// padding is how many bytes of a type are in no field, or in one called Pad.
func padding(t reflect.Type) uintptr {
	switch {
	case t.Kind() == reflect.Array && t.Elem().Kind() == reflect.Struct:
		return uintptr(t.Len()) * padding(t.Elem())
	case t.Kind() != reflect.Struct:
		return 0
	}
	left := t.Size()
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Name == "_" || len(f.Name) >= 3 && f.Name[:3] == "Pad" {
			continue
		}
		left -= f.Type.Size() - padding(f.Type)
	}
	return left
}

func TestCodecs(t *testing.T) {
	checkCodec[natSessionKey4, nat6SessionKey6](t)
	checkCodec[natSessionHalf4, nat6SessionHalf6](t)
	checkCodec[natSessionSlot4, nat6SessionSlot6](t)
	checkCodec[natBinding4, nat6Binding6](t)
	checkCodec[natBindingKey4, nat6BindingKey6](t)
	checkCodec[natClaimKey4, nat6ClaimKey6](t)
	checkCodec[natPermissionKey4, nat6PermissionKey6](t)
	checkCodec[natFragmentKey4, nat6FragmentKey6](t)
	checkCodec[natFragment4, nat6Fragment6](t)
	checkCodec[natOriginKey4, nat6OriginKey6](t)
	checkCodec[natOwnerKey4, nat6OwnerKey6](t)
	checkCodec[natBlockKey4, nat6BlockKey6](t)
	checkCodec[natNatBlocks4, nat6NatBlocks6](t)
	checkCodec[natExclusionKey4, nat6ExclusionKey6](t)
	checkCodec[natNatExternal4, nat6NatExternal6](t)
	checkCodec[natNatSet4, nat6NatSet6](t)
	checkCodec[natNatZone4, nat6NatZone6](t)
	checkCodec[natNatRealm4, nat6NatRealm6](t)
	checkCodec[natNatRequest4, nat6NatRequest6](t)
}

// TestCodecRefuses: two structs that are not one of abi.h's.
func TestCodecRefuses(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a codec of a binding and a session")
		}
	}()
	NewCodec[natBinding4, nat6SessionHalf6]()
}
