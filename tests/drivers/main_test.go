// SPDX-License-Identifier: Apache-2.0

package drivers

import (
	"os"
	"testing"

	"github.com/conenat/conenat/tests/topo"
)

func TestMain(m *testing.M) { os.Exit(topo.Main(m)) }
