// SPDX-License-Identifier: Apache-2.0

package dockerfake

import (
	"fmt"
	"slices"

	"github.com/docker/docker/api/types/events"
)

// Network is one of the Engine's networks.
type Network struct {
	ID         string // empty: the Engine makes one
	Name       string
	Driver     string // empty: bridge
	Subnet     string // empty: no IPAM
	Gateway    string
	Subnet6    string // empty: no IPv6
	Gateway6   string
	Internal   bool
	Ingress    bool
	ConfigOnly bool
	Options    map[string]string
	Labels     map[string]string
}

// Container runs unless it was stopped.
type Container struct {
	ID      string // empty: the Engine makes one
	Name    string
	PID     int
	Labels  map[string]string
	Places  []Place
	Ports   []Port
	stopped bool
}

// Place is a container's on a network.
type Place struct {
	Network  string // name
	Address  string
	Gateway  string // empty: the network's
	Address6 string // empty: none, and no gateway of IPv6 either
	endpoint string
}

// Port is a published port.
type Port struct {
	Container string // "80/tcp"
	Host      string // "0.0.0.0", "::", an address, or empty
	HostPort  uint16
}

// Ports publishes count ports of one protocol, from the given ones up, on every address.
func Ports(protocol string, host, container uint16, count int) (out []Port) {
	for i := range count {
		out = append(out, Port{fmt.Sprintf("%d/%s", int(container)+i, protocol), "0.0.0.0", host + uint16(i)})
	}
	return out
}

// AddNetwork gives the network's ID.
func (e *Engine) AddNetwork(n Network) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n.ID == "" {
		n.ID = e.id()
	}
	if n.Driver == "" {
		n.Driver = "bridge"
	}
	e.networks = append(e.networks, &n)
	e.emit(events.NetworkEventType, events.ActionCreate, n.ID, map[string]string{"name": n.Name, "type": n.Driver})
	return n.ID
}

// RemoveNetwork takes it away.
func (e *Engine) RemoveNetwork(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.networks = slices.DeleteFunc(e.networks, func(n *Network) bool {
		if n.Name == name {
			e.emit(events.NetworkEventType, events.ActionDestroy, n.ID, map[string]string{"name": n.Name, "type": n.Driver})
		}
		return n.Name == name
	})
}

// Run starts a container that was not there and gives its ID.
func (e *Engine) Run(c Container) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.ID == "" {
		c.ID = e.id()
	}
	c.Places = slices.Clone(c.Places)
	e.containers = append(e.containers, &c)
	e.emit(events.ContainerEventType, events.ActionCreate, c.ID, map[string]string{"name": c.Name})
	e.start(&c)
	return c.ID
}

// start gives the container endpoints that are new.
func (e *Engine) start(c *Container) {
	c.stopped = false
	for i := range c.Places {
		e.connect(c, &c.Places[i])
	}
	e.emit(events.ContainerEventType, events.ActionStart, c.ID, map[string]string{"name": c.Name})
}

func (e *Engine) connect(c *Container, p *Place) {
	p.endpoint = e.id()
	e.onNetwork(events.ActionConnect, c, p)
}

func (e *Engine) onNetwork(action events.Action, c *Container, p *Place) {
	n := e.network(p.Network)
	e.emit(events.NetworkEventType, action, n.ID, map[string]string{"container": c.ID, "name": n.Name, "type": n.Driver})
}

// network panics if a test names one that is not there. The caller holds the lock, as of container.
func (e *Engine) network(name string) *Network {
	i := slices.IndexFunc(e.networks, func(n *Network) bool { return n.Name == name })
	if i < 0 {
		panic("no network " + name)
	}
	return e.networks[i]
}

func (e *Engine) container(name string) *Container {
	i := slices.IndexFunc(e.containers, func(c *Container) bool { return c.Name == name })
	if i < 0 {
		panic("no container " + name)
	}
	return e.containers[i]
}

// Stop ends the container's process; the container stays.
func (e *Engine) Stop(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stopContainer(e.container(name))
}

func (e *Engine) stopContainer(c *Container) {
	c.stopped = true
	e.emit(events.ContainerEventType, events.ActionDie, c.ID, map[string]string{"name": c.Name})
	for i := range c.Places {
		e.onNetwork(events.ActionDisconnect, c, &c.Places[i])
	}
	e.emit(events.ContainerEventType, events.ActionStop, c.ID, map[string]string{"name": c.Name})
}

// Start starts a stopped container in another process.
func (e *Engine) Start(name string, pid int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.container(name)
	c.PID = pid
	e.start(c)
}

// Remove is `docker rm -f`.
func (e *Engine) Remove(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.container(name)
	if !c.stopped {
		e.stopContainer(c)
	}
	e.containers = slices.DeleteFunc(e.containers, func(other *Container) bool { return other == c })
	e.emit(events.ContainerEventType, events.ActionDestroy, c.ID, map[string]string{"name": c.Name})
}

// Rename is `docker rename`.
func (e *Engine) Rename(name, to string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.container(name)
	c.Name = to
	e.emit(events.ContainerEventType, events.ActionRename, c.ID, map[string]string{"name": to, "oldName": "/" + name})
}

// Connect is `docker network connect`.
func (e *Engine) Connect(name string, p Place) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.container(name)
	c.Places = append(slices.Clone(c.Places), p)
	e.connect(c, &c.Places[len(c.Places)-1])
}

// Disconnect is `docker network disconnect`.
func (e *Engine) Disconnect(name, network string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.container(name)
	i := slices.IndexFunc(c.Places, func(p Place) bool { return p.Network == network })
	e.onNetwork(events.ActionDisconnect, c, &c.Places[i])
	c.Places = slices.Delete(slices.Clone(c.Places), i, i+1)
}
