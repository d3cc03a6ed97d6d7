// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"fmt"

	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// refused is what becomes of a packet when the only external port is somebody else's.
func (l *line) refused() (verdict uint32) {
	r, _, _ := udp.fullHouse(l)
	return r.Inside(UDP(at(l.c1, 40000), at(l.peer1, 53), "x")).Verdict
}

func refusalIsTold(l *line) {
	if l.refused() == rig.Shot {
		l.lacks("the packet is dropped in silence")
	}
}

func refusalSaysHostUnreachable(l *line) {
	if l.refused() == rig.Shot {
		l.lacks("the packet is dropped in silence")
	}
}

func refusalMayBeSilent(l *line) {
	if l.refused() == rig.Shot {
		l.lacks("there is no message to keep off")
	}
}

// takesAll: one host opens as much as it wants.
func (l *line) takesAll(s func(i int) Spec) bool {
	r := l.rig()
	for i := range 1000 {
		if r.Inside(s(i)).Verdict != rig.Redirect {
			return false
		}
	}
	return true
}

func portLimit(l *line) {
	if l.takesAll(func(i int) Spec { return UDP(at(l.c1, 20000+i), at(l.peer1, 53), "x") }) {
		l.lacks("a host has as many ports as it asks for")
	}
}

func stateLimit(l *line) {
	if l.takesAll(func(i int) Spec { return UDP(at(l.c1, 20000), at(l.peer1, 1+i), "x") }) {
		l.lacks("a host has as many sessions as its bindings may have")
	}
}

func portBlocks(l *line) {
	r := l.rig()
	r.Forget()
	for host := range 10 {
		r.Inside(UDP(fmt.Sprintf("172.17.2.%d:20000", host+1), at(l.peer1, 53), "x"))
		r.Inside(UDP(fmt.Sprintf("172.17.2.%d:20002", host+1), at(l.peer1, 53), "x"))
	}
	if len(r.Events()) >= 20 {
		l.lacks("an event for each binding")
	}
}
