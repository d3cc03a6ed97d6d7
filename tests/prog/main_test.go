// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"testing"

	"github.com/conenat/conenat/tests/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }
