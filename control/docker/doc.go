// SPDX-License-Identifier: Apache-2.0

// Package docker owns the view of the Docker Engine: its networks, the containers that run on them, the ports
// that they publish and the conenat.* labels, as one Snapshot that follows the Engine's events.
//
// It never changes anything at the Engine, never decides what is done with a network (LeftAlone is a reason
// for the caller), and never ends because the Engine is gone: the last picture stays, and says so.
//
// The Engine is spoken to by its official client, github.com/docker/docker. Its successor
// github.com/moby/moby/client has fewer dependencies, but decodes addresses strictly and refuses the whole
// network list of an Engine up to 26 that has one IPv6 network (moby issue 52991).
//
// Lifecycle: New finds out where the Engine is; Watch follows it until its context ends; Snapshot and Changes
// may be used at any time, before Watch and after it. A session with the Engine subscribes to events before it
// lists anything, so nothing is missed. A container is inspected once when it appears and again after each
// event that names it, each apart from the others: inspect waits in the Engine until the container has finished
// starting or stopping, which makes its answer final, and must not make the others wait.
package docker
