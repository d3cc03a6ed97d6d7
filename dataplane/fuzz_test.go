// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/conenat/conenat/bpf"
)

// FuzzEvent: whatever lies in the ring is an event or an error, whose endpoints are valid.
func FuzzEvent(f *testing.F) {
	for kind := range eventTypes {
		var raw bytes.Buffer
		if err := binary.Write(&raw, binary.NativeEndian, bpf.Event{Type: kind, Proto: uint8(UDP), State: 3, OldState: 200, Zone: 1}); err != nil {
			f.Fatal(err)
		}
		f.Add(raw.Bytes())
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		decoded, err := decodeEvent(raw)
		if err != nil {
			return
		}
		e := new(Dataplane).eventOf(decoded, "net")
		if !e.Internal.IsValid() || !e.External.IsValid() || (e.State == "" && (e.Type == SessionCreated || e.Type == SessionClosed)) {
			t.Errorf("%+v", e)
		}
	})
}
