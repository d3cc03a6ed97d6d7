// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

// TestGigahertz: as Linux 6.12 says it in a counting machine, and as processors have it.
func TestGigahertz(t *testing.T) {
	for text, want := range map[string]bool{
		"model name\t: Nehalem\ncpu MHz\t\t: 999.993\n": true,
		"cpu MHz\t\t: 1000.000\n":                       true,
		"cpu MHz\t\t: 2999.998\n":                       false,
		"cpu MHz\t\t: 1000.100\n":                       false,
		"bogomips\t: 1000.00\n":                         false,
	} {
		if got := gigahertz.MatchString(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
