// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/dataplane"
)

// tables is all that the maps and the programs' variables hold, byte for byte, by name. The ring of events, which
// is no table, is empty or not.
type tables map[string]table

// table is a map's keys and values. Of an array, elements of zeros alone are left out. A queue's keys are places,
// and a variable has one, which is empty.
type table map[string][]byte

// scratch ends the names of maps that hold nothing from one packet to the next: scratch.h.
const scratch = "Scratch"

// objectsOf are the fields of one type in the loaded objects, by name: what is added to them later is among them. IPv6's have an
// ending; those that IPv4's share with them are there twice.
func objectsOf[T comparable](d *dataplane.Dataplane) iter.Seq2[string, T] {
	return func(yield func(string, T) bool) {
		for ending, objects := range map[string]any{"": d.Objects(), "/IPv6": d.Objects6()} {
			v := reflect.ValueOf(objects).Elem()
			for _, field := range reflect.VisibleFields(v.Type()) {
				if !field.IsExported() || strings.HasSuffix(field.Name, scratch) {
					continue
				}
				o, ok := v.FieldByIndex(field.Index).Interface().(T)
				if ok && o != *new(T) && !yield(field.Name+ending, o) {
					return
				}
			}
		}
	}
}

// stopTimer lets the sweepers' elements be written: the kernel cancels a timer whose element is. Renewed starts it again.
func (f *fixture) stopTimer() error {
	for _, t := range f.DP.Tables() {
		if err := t.Sweeper.Put(uint32(0), make([]byte, t.Sweeper.ValueSize())); err != nil {
			return fmt.Errorf("stop the sweeper's timer: %w", err)
		}
	}
	return nil
}

// readTables stops the timer first, so that nothing moves meanwhile.
func (f *fixture) readTables() (tables, error) {
	if err := f.stopTimer(); err != nil {
		return nil, err
	}
	all := tables{}
	for name, m := range objectsOf[*ebpf.Map](f.DP) {
		t, err := readTable(m)
		if err != nil {
			return nil, fmt.Errorf("read map %s: %w", name, err)
		}
		all[name] = t
	}
	for name, v := range objectsOf[*ebpf.Variable](f.DP) {
		value := make([]byte, v.Size())
		if err := v.Get(value); err != nil {
			return nil, fmt.Errorf("read variable %s: %w", name, err)
		}
		all[name] = table{"": value}
	}
	return all, nil
}

// writeTables makes the tables what they were, starts the timer again, and has the dataplane forget what it knew.
func (f *fixture) writeTables(want tables) error {
	if err := f.changeTables(want); err != nil {
		return err
	}
	renewed, err := f.DP.Renewed()
	if err != nil {
		return err
	}
	f.DP = renewed
	if n := f.ring.AvailableBytes(); n != 0 {
		return fmt.Errorf("%d bytes of events in the ring", n)
	}
	return nil
}

// changeTables reads all of them, writes what differs, and reads again where it has written.
func (f *fixture) changeTables(want tables) error {
	got, err := f.readTables()
	if err != nil {
		return err
	}
	for name, m := range objectsOf[*ebpf.Map](f.DP) {
		if maps.EqualFunc(got[name], want[name], bytes.Equal) {
			continue
		}
		if err := changeTable(m, got[name], want[name]); err != nil {
			return fmt.Errorf("write map %s: %w", name, err)
		}
		if got[name], err = readTable(m); err != nil {
			return fmt.Errorf("read map %s again: %w", name, err)
		}
	}
	for name, v := range objectsOf[*ebpf.Variable](f.DP) {
		if want[name] == nil || bytes.Equal(got[name][""], want[name][""]) { // IPv6 is loaded since
			continue
		}
		if err := errors.Join(v.Set(want[name][""]), v.Get(got[name][""])); err != nil {
			return fmt.Errorf("write variable %s: %w", name, err)
		}
	}
	return want.same(got)
}

// same names the tables that differ.
func (want tables) same(got tables) error {
	var errs []error
	for name := range want {
		for key := range differences(got[name], want[name]) {
			errs = append(errs, fmt.Errorf("%s at %x: %x, want %x", name, key, got[name][key], want[name][key]))
		}
	}
	return errors.Join(errs...)
}

// differences are the keys at which two tables differ, and what is wanted there: nil for nothing.
func differences(got, want table) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for key, value := range want {
			if has, ok := got[key]; (!ok || !bytes.Equal(has, value)) && !yield(key, value) {
				return
			}
		}
		for key := range got {
			if _, ok := want[key]; !ok && !yield(key, nil) {
				return
			}
		}
	}
}

// changeTable writes what differs.
func changeTable(m *ebpf.Map, got, want table) error {
	if m.Type() == ebpf.Queue {
		return errors.Join(emptyQueue(m, func([]byte) {}), fillQueue(m, want))
	}
	for key, value := range differences(got, want) {
		if err := changeElement(m, []byte(key), value); err != nil {
			return err
		}
	}
	return nil
}

func changeElement(m *ebpf.Map, key, value []byte) error {
	switch m.Type() {
	case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie:
		if value == nil {
			return m.Delete(key)
		}
		return m.Put(key, value)
	case ebpf.PerCPUArray:
		if value == nil {
			value = make([]byte, ebpf.MustPossibleCPU()*perCPUSize(m))
		}
		return m.Put(key, slices.Collect(slices.Chunk(value, perCPUSize(m))))
	}
	if value == nil {
		value = make([]byte, m.ValueSize())
	}
	return m.Put(key, value)
}

// perCPUSize is how far apart the kernel lays the values of two CPUs.
func perCPUSize(m *ebpf.Map) int { return (int(m.ValueSize()) + 7) &^ 7 }

func readTable(m *ebpf.Map) (table, error) {
	switch m.Type() {
	case ebpf.Array:
		t := table{}
		zeros := make([]byte, m.ValueSize())
		return t, readBatches(m, func(key, value []byte) {
			if !bytes.Equal(value, zeros) {
				t[string(key)] = bytes.Clone(value)
			}
		})
	case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie:
		t := table{}
		return t, readBatches(m, func(key, value []byte) { t[string(key)] = bytes.Clone(value) })
	case ebpf.PerCPUArray:
		return readPerCPU(m)
	case ebpf.Queue:
		return readQueue(m)
	case ebpf.RingBuf, ebpf.ProgramArray:
		return nil, nil
	}
	return nil, fmt.Errorf("no way to read a map of type %s", m.Type())
}

// readBatches looks at all elements of a map, at many in one system call.
func readBatches(m *ebpf.Map, visit func(key, value []byte)) error {
	n := min(int(m.MaxEntries()), 4096)
	keys, keyBytes := arrays(n, m.KeySize())
	values, valueBytes := arrays(n, m.ValueSize())
	var cursor ebpf.MapBatchCursor
	for {
		count, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range count {
			visit(element(keyBytes, i, m.KeySize()), element(valueBytes, i, m.ValueSize()))
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// arrays makes a slice of arrays of bytes, as cilium/ebpf wants it for elements of any size, and gives its bytes, too.
func arrays(n int, size uint32) (slice any, flat []byte) {
	v := reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]())), n, n)
	return v.Interface(), unsafe.Slice((*byte)(v.UnsafePointer()), n*int(size))
}

func element(flat []byte, i int, size uint32) []byte { return flat[i*int(size):][:size] }

// readPerCPU gives each element the values of all CPUs, one after the other.
func readPerCPU(m *ebpf.Map) (table, error) {
	t := table{}
	for index := range m.MaxEntries() {
		value, err := m.LookupBytes(index)
		if err != nil {
			return nil, err
		}
		if slices.Max(value) != 0 {
			t[indexKey(index)] = value
		}
	}
	return t, nil
}

func indexKey(index uint32) string { return string(binary.NativeEndian.AppendUint32(nil, index)) }

// readQueue takes all elements out, and puts them back.
func readQueue(m *ebpf.Map) (table, error) {
	t := table{}
	err := emptyQueue(m, func(value []byte) { t[indexKey(uint32(len(t)))] = value })
	return t, errors.Join(err, fillQueue(m, t))
}

func emptyQueue(m *ebpf.Map, visit func(value []byte)) error {
	for {
		value := make([]byte, m.ValueSize())
		err := m.LookupAndDelete(nil, &value)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		visit(value)
	}
}

func fillQueue(m *ebpf.Map, t table) error {
	for place := range uint32(len(t)) {
		if err := m.Put(nil, t[indexKey(place)]); err != nil {
			return err
		}
	}
	return nil
}
