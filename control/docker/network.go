// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/docker/docker/api/types/network"

	"github.com/conenat/conenat/dataplane"
)

// Options of the bridge driver (libnetwork/netlabel and drivers/bridge/labels.go).
const (
	optionName       = "com.docker.network.bridge.name"
	optionDefault    = "com.docker.network.bridge.default_bridge"
	optionICC        = "com.docker.network.bridge.enable_icc"
	optionMasquerade = "com.docker.network.bridge.enable_ip_masquerade"
	optionGateway    = "com.docker.network.bridge.gateway_mode_ipv4"
	optionGateway6   = "com.docker.network.bridge.gateway_mode_ipv6"
)

// newNetwork has no endpoints yet. mapping and filtering are the daemon's.
func newNetwork(n network.Summary, mapping, filtering [3]dataplane.Behavior) (Network, []string) {
	l, problems := parseLabels("network "+n.Name, n.Labels)
	w := Network{
		ID: n.ID, Name: n.Name, Driver: n.Driver, Interface: bridgeName(n), ICC: option(n, optionICC, true), Subnets: subnets(n),
	}
	if l.mapping != nil {
		w.Mapping = l.mapping.over(mapping)
	}
	if l.filtering != nil {
		w.Filtering = l.filtering.over(filtering)
	}
	w.Limits, w.BlockSize = l.limits, l.blockSize
	w.Refusal, w.MSSClamp, w.Exclude = l.refusal, l.mssClamp, l.exclude
	w.External, w.Mode, w.ExternalPrefix = l.external, l.mode, l.prefix
	if l.oneToOne {
		problems = append(problems, fmt.Sprintf("network %s: ignore label conenat.one-to-one=\"true\": it is a container's: give it to the container", n.Name))
	}
	w.LeftAlone = leftAlone(n, l)
	if w.LeftAlone == "" {
		w.LeftAlone, w.Partly = leftAloneByFamily(n, w.Subnets, l.modeOr(dataplane.ModeNAT))
	}
	return w, problems
}

// bridgeName: a network without the option has a bridge named after its ID.
func bridgeName(n network.Summary) string {
	switch {
	case n.Driver != "bridge" || n.ConfigOnly:
		return ""
	case n.Options[optionName] != "":
		return n.Options[optionName]
	case option(n, optionDefault, false):
		return "docker0"
	}
	return "br-" + n.ID[:min(12, len(n.ID))]
}

// option is a switch of the bridge driver; Docker itself refuses values that are none.
func option(n network.Summary, name string, otherwise bool) bool {
	value, err := strconv.ParseBool(n.Options[name])
	if err != nil {
		return otherwise
	}
	return value
}

func subnets(n network.Summary) (out []netip.Prefix) {
	for _, c := range n.IPAM.Config {
		p, err := netip.ParsePrefix(c.Subnet)
		if err == nil && (p.Addr().Is4() || n.EnableIPv6) { // a subnet without the switch is given to nobody
			out = append(out, p.Masked())
		}
	}
	return out
}

var otherDrivers = map[string]string{
	"host":    "its containers use the host's own network",
	"null":    "its containers have no network",
	"macvlan": "its containers are on the uplink's own network",
	"ipvlan":  "its containers are on the uplink's own network",
	"overlay": "swarm translates it",
}

// leftAlone is the first reason not to translate a network, in either family.
func leftAlone(n network.Summary, l labels) string {
	switch {
	case n.ConfigOnly:
		return "config-only: a template for other networks"
	case n.Ingress || n.Name == "docker_gwbridge":
		return "swarm's own network"
	case n.Driver != "bridge" && otherDrivers[n.Driver] != "":
		return fmt.Sprintf("driver %s: %s", n.Driver, otherDrivers[n.Driver])
	case n.Driver != "bridge":
		return fmt.Sprintf("driver %s: only bridge networks are translated", n.Driver)
	case n.Internal:
		return "internal: it has no way outside"
	case !option(n, optionMasquerade, true) && l.modeOr(dataplane.ModeNAT) == dataplane.ModeNAT:
		return fmt.Sprintf("masquerade is off (%s=false)", optionMasquerade)
	case l.disabled:
		return "label conenat.enable=false"
	}
	return ""
}

// leftAloneByFamily is why no family of a network's addresses is translated, or why one is not. That Docker has no NAT and lets everybody in
// (gateway mode routed) is no reason against a mode without bindings of the host's addresses, which somebody has asked for.
func leftAloneByFamily(n network.Summary, subnets []netip.Prefix, mode dataplane.Mode) (all string, partly Partly) {
	four := slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Addr().Is4() })
	six := slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Addr().Is6() })
	if four && mode != dataplane.ModeRouted {
		partly.IPv4 = gatewayMode(n, optionGateway)
	}
	if six && mode == dataplane.ModeNAT {
		partly.IPv6 = gatewayMode(n, optionGateway6)
	}
	switch {
	case !four && !six:
		return "no addresses", Partly{}
	case (four && partly.IPv4 == "") || (six && partly.IPv6 == ""):
		return "", partly
	case !four || partly.IPv4 == partly.IPv6:
		return partly.IPv6, Partly{}
	case !six:
		return partly.IPv4, Partly{}
	}
	return partly.IPv4 + "; " + partly.IPv6, Partly{}
}

// gatewayMode is why a family's gateway mode leaves nothing to translate; empty: it is nat or nat-unprotected.
func gatewayMode(n network.Summary, option string) string {
	if mode := n.Options[option]; mode == "routed" || mode == "isolated" {
		return fmt.Sprintf("gateway mode %s (%s)", mode, option)
	}
	return ""
}
