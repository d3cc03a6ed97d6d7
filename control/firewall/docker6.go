// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// DockerIPv6 says whether a NAT of IPv6 is there that goes by Docker's networks: dockerd's own, which it has by default from
// Docker 27 on and before that with --ip6tables, or docker-ipv6nat. Each of them has a chain DOCKER in the table nat of
// ip6tables; dockerd with its nftables back end has a table of its own.
func (f *Firewall) DockerIPv6() (bool, error) {
	found, err := dockerNAT6()
	if err != nil || found {
		return found, err
	}
	text, err := ipv6.legacyText()
	if err != nil {
		return false, err
	}
	_, nat, _ := strings.Cut(string(text), "*nat\n")
	nat, _, _ = strings.Cut(nat, "\nCOMMIT")
	return slices.ContainsFunc(strings.Split(nat, "\n"), func(line string) bool { return strings.HasPrefix(line, ":DOCKER ") }), nil
}

// dockerNAT6 looks for the chains of nftables.
func dockerNAT6() (found bool, err error) {
	messages, err := retry(func() ([][]byte, error) { return request(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, unix.NFPROTO_IPV6) })
	if noNFT(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the host's nftables chains of IPv6 (grant CAP_NET_ADMIN): %w", err)
	}
	for _, m := range messages {
		id, c := parseChain(m[0], m[nl.SizeofNfgenmsg:])
		found = found || (id.name == "nat" && c.name == "DOCKER") || (id.name == dockerTable && c.kind == "nat")
	}
	return found, nil
}
