// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"net/netip"
	"time"

	"github.com/conenat/conenat/dataplane"
)

// Snapshot is the last picture of the Engine. What it refers to is shared with other snapshots: read only.
type Snapshot struct {
	// Incomplete: the Engine has not said yet what some containers are that run: nothing of what they may have is to be
	// taken away.
	Incomplete bool

	Connected bool      // false: the Engine has not answered yet, or is gone: the rest is the last that was known
	Problem   string    // why not connected, and what to do; empty while connected
	Engine    string    // "20.10.24, API 1.41"
	Networks  []Network // by name
	Problems  []string  // what cannot be used (labels, …) and is ignored: one line each, which names the object
}

// Network is one of the Engine's networks.
type Network struct {
	ID        string
	Name      string
	Driver    string                 // "bridge", "macvlan", …
	Interface string                 // the bridge device; empty where the driver has none
	LeftAlone string                 // why it is not to be translated; empty: it is
	ICC       bool                   // containers may talk to each other (com.docker.network.bridge.enable_icc)
	Subnets   []netip.Prefix         // IPv4
	Mapping   *[3]dataplane.Behavior // label conenat.mapping, by protocol as in dataplane.Network; nil: the daemon's
	Filtering *[3]dataplane.Behavior // label conenat.filtering, the same
	Limits    LimitsOver             // labels conenat.max-ports and conenat.max-sessions
	BlockSize *uint32                // label conenat.block-size; nil: the daemon's
	Refusal   *dataplane.Refusal     // label conenat.refusal, the same
	MSSClamp  *bool                  // label conenat.mss, the same
	Endpoints []Endpoint             // by container name
}

// Endpoint is a running container's place on a network.
type Endpoint struct {
	ID        string                 // of this attachment: another one each time that the container starts or connects
	Container string                 // ID
	Name      string                 // the container's
	Address   netip.Addr             // IPv4
	NetNSID   int                    // the container's network namespace as this one numbers it (IFLA_LINK_NETNSID); -1: not known
	Excluded  bool                   // label conenat.enable=false
	Filtering *[3]dataplane.Behavior // label conenat.filtering on the container; nil: the network's
	Began     time.Duration          // when the container's process did, since boot (CLOCK_BOOTTIME); 0: not known
	Published []Published            // in order; only where the container's default route leads, for there Docker publishes
}

// Published is a port of the host that leads to a port of the container.
type Published struct {
	Protocol      dataplane.Protocol // TCP or UDP
	Host          netip.Addr         // IPv4; the zero Addr: every address of the host
	HostPort      uint16
	ContainerPort uint16
}
