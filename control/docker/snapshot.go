// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"net/netip"
	"time"

	"github.com/conenat/conenat/control/config"
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
	LeftAlone string                 // why it is not to be translated; empty: it is, in one family at least
	Partly    Partly                 // why one family of a network that is translated is not
	ICC       bool                   // containers may talk to each other (com.docker.network.bridge.enable_icc)
	Subnets   []netip.Prefix         // of both families
	Mapping   *[3]dataplane.Behavior // label conenat.mapping, by protocol as in dataplane.Network; nil: the daemon's
	Filtering *[3]dataplane.Behavior // label conenat.filtering, the same
	Limits    LimitsOver             // labels conenat.max-ports and conenat.max-sessions
	BlockSize *uint32                // label conenat.block-size; nil: the daemon's
	Refusal   *dataplane.Refusal     // label conenat.refusal, the same
	MSSClamp  *bool                  // label conenat.mss, the same
	Exclude   []netip.Prefix         // label conenat.exclude, the same
	External  []config.Range         // label conenat.external; nil: the configuration's
	Mode      *dataplane.Mode        // label conenat.mode, the same
	// ExternalPrefix is the label conenat.external-prefix, beside Mode.
	ExternalPrefix netip.Prefix
	Endpoints      []Endpoint // by container name
}

// Partly is why addresses of a family are not to be translated; empty: they are, or there are none.
type Partly struct{ IPv4, IPv6 string }

// Endpoint is a running container's place on a network.
type Endpoint struct {
	ID        string                 // of this attachment: another one each time that the container starts or connects
	Container string                 // ID
	Name      string                 // the container's
	Address   netip.Addr             // IPv4; the zero Addr: it has none
	Address6  netip.Addr             // IPv6, the same; it has at least one of the two
	NetNSID   int                    // the container's network namespace as this one numbers it (IFLA_LINK_NETNSID); -1: not known
	Excluded  bool                   // label conenat.enable=false
	Filtering *[3]dataplane.Behavior // label conenat.filtering on the container; nil: the network's
	External  []config.Range         // label conenat.external on the container; nil: the network's
	OneToOne  bool                   // label conenat.one-to-one: External is one address, and all of it the container's
	Began     time.Duration          // when the container's process did, since boot (CLOCK_BOOTTIME); 0: not known
	Published []Published            // in order; only where the container's default route of the family leads, for there Docker publishes
}

// Has says whether an address is the endpoint's.
func (e Endpoint) Has(a netip.Addr) bool { return a.IsValid() && (a == e.Address || a == e.Address6) }

// Like is the endpoint's address of the family of another one; the zero Addr: it has none.
func (e Endpoint) Like(a netip.Addr) netip.Addr {
	if a.Is4() {
		return e.Address
	}
	return e.Address6
}

// Published is a port of the host that leads to a port of the container.
type Published struct {
	Protocol      dataplane.Protocol // TCP or UDP
	Host          netip.Addr         // 0.0.0.0 and ::: every address of the host of that family
	HostPort      uint16
	ContainerPort uint16
}

// On says whether the port is published on an address of the host.
func (p Published) On(a netip.Addr) bool {
	return p.Host == a || (p.Host.IsUnspecified() && p.Host.Is4() == a.Is4())
}
