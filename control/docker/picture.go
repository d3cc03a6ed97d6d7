// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/conenat/conenat/dataplane"
)

// picture puts together what is known.
func (n *session) picture() Snapshot {
	p := Snapshot{Connected: true, Engine: n.engine}
	for _, summary := range n.networks {
		w, problems := newNetwork(summary, n.s.mapping, n.s.filtering)
		p.Networks = append(p.Networks, w)
		p.Problems = append(p.Problems, problems...)
	}
	slices.SortFunc(p.Networks, func(a, b Network) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	byID := map[string]*Network{}
	for i := range p.Networks {
		byID[p.Networks[i].ID] = &p.Networks[i]
	}
	for _, c := range n.byName() {
		c.place(byID, n.s.filtering)
		p.Problems = append(p.Problems, c.problems...)
	}
	p.Problems = append(p.Problems, n.silent()...)
	slices.Sort(p.Problems)
	return p
}

func (n *session) byName() []*containerState {
	return slices.SortedFunc(maps.Values(n.containers), func(a, b *containerState) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.id, b.id))
	})
}

// silent names the containers for which the Engine does not answer.
func (n *session) silent() (problems []string) {
	name := func(id string) string {
		if c := n.containers[id]; c != nil {
			return c.name + ": as last seen"
		}
		return id[:min(12, len(id))] + ": not known"
	}
	for id, err := range n.failed {
		if c := n.containers[id]; c != nil && c.partial {
			problems = append(problems, fmt.Sprintf("container %s: %v", c.name, err))
			continue
		}
		problems = append(problems, fmt.Sprintf("container %s: inspect: %v", name(id), err))
	}
	for id, asked := range n.inspecting {
		if n.failed[id] == nil && time.Since(asked.since) >= n.s.times.settle {
			problems = append(problems, fmt.Sprintf("container %s: dockerd does not answer for it yet", name(id)))
		}
	}
	return problems
}

// place puts the container on its networks. base is the daemon's filtering.
func (c *containerState) place(networks map[string]*Network, base [3]dataplane.Behavior) {
	four, six := c.publisher(networks), c.publisher6(networks)
	for i, a := range c.attachments {
		w := networks[a.network]
		if w == nil || !a.attached() {
			continue
		}
		e := Endpoint{ID: a.endpoint, Container: c.id, Name: c.name, Address: a.address, Address6: a.address6, NetNSID: c.namespace.ID,
			Excluded: c.labels.disabled, External: c.labels.external, OneToOne: c.labels.oneToOne && (i == four || i == six), Began: c.namespace.Began}
		if f := c.labels.filtering; f != nil && w.Filtering != nil {
			e.Filtering = f.over(*w.Filtering)
		} else if f != nil {
			e.Filtering = f.over(base)
		}
		for _, p := range c.published {
			if (p.Host.Is4() && i == four) || (p.Host.Is6() && i == six) {
				e.Published = append(e.Published, p)
			}
		}
		w.Endpoints = append(w.Endpoints, e)
	}
}

// publisher is the index of the attachment where Docker publishes on IPv4: its gateway is that of the container's
// default route. Where that is not known, or leads elsewhere (a VPN in the container), it is the first
// translated one by network name, which is Docker's own order among networks of one priority.
func (c *containerState) publisher(networks map[string]*Network) int {
	first := -1
	for i, a := range c.attachments {
		w := networks[a.network]
		switch {
		case w == nil || !a.address.IsValid():
		case a.gateway.IsValid() && a.gateway == c.namespace.Gateway:
			return i
		case first < 0 && w.LeftAlone == "" && w.Partly.IPv4 == "":
			first = i
		}
	}
	return first
}

// publisher6 is the same on IPv6. A container that has addresses of it and no default route answers nobody outside, and
// Docker's proxy takes its ports to IPv4.
func (c *containerState) publisher6(networks map[string]*Network) int {
	first, known := -1, c.namespace.ID >= 0
	for i, a := range c.attachments {
		w := networks[a.network]
		switch {
		case w == nil || !a.address6.IsValid() || (known && !c.namespace.Gateway6.IsValid()):
		case a.gateway6.IsValid() && a.gateway6 == c.namespace.Gateway6:
			return i
		case first < 0 && w.LeftAlone == "" && w.Partly.IPv6 == "":
			first = i
		}
	}
	return first
}
