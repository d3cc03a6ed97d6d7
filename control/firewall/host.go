// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// How often to read again what changed while it was read.
const attempts = 20

// retry is for lists that the kernel says changed on the way.
func retry[T any](list func() (T, error)) (out T, err error) {
	for range attempts {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, fmt.Errorf("it changes faster than it can be read: %w", err)
}

// readLinks names the interfaces that rules may mean, and the networks that are reached by them.
func readLinks() ([]link, error) {
	links, err := retry(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the host's interfaces: %w", err)
	}
	addresses, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list the host's IPv4 addresses: %w", err)
	}
	byIndex := map[int]string{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs().Name
	}
	out := make([]link, 0, len(links))
	for _, l := range links {
		a := l.Attrs()
		entry := link{index: a.Index, name: a.Name, master: byIndex[a.MasterIndex]}
		for _, addr := range addresses {
			if addr.LinkIndex == a.Index {
				entry.addresses = append(entry.addresses, prefix(addr.IPNet))
			}
		}
		out = append(out, entry)
	}
	return out, nil
}

func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

// readPolicies lists the xfrm policies that do something to packets. Those of sockets never meet forwarded
// ones, and those with an interface ID are met in an xfrm interface, on either path.
func readPolicies() ([]policy, error) {
	list, err := retry(func() ([]netlink.XfrmPolicy, error) { return netlink.XfrmPolicyList(netlink.FAMILY_V4) })
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil // a kernel without xfrm's interface has no policies
	}
	if err != nil {
		return nil, fmt.Errorf("list the host's xfrm policies (grant CAP_NET_ADMIN): %w", err)
	}
	var out []policy
	for _, p := range list {
		forwarded := p.Dir == netlink.XFRM_DIR_IN || p.Dir == netlink.XFRM_DIR_OUT || p.Dir == netlink.XFRM_DIR_FWD
		acts := p.Action == netlink.XFRM_POLICY_BLOCK || len(p.Tmpls) > 0
		if forwarded && acts && p.Ifid == 0 {
			out = append(out, policy{strings.TrimPrefix(p.Dir.String(), "dir "), prefix(p.Src).Masked(), prefix(p.Dst).Masked(), policyText(p)})
		}
	}
	return out, nil
}

// policyText is in the words of `ip xfrm policy`.
func policyText(p netlink.XfrmPolicy) string {
	out := fmt.Sprintf("src %s dst %s", prefix(p.Src), prefix(p.Dst))
	if p.Proto != 0 {
		out += fmt.Sprintf(" proto %s", p.Proto)
	}
	if p.Action == netlink.XFRM_POLICY_BLOCK {
		out += " action block"
	}
	out += fmt.Sprintf(" dir %s priority %d", strings.TrimPrefix(p.Dir.String(), "dir "), p.Priority)
	for _, t := range p.Tmpls {
		out += fmt.Sprintf(" tmpl src %s dst %s proto %s mode %s", t.Src, t.Dst, t.Proto, t.Mode)
	}
	return out
}
