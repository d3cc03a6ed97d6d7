// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/dataplane"
)

// Every label of conenat's begins so.
const labelPrefix = "conenat."

// labels is what an object's labels say.
type labels struct {
	disabled  bool // conenat.enable=false
	mapping   *behaviors
	filtering *behaviors
	limits    LimitsOver
	blockSize *uint32
	refusal   *dataplane.Refusal
	mssClamp  *bool
	exclude   []netip.Prefix // nil: no label
	external  []config.Range // nil: no label
	oneToOne  bool
	mode      *dataplane.Mode
	prefix    netip.Prefix // conenat.external-prefix
}

// LimitsOver has nil for what a label does not name.
type LimitsOver struct {
	HostPorts, HostSessions, NetworkPorts, NetworkSessions *uint32
}

// Over gives the limits of the labels, and those of base where they say nothing.
func (l LimitsOver) Over(base dataplane.Limits) dataplane.Limits {
	for _, named := range []struct {
		from *uint32
		to   *uint32
	}{
		{l.HostPorts, &base.HostPorts}, {l.HostSessions, &base.HostSessions},
		{l.NetworkPorts, &base.NetworkPorts}, {l.NetworkSessions, &base.NetworkSessions},
	} {
		if named.from != nil {
			*named.to = *named.from
		}
	}
	return base
}

// behaviors has nil for the protocols that a label does not name; indices as in dataplane.Network.
type behaviors [3]*dataplane.Behavior

// over gives the behaviours of the label, and those of base where it says nothing.
func (b *behaviors) over(base [3]dataplane.Behavior) *[3]dataplane.Behavior {
	for i, named := range b {
		if named != nil {
			base[i] = *named
		}
	}
	return &base
}

// parseLabels reads conenat's labels of an object ("container web"). What cannot be used is a problem, in order,
// and otherwise as if it were not there.
func parseLabels(object string, all map[string]string) (l labels, problems []string) {
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if !strings.HasPrefix(key, labelPrefix) {
			continue
		}
		if err := l.parse(key, all[key]); err != nil {
			problems = append(problems, fmt.Sprintf("%s: ignore label %s=%q: %v", object, key, all[key], err))
		}
	}
	if l.oneToOne && (len(l.external) != 1 || !l.external[0].Single()) {
		l.oneToOne = false
		problems = append(problems, fmt.Sprintf("%s: ignore label conenat.one-to-one=\"true\": want one address of its own beside it: conenat.external=ADDR", object))
	}
	if mode := l.modeOr(dataplane.ModeNAT); l.mode != nil || l.prefix.IsValid() {
		if err := config.CheckMode(mode, l.prefix); err != nil {
			l.mode, l.prefix = nil, netip.Prefix{}
			problems = append(problems, fmt.Sprintf("%s: ignore labels conenat.mode and conenat.external-prefix: %v", object, err))
		}
	}
	return l, problems
}

func (l *labels) modeOr(otherwise dataplane.Mode) dataplane.Mode {
	if l.mode == nil {
		return otherwise
	}
	return *l.mode
}

// ofNetworks are the labels of limits, blocks, destinations and what hosts are told, which are a network's, for each of its containers.
func (l *labels) ofNetworks() (given []string) {
	if l.limits.HostPorts != nil || l.limits.NetworkPorts != nil {
		given = append(given, "conenat.max-ports")
	}
	if l.limits.HostSessions != nil || l.limits.NetworkSessions != nil {
		given = append(given, "conenat.max-sessions")
	}
	if l.blockSize != nil {
		given = append(given, "conenat.block-size")
	}
	if l.refusal != nil {
		given = append(given, "conenat.refusal")
	}
	if l.mssClamp != nil {
		given = append(given, "conenat.mss")
	}
	if l.exclude != nil {
		given = append(given, "conenat.exclude")
	}
	if l.mode != nil {
		given = append(given, "conenat.mode")
	}
	return given
}

func (l *labels) parse(key, value string) error {
	switch key {
	case "conenat.enable":
		if value != "true" && value != "false" {
			return fmt.Errorf("want true or false")
		}
		l.disabled = value == "false"
	case "conenat.mapping":
		b, err := parseBehaviors(value)
		if err != nil {
			return err
		}
		l.mapping = b
	case "conenat.filtering":
		b, err := parseBehaviors(value)
		if err != nil {
			return err
		}
		l.filtering = b
	case "conenat.max-ports":
		return parseLimit(value, &l.limits.HostPorts, &l.limits.NetworkPorts)
	case "conenat.max-sessions":
		return parseLimit(value, &l.limits.HostSessions, &l.limits.NetworkSessions)
	case "conenat.block-size":
		size, err := config.ParseBlockSize(value)
		if err != nil {
			return err
		}
		l.blockSize = &size
	case "conenat.refusal":
		refusal, err := dataplane.ParseRefusal(value)
		if err != nil {
			return err
		}
		l.refusal = &refusal
	case "conenat.mss":
		clamp, err := config.ParseMSS(value)
		if err != nil {
			return err
		}
		l.mssClamp = &clamp
	case "conenat.exclude":
		exclude, err := config.ParseDestinations(value)
		if err != nil {
			return err
		}
		l.exclude = exclude
	case "conenat.external":
		external, err := config.ParseRanges(value)
		if err != nil {
			return err
		}
		l.external = external
	case "conenat.one-to-one":
		if value != "true" && value != "false" {
			return fmt.Errorf("want true or false")
		}
		l.oneToOne = value == "true"
	case "conenat.mode":
		mode, err := dataplane.ParseMode(value)
		if err != nil {
			return err
		}
		l.mode = &mode
	case "conenat.external-prefix":
		prefix, err := config.ParseExternalPrefix(value)
		if err != nil {
			return err
		}
		l.prefix = prefix
	default:
		return fmt.Errorf("no such label: want conenat.enable, conenat.filtering, conenat.mapping, conenat.max-ports, conenat.max-sessions, conenat.block-size, conenat.refusal, conenat.mss, conenat.exclude, conenat.external, conenat.one-to-one, conenat.mode or conenat.external-prefix")
	}
	return nil
}

// parseLimit takes a number for each container, or "container=…,network=…" with at least one of them; 0: no limit.
func parseLimit(value string, container, network **uint32) error {
	given := map[string]**uint32{"container": container, "network": network}
	if !strings.Contains(value, "=") {
		value = "container=" + value
	}
	parsed := map[string]*uint32{}
	for _, part := range strings.Split(value, ",") {
		name, text, _ := strings.Cut(strings.TrimSpace(part), "=")
		n, err := strconv.ParseUint(text, 10, 24)
		switch {
		case given[name] == nil:
			return fmt.Errorf("unknown limit %q: want container or network", name)
		case err != nil:
			return fmt.Errorf("%q: want a number from 0 (no limit) to %d", text, 1<<24-1)
		case parsed[name] != nil:
			return fmt.Errorf("%s is given twice", name)
		}
		limit := uint32(n)
		parsed[name] = &limit
	}
	for name, limit := range parsed {
		*given[name] = limit
	}
	return nil
}

var behaviorIndex = map[string]int{"udp": dataplane.BehaviorUDP, "tcp": dataplane.BehaviorTCP, "icmp": dataplane.BehaviorICMP}

// parseBehaviors takes one behaviour for all protocols, or "udp=…,tcp=…,icmp=…" with at least one of them.
func parseBehaviors(value string) (*behaviors, error) {
	var b behaviors
	if !strings.Contains(value, "=") {
		behavior, err := dataplane.ParseBehavior(value)
		b = behaviors{&behavior, &behavior, &behavior}
		return &b, err
	}
	for _, part := range strings.Split(value, ",") {
		name, text, _ := strings.Cut(strings.TrimSpace(part), "=")
		i, ok := behaviorIndex[name]
		if !ok {
			return nil, fmt.Errorf("unknown protocol %q: want udp, tcp or icmp", name)
		}
		behavior, err := dataplane.ParseBehavior(text)
		if err != nil {
			return nil, err
		}
		if b[i] != nil {
			return nil, fmt.Errorf("%s is given twice", name)
		}
		b[i] = &behavior
	}
	return &b, nil
}
