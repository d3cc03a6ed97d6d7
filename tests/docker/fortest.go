// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"os/exec"

	"github.com/conenat/conenat/tests/topo"
)

// StartForTest is Start, fatal to the test. Without dockerd on the machine the test fails: `make test`
// installs it.
func StartForTest(t topo.TB, topology *topo.Topo, host *topo.NS, cfg Config) *Daemon {
	t.Helper()
	if _, err := exec.LookPath("dockerd"); err != nil {
		t.Fatalf("package docker.io is missing (.ci/install-packages test): %v", err)
	}
	d, err := Start(context.Background(), topology, host, cfg)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return d
}

// RunForTest is Run, fatal to the test.
func (d *Daemon) RunForTest(t topo.TB, spec Spec) *Container {
	t.Helper()
	c, err := d.Run(context.Background(), spec)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return c
}
