// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"strconv"
	"strings"
)

// Direction is which way a load's packets go.
type Direction string

// The directions. With Both, each has a CPU of its own.
const (
	Outbound Direction = "out"
	Inbound  Direction = "in"
	Both     Direction = "both"
)

// Load is packets of so many sessions, of so many bytes each.
type Load struct {
	Sessions, Size int
	Direction      Direction
}

// String is what ParseLoad reads.
func (l Load) String() string { return fmt.Sprintf("%d:%d:%s", l.Sessions, l.Size, l.Direction) }

// Words is for people.
func (l Load) Words() string {
	way := map[Direction]string{Outbound: "outbound", Inbound: "inbound", Both: "both ways"}[l.Direction]
	return fmt.Sprintf("%s, %d bytes, %s", plural(l.Sessions, "session"), l.Size, way)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return thousands(float64(n)) + " " + what + "s"
}

// ParseLoad reads "100000:60:out".
func ParseLoad(s string) (Load, error) {
	fail := fmt.Errorf("load %q: want SESSIONS:BYTES:out, in or both", s)
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return Load{}, fail
	}
	sessions, err := strconv.Atoi(parts[0])
	size, sizeErr := strconv.Atoi(parts[1])
	l := Load{sessions, size, Direction(parts[2])}
	if err != nil || sizeErr != nil || sessions < 1 || size < 1 || (l.Direction != Outbound && l.Direction != Inbound && l.Direction != Both) {
		return Load{}, fail
	}
	return l, nil
}
