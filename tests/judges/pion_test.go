// SPDX-License-Identifier: Apache-2.0

package judges

import (
	"context"
	"fmt"
	"regexp"

	"github.com/conenat/conenat/tests/build"
	"github.com/conenat/conenat/tests/topo"
)

// behaviour is what pion's stun-nat-behaviour says.
type behaviour struct{ Mapping, Filtering string }

var said = regexp.MustCompile(`=> NAT (mapping|filtering) behavior: (.+)`)

var pionWords = map[string]string{
	"endpoint independent":       independent,
	"address dependent":          address,
	"address and port dependent": port,
}

// pionJudge is the program.
func pionJudge() (string, error) {
	return build.Foreign("github.com/pion/stun/v2/cmd/stun-nat-behaviour")
}

// askPion runs stun-nat-behaviour.
func askPion(ctx context.Context, ns *topo.NS) (found behaviour, err error) {
	binary, err := pionJudge()
	if err != nil {
		return found, err
	}
	out, err := ns.Run(ctx, "", binary, "-server", server.String())
	if err != nil {
		return found, err
	}
	for _, line := range said.FindAllStringSubmatch(out, -1) {
		to := map[string]*string{"mapping": &found.Mapping, "filtering": &found.Filtering}[line[1]]
		if *to = pionWords[line[2]]; *to == "" {
			return found, fmt.Errorf("stun-nat-behaviour: %s", line[0])
		}
	}
	if found.Mapping == "" || found.Filtering == "" {
		return found, fmt.Errorf("stun-nat-behaviour does not say everything:\n%s", out)
	}
	return found, nil
}
