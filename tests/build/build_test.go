// SPDX-License-Identifier: Apache-2.0

package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPrebuilt(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CONENAT_BINARIES", dir)
	if p, err := Binary("cmd/conenat"); err == nil || !strings.Contains(err.Error(), "CONENAT_BINARIES="+dir) {
		t.Errorf("a program that is missing there: %q, %v", p, err)
	}
	want := filepath.Join(dir, "conenat")
	if err := os.WriteFile(want, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if p, err := Binary("cmd/conenat"); p != want || err != nil {
		t.Errorf("%q, %v", p, err)
	}
}
