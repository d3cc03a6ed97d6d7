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
	filtering *filtering
}

// filtering has nil for the protocols that a label does not name; indices as in dataplane.Network.
type filtering [3]*dataplane.Behavior

// over gives the behaviours of the label, and those of base where it says nothing.
func (f *filtering) over(base [3]dataplane.Behavior) *[3]dataplane.Behavior {
	for i, b := range f {
		if b != nil {
			base[i] = *b
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
	case "conenat.filtering":
		f, err := parseFiltering(value)
		if err != nil {
			return err
		}
		l.filtering = f
	case "conenat.mapping":
		return checkMapping(value)
	case "conenat.external":
		return fmt.Errorf("external addresses of one object arrive with a later version")
	default:
		return fmt.Errorf("no such label: want conenat.enable, conenat.filtering, conenat.mapping or conenat.external")
	}
	return nil
}

func checkMapping(value string) error {
	behavior, err := dataplane.ParseBehavior(value)
	if err == nil && behavior != dataplane.EndpointIndependent {
		err = fmt.Errorf("%s mapping arrives with a later version: this one knows %s", behavior, dataplane.EndpointIndependent)
	}
	return err
}

var filteringIndex = map[string]int{"udp": dataplane.FilteringUDP, "tcp": dataplane.FilteringTCP, "icmp": dataplane.FilteringICMP}

// parseFiltering takes one behaviour for all protocols, or "udp=…,tcp=…,icmp=…" with at least one of them.
func parseFiltering(value string) (*filtering, error) {
	var f filtering
	if !strings.Contains(value, "=") {
		behavior, err := dataplane.ParseBehavior(value)
		f = filtering{&behavior, &behavior, &behavior}
		return &f, err
	}
	for _, part := range strings.Split(value, ",") {
		name, text, _ := strings.Cut(strings.TrimSpace(part), "=")
		i, ok := filteringIndex[name]
		if !ok {
			return nil, fmt.Errorf("unknown protocol %q: want udp, tcp or icmp", name)
		}
		behavior, err := dataplane.ParseBehavior(text)
		if err != nil {
			return nil, err
		}
		if f[i] != nil {
			return nil, fmt.Errorf("%s is given twice", name)
		}
		f[i] = &behavior
	}
	return &f, nil
}
