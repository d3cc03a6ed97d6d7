// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"testing"

	"golang.org/x/sys/unix"
)

// look is all that is done with tables once they are read: it has to have an end, and no panic.
func look(tables []table) {
	decide(ruleset{family: ipv4, tables: tables, links: hostLinks}, onHost)
	for _, t := range tables {
		for _, c := range t.chains {
			for i := range c.rules {
				_ = c.rules[i].text(t.backend, c.name)
			}
		}
	}
}

// FuzzParseSave: whatever a tool called iptables-save prints is tables or an error.
func FuzzParseSave(f *testing.F) {
	for _, c := range cases {
		f.Add(c.rules)
	}
	f.Fuzz(func(_ *testing.T, text string) {
		if tables, err := parseSave(iptablesLegacy, text); err == nil {
			look(tables)
		}
	})
}

// FuzzNFT: whatever attributes the kernel answers with are tables or an error. The corpus has what Linux 6.18 answered
// for rules of this package's tests.
func FuzzNFT(f *testing.F) {
	f.Fuzz(func(_ *testing.T, chainData, setData, elementData, ruleData []byte) {
		r := nftReader{family: ipv4, links: hostLinks, sets: map[setID]*set{}, elements: map[setID][]element{}}
		id, c := parseChain(unix.NFPROTO_IPV4, chainData)
		t := &table{backend: nft, family: ipv4.tables[id.family], name: id.name}
		t.add(c)
		t.recognize(ipv4)
		if r.addSet(unix.NFPROTO_IPV4, setData) != nil {
			return
		}
		for id, s := range r.sets { // known already, so that nobody asks the kernel
			r.elements[id] = ranges(s, parseElements(elementData))
		}
		if r.addRule(map[tableID]*table{id: t}, unix.NFPROTO_IPV4, ruleData) == nil {
			look([]table{*t})
		}
	})
}
