// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"regexp"
	"slices"
	"strings"
)

// The chains that Docker writes alone, of Docker 20.10 to 29 (libnetwork/iptables and
// libnetwork/drivers/bridge in moby). DOCKER-USER is not among them: that is the operator's.
var dockerChains = []string{"DOCKER", "DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2", "DOCKER-FORWARD",
	"DOCKER-BRIDGE", "DOCKER-CT", "DOCKER-INTERNAL", "DOCKER-INGRESS"}

// The table of Docker 29's nftables back end.
const dockerTable = "docker-bridges"

// The names that Docker gives to bridges whose name the user does not choose.
var dockerBridge = regexp.MustCompile(`^(docker0|docker_gwbridge|br-[0-9a-f]{12})$`)

// established is how Docker's rules for answers print.
const established = "-m conntrack --ctstate RELATED,ESTABLISHED"

// extBridges is how the rules of Docker 27 and 28.0 name all bridges by one ipset.
func (f *family) extBridges() string { return "-m set --match-set " + f.bridgesSet + " dst" }

// conenats says whether a table is conenat's own.
func (t table) conenats() bool {
	return t.backend == nft && (t.name == "conenat" || strings.HasPrefix(t.name, "conenat-"))
}

// dockerRules is what Docker wrote into the tables of one back end of iptables.
type dockerRules struct {
	present bool     // there are chains of Docker
	bridges []string // that its rules name
	outside []string
}

// findDocker looks at the rules that can only be Docker's for the names of its bridges. An outside interface is
// none, whatever stands there.
func findDocker(tables []table, b backend, t Traffic) dockerRules {
	d := dockerRules{bridges: slices.Clone(t.Inside), outside: t.Outside}
	for _, table := range tables {
		if table.backend != b {
			continue
		}
		for _, c := range table.chains {
			owned := slices.Contains(dockerChains, c.name)
			d.present = d.present || owned || c.name == "DOCKER-USER"
			for i := range c.rules {
				if r := &c.rules[i]; owned || slices.Contains(dockerChains, r.target) {
					d.add(only(r.in, false))
					d.add(only(r.out, false))
				}
			}
		}
	}
	return d
}

func (d *dockerRules) add(name string, ok bool) {
	if ok && name != "lo" && !slices.Contains(d.outside, name) && !slices.Contains(d.bridges, name) {
		d.bridges = append(d.bridges, name)
	}
}

func (d dockerRules) bridge(name string, ok bool) bool {
	return ok && (dockerBridge.MatchString(name) || slices.Contains(d.bridges, name))
}

// wrote says whether a rule of a base chain is Docker's, by its exact shape.
func (d dockerRules) wrote(f *family, t table, c *chain, r *rule) bool {
	switch {
	case !d.present || t.backend == nft:
		return false
	case t.name == "filter" && c.name == "FORWARD":
		return d.forwards(f, r)
	case t.name == "raw" && c.name == "PREROUTING":
		return d.protects(r) || d.trusts(c, r)
	}
	return false
}

// forwards: FORWARD's rules of Docker 20.10 to 27, for each bridge.
//
//	-o BR -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
//	-i BR ! -o BR -j ACCEPT
//	-i BR -o BR -j ACCEPT (or DROP: icc=false)
//	-m set --match-set docker-ext-bridges-v4 dst -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
func (d dockerRules) forwards(f *family, r *rule) bool {
	if len(r.src)+len(r.dst)+len(r.protocols)+len(r.ports)+len(r.effects) > 0 || r.local {
		return false
	}
	in, hasIn := only(r.in, false)
	out, hasOut := only(r.out, false)
	notOut, hasNotOut := only(r.out, true)
	switch extra := strings.Join(r.extra, " "); {
	case extra == established:
		return r.verdict == accepts && len(r.in) == 0 && d.bridge(out, hasOut)
	case extra == f.extBridges()+" "+established:
		return r.verdict == accepts && len(r.in)+len(r.out) == 0
	case extra != "" || !d.bridge(in, hasIn):
		return false
	case hasNotOut:
		return r.verdict == accepts && notOut == in
	}
	return hasOut && out == in && (r.verdict == accepts || r.verdict == drops)
}

// protects: raw PREROUTING's rules of Docker 28 and later, which keep others from a container's address and
// from ports that are published on loopback alone. (The ports of the first were there before 28.0.)
//
//	-d ADDR ! -i BR [-p PROTOCOL --dport PORT] -j DROP
//	-d 127.0.0.1 ! -i lo -p PROTOCOL --dport PORT -j DROP
func (d dockerRules) protects(r *rule) bool {
	addr, ok := single(r.dst)
	in, hasIn := only(r.in, true)
	return ok && r.verdict == drops && len(r.src)+len(r.out)+len(r.extra)+len(r.effects) == 0 && !r.local &&
		(d.bridge(in, hasIn) || (hasIn && in == "lo" && addr.IsLoopback()))
}

// trusts: what the bridge option trusted_host_interfaces adds before such a DROP: -d ADDR -i IF -j ACCEPT
func (d dockerRules) trusts(c *chain, r *rule) bool {
	addr, ok := single(r.dst)
	_, hasIn := only(r.in, false)
	if !ok || !hasIn || r.verdict != accepts || len(r.src)+len(r.out)+len(r.ports)+len(r.extra)+len(r.effects) > 0 {
		return false
	}
	return slices.ContainsFunc(c.rules, func(other rule) bool {
		protected, ok := single(other.dst)
		return ok && protected == addr && d.protects(&other)
	})
}
