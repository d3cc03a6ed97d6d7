// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"fmt"
	"strings"
)

// Level is how strongly an RFC wants something, in its own word (RFC 2119).
type Level string

// The levels.
const (
	Must        Level = "MUST"
	MustNot     Level = "MUST NOT"
	Should      Level = "SHOULD"
	ShouldNot   Level = "SHOULD NOT"
	Recommended Level = "RECOMMENDED"
	May         Level = "MAY"
)

// absolute: nothing excuses it but that it is to come.
func (l Level) absolute() bool { return l == Must || l == MustNot }

// Outcome is what a requirement's test has shown.
type Outcome int

// The outcomes.
const (
	Holds Outcome = iota
	DoesNotHold
	NotApplicable
	Later  // does not hold, and a later issue brings it
	Failed // the test did not show what the table says
)

var outcomeNames = [...]string{"holds", "does not hold", "not applicable", "to come", "FAILED"}

func (o Outcome) String() string { return outcomeNames[o] }

// Requirement is one line of an RFC.
type Requirement struct {
	Item      string // the RFC's number, and the test's name
	Level     Level
	Behaviour string // the RFC's words, shortened
	Outcome   Outcome
	// Reason: why it does not hold or is not applicable, or which issue brings it. For what holds: how, if that is not plain.
	Reason string
}

// Document is an RFC.
type Document struct {
	Name  string // "RFC 4787"
	Title string
	Lines []Requirement
}

// Test is the name of the document's test.
func (d Document) Test() string { return "Test" + strings.ReplaceAll(d.Name, " ", "") }

// Documents are those that conenat is measured by, in the page's order.
func Documents() []Document {
	return []Document{rfc4787, rfc5382, rfc5508, rfc7857, rfc6888, rfc5780, ipv6}
}

// problems: what a table must not say.
func (d Document) problems() (out []string) {
	seen := map[string]bool{}
	for _, r := range d.Lines {
		say := func(what string) { out = append(out, fmt.Sprintf("%s %s: %s", d.Name, r.Item, what)) }
		if seen[r.Item] {
			say("is there twice")
		}
		seen[r.Item] = true
		if r.Item == "" || r.Behaviour == "" || r.Level == "" {
			say("lacks its item, level or behaviour")
		}
		if r.Outcome != Holds && r.Reason == "" {
			say(r.Outcome.String() + ", and no reason is given")
		}
		if r.Outcome == DoesNotHold && r.Level.absolute() {
			say("a " + string(r.Level) + " that does not hold is a defect, unless a later issue brings it")
		}
		if r.Outcome == Later && !strings.Contains(r.Reason, "issue") {
			say("to come, and no issue is named")
		}
		if r.Outcome == Failed {
			say("no table says that a test fails")
		}
	}
	return out
}
