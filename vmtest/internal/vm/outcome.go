// SPDX-License-Identifier: Apache-2.0

package vm

import "fmt"

// Kind is what became of a run.
type Kind int

// Exit codes of `vmtest run` for what is not the command's doing; a command's own are its own.
const (
	Exited       Kind = iota // the command ended, with a status
	Panicked                 // the kernel panicked, or an oops made it
	TimedOut                 // the command ran longer than it may
	NeverReached             // the machine ended, or its time did, before the command
	Vanished                 // the machine ended before the command did
	ConsoleFull              // the kernel wrote more to its console than is kept
)

// Exit codes, by kind. CodePrepare is for what failed before there was a machine, CodeInterrupted for a run that the user ended.
const (
	CodePrepare      = 110
	CodePanicked     = 111
	CodeTimedOut     = 112
	CodeNeverReached = 113
	CodeVanished     = 114
	CodeConsoleFull  = 115
	CodeInterrupted  = 130
)

// Outcome is what became of a run.
type Outcome struct {
	Kind   Kind
	Status int    // of Exited: the command's exit status, 0-255
	Detail string // what the kernel, the guest or QEMU said of it
}

// Code returns the exit code that says this outcome.
func (o Outcome) Code() int {
	switch o.Kind {
	case Panicked:
		return CodePanicked
	case TimedOut:
		return CodeTimedOut
	case NeverReached:
		return CodeNeverReached
	case Vanished:
		return CodeVanished
	case ConsoleFull:
		return CodeConsoleFull
	}
	return o.Status
}

// String says it to a user.
func (o Outcome) String() string {
	what := [...]string{
		Exited:       fmt.Sprintf("exit status %d", o.Status),
		Panicked:     "the kernel panicked",
		TimedOut:     "the command took too long",
		NeverReached: "the kernel never reached the command",
		Vanished:     "the machine ended before the command did",
		ConsoleFull:  "the console is full",
	}[o.Kind]
	if o.Detail != "" {
		what += ": " + o.Detail
	}
	return what
}

// seen is what was observed of a machine until it ended.
type seen struct {
	panic       string // the kernel's line, "" if none
	consoleFull bool
	userspace   bool   // the guest's first process said that it runs
	command     bool   // the guest said that the command does
	failed      string // why the guest could not run it
	exited      bool
	status      int
	expired     string // the limit that ended the machine
	qemu        string // what QEMU wrote to stderr
}

// outcome decides. A panic is the first cause of whatever else was seen; a status that arrived counts even where the machine then
// failed to switch off.
func (s seen) outcome() Outcome {
	switch {
	case s.panic != "":
		return Outcome{Kind: Panicked, Detail: s.panic}
	case s.exited:
		return Outcome{Kind: Exited, Status: s.status}
	case s.consoleFull:
		return Outcome{Kind: ConsoleFull, Detail: s.expired}
	case s.failed != "":
		return Outcome{Kind: NeverReached, Detail: s.failed}
	case !s.command && s.expired != "":
		return Outcome{Kind: NeverReached, Detail: s.expired}
	case !s.command:
		return Outcome{Kind: NeverReached, Detail: s.qemu}
	case s.expired != "":
		return Outcome{Kind: TimedOut, Detail: s.expired}
	}
	return Outcome{Kind: Vanished, Detail: s.qemu}
}
