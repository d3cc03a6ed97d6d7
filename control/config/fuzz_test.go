// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"regexp"
	"strings"
	"testing"
)

// place is where an error stands: the file with line and column, or, where what was read has no place (not YAML at all,
// a null), the file alone or what is missing.
var place = regexp.MustCompile(`^c\.yaml(:\d+:\d+)?: `)

// FuzzParse: whatever a file says is a configuration or errors; each wrong value has its line.
func FuzzParse(f *testing.F) {
	f.Add("inside: [br0]\nfiltering: {udp: endpoint-independent}\n")
	f.Add("forwards: [{external: '1.2.3.4:1'}]")
	f.Add("inside: [docker0]\nexternal: 198.51.100.1\nports: 2000-3000\ntimeouts: {udp: 2m, sweep: 500ms}\ncapacity: {sessions: 1000}\npath: stack\n")
	f.Add("inside: &a [br0]\noutside: *a\ntimeouts:\n  <<: {udp: 1m}\n")
	f.Fuzz(func(t *testing.T, file string) {
		l, err := Parse("c.yaml", strings.NewReader(file))
		if err != nil {
			if !place.MatchString(err.Error()) {
				t.Errorf("an error that names no place: %v", err)
			}
			return
		}
		_, err = Build(l)
		for _, one := range split(err) {
			var value *ValueError
			if errors.As(one, &value) && value.Origin != "" && !place.MatchString(one.Error()) {
				t.Errorf("an error that names no place: %v", one)
			}
		}
	})
}

// split is the errors that were joined.
func split(err error) []error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}
