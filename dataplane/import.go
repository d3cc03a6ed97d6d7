// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"

	"github.com/conenat/conenat/bpf"
)

// importSeen are the TCP flags that both sides of a session in a state have sent: inside, outside.
var importSeen = map[string][2]uint8{
	stateNames[bpf.StateInitInside]:  {bpf.SeenSYN, 0},
	stateNames[bpf.StateInitOutside]: {0, bpf.SeenSYN},
	stateNames[bpf.StateEstablished]: {bpf.SeenSYN | bpf.SeenOther, bpf.SeenSYN | bpf.SeenOther},
	stateNames[bpf.StateFinInside]:   {bpf.SeenSYN | bpf.SeenFIN, bpf.SeenSYN | bpf.SeenOther},
	stateNames[bpf.StateFinOutside]:  {bpf.SeenSYN | bpf.SeenOther, bpf.SeenSYN | bpf.SeenFIN},
	stateNames[bpf.StateFinBoth]:     {bpf.SeenSYN | bpf.SeenFIN, bpf.SeenSYN | bpf.SeenFIN},
}

// ImportSession makes a session that lives in another NAT go on here, from the same external endpoint: Protocol (TCP or
// UDP), Internal, External, Remote and, of TCP, State are read. One that is there already stays as it is. Where the
// internal endpoint has a binding, the session keeps its own external endpoint beside it, and what the endpoint opens
// anew takes the binding. Errors: ErrNotFound (no such network or external address), ErrPortTaken, ErrFull.
func (d *Dataplane) ImportSession(s Session) error {
	defer d.writes.hold()()
	if err := d.importSession(s); err != nil {
		return fmt.Errorf("import %s session of %s by %s with %s: %w", s.Protocol, s.Internal, s.External, s.Remote, err)
	}
	return nil
}

func (d *Dataplane) importSession(s Session) error {
	if err := checkEndpoints(s.Internal, s.External, s.Remote); err != nil {
		return err
	}
	zone, _, err := d.zoneOf(s.Network, s.Internal.Addr())
	if err != nil {
		return err
	}
	r := mappingRequest(bpf.CommandImport, s.Protocol, zone, s.Internal, s.External)
	r.Remote, r.RemotePort = rawAddr(s.Remote.Addr()), rawPort(s.Remote.Port())
	if s.Protocol == TCP {
		seen, ok := importSeen[s.State]
		if !ok {
			return fmt.Errorf("state %q is none of a TCP session", s.State)
		}
		r.Seen, r.ReverseSeen = seen[0], seen[1]
	}
	return d.loadedOf(s.Internal.Addr()).request(&r)
}
