// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/tests/bench/report"
)

// memoryUse is what the kernel has taken for sessions.
type memoryUse struct {
	maps     uint64 // bytes of the maps of sessions
	capacity int    // sessions that those hold
	slab     uint64 // bytes of slab nf_conntrack
	allSlabs uint64 // bytes of all slabs that cannot be taken back
}

// memory is that of the machine, for netfilter, or of a conenat's maps.
func (c *course) memory() (memoryUse, error) {
	if !c.isNetfilter() {
		return mapsOf(c.lab.StateDir)
	}
	slabs, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		return memoryUse{}, err
	}
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return memoryUse{}, err
	}
	var m memoryUse
	if m.slab, err = conntrackSlab(string(slabs)); err != nil {
		return m, err
	}
	m.allSlabs, err = unreclaimable(string(meminfo))
	return m, err
}

// perSession is what so many sessions more have taken. Maps that were made for all of their sessions have taken it before.
func (m memoryUse) perSession(before memoryUse, sessions int) map[string]float64 {
	if m.capacity > 0 {
		return map[string]float64{report.Memory: float64(m.maps) / float64(m.capacity)}
	}
	grown := func(now, before uint64) float64 { return (float64(now) - float64(before)) / float64(sessions) }
	return map[string]float64{report.Memory: grown(m.slab, before.slab), report.AllSlabs: grown(m.allSlabs, before.allSlabs)}
}

// mapsOf is the memory of the maps of sessions that are pinned below a state directory: sessions, session_slots and session_free.
func mapsOf(stateDir string) (m memoryUse, err error) {
	files, err := filepath.Glob(filepath.Join(stateDir, "abi-*", "session*"))
	if err != nil {
		return m, err
	}
	for _, file := range files {
		if err := m.addMap(file); err != nil {
			return m, fmt.Errorf("ask for the memory of %s: %w", file, err)
		}
	}
	if m.capacity == 0 {
		return m, fmt.Errorf("no map of sessions' slots among %q", files)
	}
	return m, nil
}

// addMap: a session has one slot, whatever else it has two of.
func (m *memoryUse) addMap(file string) error {
	pinned, err := ebpf.LoadPinnedMap(file, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer pinned.Close()
	info, err := pinned.Info()
	if err != nil {
		return err
	}
	bytes, ok := info.Memlock()
	if !ok {
		return fmt.Errorf("the kernel does not tell")
	}
	m.maps += bytes
	if strings.HasPrefix(filepath.Base(file), "session_slots") {
		m.capacity = int(pinned.MaxEntries())
	}
	return nil
}

// name, active objects, all objects, bytes of one, …: of which the slabs are <active slabs> <slabs>, pages each.
var slab = regexp.MustCompile(`(?m)^nf_conntrack +\d+ +\d+ +\d+ +\d+ +(\d+) : tunables .*: slabdata +\d+ +(\d+) `)

const pageSize = 4096

// conntrackSlab reads /proc/slabinfo: what the slab's pages take.
func conntrackSlab(slabinfo string) (uint64, error) {
	found := slab.FindStringSubmatch(slabinfo)
	if found == nil {
		return 0, fmt.Errorf("/proc/slabinfo has no nf_conntrack")
	}
	pages, err := strconv.ParseUint(found[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read /proc/slabinfo: %w", err)
	}
	slabs, err := strconv.ParseUint(found[2], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read /proc/slabinfo: %w", err)
	}
	return pages * slabs * pageSize, nil
}

var unreclaim = regexp.MustCompile(`(?m)^SUnreclaim: +(\d+) kB$`)

func unreclaimable(meminfo string) (uint64, error) {
	found := unreclaim.FindStringSubmatch(meminfo)
	if found == nil {
		return 0, fmt.Errorf("/proc/meminfo has no SUnreclaim")
	}
	kilobytes, err := strconv.ParseUint(found[1], 10, 64)
	return kilobytes << 10, err
}
