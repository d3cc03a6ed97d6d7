// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/conenat/conenat/dataplane"
)

// Every label of conenat's begins so.
const labelPrefix = "conenat."

// labels is what an object's labels say.
type labels struct {
	disabled  bool // conenat.enable=false
	mapping   *behaviors
	filtering *behaviors
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
	return l, problems
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
	case "conenat.external":
		return fmt.Errorf("external addresses of one object arrive with a later version")
	default:
		return fmt.Errorf("no such label: want conenat.enable, conenat.filtering, conenat.mapping or conenat.external")
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
