// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/go-connections/nat"

	"github.com/conenat/conenat/dataplane"
)

// containerState is a running container in words of its own, which do not depend on any network's state.
type containerState struct {
	id, name    string
	pid         int
	attachments []attachment // by network name
	namespace   Namespace
	partial     bool // the namespace could not be read
	labels      labels
	published   []Published
	problems    []string
}

// attachment is the container's place on one network.
type attachment struct {
	network  string // ID
	name     string // the network's
	endpoint string // ID: another one each time that the container starts or connects
	address  netip.Addr
	gateway  netip.Addr

	address6, gateway6 netip.Addr
}

func (a attachment) attached() bool { return a.address.IsValid() || a.address6.IsValid() }

func newContainerState(answer container.InspectResponse) *containerState {
	c := &containerState{
		id: answer.ID, name: strings.TrimPrefix(answer.Name, "/"), pid: answer.State.Pid, namespace: Namespace{ID: -1},
	}
	for name, e := range answer.NetworkSettings.Networks {
		if e != nil {
			c.attachments = append(c.attachments, attachment{e.NetworkID, name, e.EndpointID, ipv4(e.IPAddress), ipv4(e.Gateway),
				ipv6(e.GlobalIPv6Address), ipv6(e.IPv6Gateway)})
		}
	}
	slices.SortFunc(c.attachments, func(a, b attachment) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.network, b.network))
	})
	var refused []string
	c.labels, c.problems = parseLabels("container "+c.name, answer.Config.Labels)
	if c.labels.mapping != nil {
		c.problems = append(c.problems, fmt.Sprintf("container %s: ignore label conenat.mapping=%q: mapping is a network's: give the label to the network",
			c.name, answer.Config.Labels["conenat.mapping"]))
	}
	for _, label := range c.labels.ofNetworks() {
		c.problems = append(c.problems, fmt.Sprintf("container %s: ignore label %s=%q: it is a network's: give it to the network",
			c.name, label, answer.Config.Labels[label]))
	}
	c.published, refused = published(answer.NetworkSettings.Ports)
	for _, what := range refused {
		c.problems = append(c.problems, fmt.Sprintf("container %s: %s", c.name, what))
	}
	return c
}

// ipv4 gives the zero Addr for what is not one.
func ipv4(s string) netip.Addr {
	addr, err := netip.ParseAddr(s)
	if addr = addr.Unmap(); err != nil || !addr.Is4() {
		return netip.Addr{}
	}
	return addr
}

// ipv6 is the same for IPv6.
func ipv6(s string) netip.Addr {
	addr, err := netip.ParseAddr(s)
	if err != nil || !addr.Is6() || addr.Is4In6() {
		return netip.Addr{}
	}
	return addr.WithZone("")
}

// matches says whether a list's line is of the same state, as far as it tells.
func (c *containerState) matches(line container.Summary) bool {
	if line.NetworkSettings == nil || len(line.NetworkSettings.Networks) != len(c.attachments) || !slices.Contains(line.Names, "/"+c.name) {
		return false
	}
	for _, a := range c.attachments {
		if e := line.NetworkSettings.Networks[a.name]; e == nil || e.EndpointID != a.endpoint {
			return false
		}
	}
	return true
}

// readNamespace finds the container's network namespace. A process that has no address of the container's is
// another one: it is numbered in another PID namespace, or has ended meanwhile.
func (c *containerState) readNamespace(read func(pid int) (Namespace, error)) error {
	if c.pid == 0 || !slices.ContainsFunc(c.attachments, attachment.attached) {
		return nil // restarting, or without a network of its own
	}
	c.partial = true
	found, err := read(c.pid)
	if err != nil {
		return fmt.Errorf("read the network namespace of its process %d: %w", c.pid, err)
	}
	its := func(a attachment) bool {
		return slices.Contains(found.Addresses, a.address) || slices.Contains(found.Addresses, a.address6)
	}
	if !slices.ContainsFunc(c.attachments, its) {
		return fmt.Errorf("process %d has none of its addresses: run conenat in the PID namespace of dockerd", c.pid)
	}
	c.namespace = found
	c.partial = found.ID < 0
	if c.partial {
		return fmt.Errorf("the network namespace of its process %d has no number in this one: run conenat in the network namespace of dockerd", c.pid)
	}
	return nil
}

// The protocols of which a port can be bound.
var portProtocols = map[string]dataplane.Protocol{"tcp": dataplane.TCP, "udp": dataplane.UDP}

// published are the ports that are really bound, by protocol, host address and port, and what is not translated.
func published(ports nat.PortMap) (out []Published, refused []string) {
	others := map[string]string{} // by protocol and port of the host, for which two families are one
	for port, bindings := range ports {
		protocol, known := portProtocols[port.Proto()]
		number, err := strconv.ParseUint(port.Port(), 10, 16)
		for _, b := range bindings {
			bound, bad := strconv.ParseUint(b.HostPort, 10, 16)
			switch {
			case bad != nil || bound == 0 || err != nil || number == 0:
			case !known:
				others[port.Proto()+"/"+b.HostPort] = port.Proto()
			default:
				for _, host := range hostAddresses(b.HostIP) {
					out = append(out, Published{protocol, host, uint16(bound), uint16(number)})
				}
			}
		}
	}
	slices.SortFunc(out, comparePublished)
	counts := map[string]int{}
	for _, name := range others {
		counts[name]++
	}
	for name, n := range counts {
		refused = append(refused, fmt.Sprintf("%d published %s ports stay with Docker's own rules: conenat binds ports of tcp and udp", n, name))
	}
	slices.Sort(refused)
	return slices.Compact(out), refused
}

func comparePublished(a, b Published) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.Host.Compare(b.Host),
		cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.ContainerPort, b.ContainerPort))
}

// hostAddresses are where a port is published by one line of Docker's: where that names no address, everywhere.
func hostAddresses(s string) []netip.Addr {
	if s == "" {
		return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return nil
	}
	return []netip.Addr{addr.Unmap()}
}
