// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"testing"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/topo"
)

func TestMain(m *testing.M) {
	family.Tested = []family.Family{family.V4, family.V6}
	os.Exit(topo.Main(m))
}
