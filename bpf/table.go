// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Table is a map of one family, whose keys and values Go has in IPv6's form.
type Table[K comparable, V any] interface {
	// Lookup's error is ebpf.ErrKeyNotExist where there is none.
	Lookup(key K) (V, error)
	// Put makes or changes an element; Update as the flags say.
	Put(key K, value V) error
	Update(key K, value V, flags ebpf.MapUpdateFlags) error
	// Delete's error is ebpf.ErrKeyNotExist where there is none.
	Delete(key K) error
	// Dump reads a whole hash. Entries that come or go meanwhile may or may not be in it.
	Dump() (map[K]V, error)
	// Elements reads the first n elements of an array.
	Elements(n uint32) ([]V, error)
	// Map is the map itself.
	Map() *ebpf.Map
}

// table is a map with keys NK and values NV.
type table[NK, NV any, K comparable, V any] struct {
	m     *ebpf.Map
	key   Codec[NK, K]
	value Codec[NV, V]
}

// TableOf is a map that all families share.
func TableOf[K comparable, V any](m *ebpf.Map) Table[K, V] { return tableOf[K, V, K, V](m) }

func tableOf[NK, NV any, K comparable, V any](m *ebpf.Map) Table[K, V] {
	return table[NK, NV, K, V]{m: m, key: NewCodec[NK, K](), value: NewCodec[NV, V]()}
}

func (t table[NK, NV, K, V]) Map() *ebpf.Map { return t.m }

func (t table[NK, NV, K, V]) Lookup(key K) (value V, err error) {
	var raw NV
	if err := t.m.Lookup(t.key.Narrow(key), &raw); err != nil {
		return value, err
	}
	return t.value.Widen(raw), nil
}

func (t table[NK, NV, K, V]) Put(key K, value V) error { return t.Update(key, value, ebpf.UpdateAny) }

func (t table[NK, NV, K, V]) Update(key K, value V, flags ebpf.MapUpdateFlags) error {
	return t.m.Update(t.key.Narrow(key), t.value.Narrow(value), flags)
}

func (t table[NK, NV, K, V]) Delete(key K) error { return t.m.Delete(t.key.Narrow(key)) }

// batch is how many elements are read in one system call.
const batch = 4096

func (t table[NK, NV, K, V]) Dump() (map[K]V, error) {
	out := map[K]V{}
	chunk := min(batch, int(t.m.MaxEntries()))
	for {
		err := t.chunks(chunk, func(key NK, value NV) bool {
			out[t.key.Widen(key)] = t.value.Widen(value)
			return true
		})
		if !errors.Is(err, unix.ENOSPC) {
			return out, err
		}
		chunk *= 2 // a bucket has more entries than the chunk
	}
}

func (t table[NK, NV, K, V]) Elements(n uint32) ([]V, error) {
	out := make([]V, 0, n)
	if n == 0 {
		return out, nil
	}
	err := t.chunks(int(min(batch, n)), func(_ NK, value NV) bool {
		out = append(out, t.value.Widen(value))
		return len(out) < int(n)
	})
	return out, err
}

// chunks visits all elements, until visit says that it is enough.
func (t table[NK, NV, K, V]) chunks(chunk int, visit func(NK, NV) bool) error {
	keys, values := make([]NK, chunk), make([]NV, chunk)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := t.m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			if !visit(keys[i], values[i]) {
				return nil
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
