// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
)

var eventTypes = map[uint8]EventType{
	bpf.EventBindingCreated:  BindingCreated,
	bpf.EventBindingExpired:  BindingExpired,
	bpf.EventBindingChanged:  BindingChanged,
	bpf.EventSessionCreated:  SessionCreated,
	bpf.EventSessionState:    SessionState,
	bpf.EventSessionClosed:   SessionClosed,
	bpf.EventPortExhausted:   PortExhausted,
	bpf.EventQuotaExceeded:   QuotaExceeded,
	bpf.EventInboundFiltered: InboundFiltered,
	bpf.EventAddressMissing:  AddressMissing,
	bpf.EventBlockAllocated:  BlockAllocated,
	bpf.EventBlockReleased:   BlockReleased,
}

// lostCheck is after how many records in a row the count of lost ones is looked at; it is looked at whenever
// the ring is empty.
const lostCheck = 1024

// gather is how long the reader waits, after it has read all there was, before it asks for more: the events of a storm wake it 200 times
// a second at the most, and not one by one.
const gather = 5 * time.Millisecond

type eventReader struct {
	ring    *ringbuf.Reader
	lostMap *ebpf.Map
	lost    uint64 // reported so far
	unread  int    // records since the last look at lostMap
	record  ringbuf.Record
	empty   bool       // the ring was, after the last record
	pending *bpf.Event // read behind a loss that had to be told first
}

// newEventReader starts at the present: what an earlier daemon did not read is dropped.
func newEventReader(ring, lostMap *ebpf.Map) (*eventReader, error) {
	reader, err := ringbuf.NewReader(ring)
	if err != nil {
		return nil, fmt.Errorf("open event ring: %w", err)
	}
	r := &eventReader{ring: reader, lostMap: lostMap}
	reader.SetDeadline(time.Unix(1, 0))
	for reader.AvailableBytes() > 0 {
		if err := reader.ReadInto(&r.record); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			reader.Close()
			return nil, fmt.Errorf("drain event ring: %w", err)
		}
	}
	reader.SetDeadline(time.Time{})
	r.lost, err = sumPerCPU(lostMap, 0)
	if err != nil {
		reader.Close()
		return nil, err
	}
	return r, nil
}

func (r *eventReader) close() error { return r.ring.Close() }

// next waits for a record. lost is how many were lost before it.
func (r *eventReader) next(ctx context.Context) (e *bpf.Event, lost uint64, err error) {
	if e = r.pending; e != nil {
		r.pending = nil
		return e, 0, nil
	}
	stop := context.AfterFunc(ctx, func() { _ = r.ring.Flush() })
	defer stop()
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	if r.empty && !sleep(ctx, gather) {
		return nil, 0, ctx.Err()
	}
	for {
		err = r.ring.ReadInto(&r.record)
		if !errors.Is(err, ringbuf.ErrFlushed) {
			break
		}
		if ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read event ring: %w", err)
	}
	if e, err = decodeEvent(r.record.RawSample); err != nil {
		return nil, 0, err
	}
	r.unread++
	r.empty = r.record.Remaining == 0
	if r.record.Remaining > 0 && r.unread < lostCheck {
		return e, 0, nil
	}
	r.unread = 0
	total, err := sumPerCPU(r.lostMap, 0)
	if err != nil {
		return nil, 0, err
	}
	lost, r.lost = total-r.lost, total
	if lost > 0 {
		r.pending = e
	}
	return e, lost, nil
}

// sleep is false where ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func decodeEvent(raw []byte) (*bpf.Event, error) {
	e := new(bpf.Event)
	size := int(unsafe.Sizeof(*e))
	if len(raw) < size {
		return nil, fmt.Errorf("decode event: %d bytes, want %d", len(raw), size)
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(e)), size), raw)
	return e, nil
}

// ReadEvent waits for the next event. Events that the ring had no room for come as one EventsLost with their
// count: the maps are the truth then. One goroutine at a time. Error: ctx's, when it ends.
func (d *Dataplane) ReadEvent(ctx context.Context) (Event, error) {
	raw, lost, err := d.events.next(ctx)
	if err != nil {
		return Event{}, err
	}
	if lost > 0 {
		return Event{Time: time.Now(), Type: EventsLost, Count: lost}, nil
	}
	known, err := d.zoneName(raw.Zone)
	if err != nil {
		return Event{}, err
	}
	return d.eventOf(raw, known), nil
}

// zoneName is what a zone is called now.
func (d *Dataplane) zoneName(id uint16) (string, error) {
	known, err := d.ipv4.names()
	return known.zone(id), err
}

func (d *Dataplane) eventOf(raw *bpf.Event, network string) Event {
	e := Event{
		Time:     d.now().wallAt(raw.Time),
		Type:     eventTypes[raw.Type],
		Protocol: Protocol(raw.Proto),
		Network:  network,
		Internal: eventEndpoint(raw, raw.Internal, raw.InternalPort),
		External: eventEndpoint(raw, raw.External, raw.ExternalPort),
		Static:   raw.Flags&bpf.EventFlagStatic != 0,
		Hairpin:  raw.Flags&bpf.EventFlagHairpin != 0,
		Sessions: int(raw.SessionCount),
		Lifetime: durationOf(raw.Lifetime),
		Count:    uint64(raw.Count),
	}
	switch e.Type {
	case QuotaExceeded:
		e.Limit = limitOf(bpf.Reason(raw.Reason))
	case BlockAllocated, BlockReleased:
		e.Last = portOf(raw.LastPort)
	}
	switch e.Type {
	case BindingCreated, BindingChanged, BindingExpired:
		e.Remote = dependsOn(eventEndpoint(raw, raw.Remote, raw.RemotePort))
	case SessionState:
		e.OldState = stateName(raw.OldState)
		fallthrough
	case SessionCreated, SessionClosed:
		e.State = stateName(raw.State)
		fallthrough
	case InboundFiltered, AddressMissing, PortExhausted, QuotaExceeded:
		e.Remote = eventEndpoint(raw, raw.Remote, raw.RemotePort)
	}
	return e
}

// limitOf is what the limit is called that a packet was dropped for.
func limitOf(r bpf.Reason) string {
	switch {
	case r == bpf.ReasonQuota:
		return "binding_sessions"
	case r < bpf.ReasonCount:
		return strings.TrimPrefix(bpf.ReasonName(r), "dropped_")
	}
	return fmt.Sprintf("reason(%d)", r)
}

func stateName(s uint8) string {
	if s < bpf.StateCount {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", s)
}

// dependsOn is what of the remote endpoint a mapping depends on: the zero AddrPort for the event's zeros, which are nothing.
func dependsOn(remote netip.AddrPort) netip.AddrPort {
	if remote.Addr().IsUnspecified() {
		return netip.AddrPort{}
	}
	return remote
}

func eventEndpoint(e *bpf.Event, addr [16]uint8, port uint16) netip.AddrPort {
	a := netip.AddrFrom16(addr)
	if e.Family == unix.AF_INET {
		a = netip.AddrFrom4([4]byte(addr[:4]))
	}
	return netip.AddrPortFrom(a, portOf(port))
}
