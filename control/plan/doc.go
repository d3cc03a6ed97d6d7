// SPDX-License-Identifier: Apache-2.0

// Package plan owns the difference between what a dataplane should hold and what it does hold: an ordered
// list of actions.
//
// It never acts, and never looks at anything but its arguments: New is a pure function. Executing a plan on
// the state that it was made from gives the desired state, and planning again then gives nothing.
//
// Order: detach, then remove, then configure, then put outsides, networks and forwards, then attach. So no
// hook runs for a network or an outside that is not there, outside hooks are on before the inside ones send
// anything out (and go off after them), and no packet takes a port before the forward that wants it.
package plan
