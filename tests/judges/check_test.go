// SPDX-License-Identifier: Apache-2.0

package judges

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/topo"
)

// checked is what `conenat check -o json` says of what the other judges are asked, too.
type checked struct {
	Mapping   string `json:"mapping"`
	Filtering string `json:"filtering"`
	Hairpin   *bool  `json:"hairpin"`
	Source    string `json:"hairpin_source"`
	Stable    *bool  `json:"stable"`
	TCP       struct {
		Mapping string `json:"mapping"`
	} `json:"tcp"`
	Lifetime struct {
		AtLeast *float64 `json:"at_least_s"`
		Below   *float64 `json:"below_s"`
	} `json:"lifetime"`
	Problems []string `json:"problems"`
}

// askCheck runs `conenat check`, and lets it look for twice the lifetime.
func askCheck(ctx context.Context, fam family.Family, ns *topo.NS) (found checked, err error) {
	binary, err := harness.Binary()
	if err != nil {
		return found, err
	}
	out, err := ns.Run(ctx, "", binary, "check", "--server", fam.Endpoint(server).String(), "-o", "json", "--lifetime", (2 * lifetime).String())
	if err != nil {
		return found, fmt.Errorf("%w\n%s", err, out)
	}
	list := []checked{}
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 {
		return found, fmt.Errorf("conenat check: %w: %s", err, out)
	}
	return list[0], nil
}
