// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// readPolicies lists the xfrm policies that do something to packets. Those of sockets never meet forwarded
// ones, and those with an interface ID are met in an xfrm interface, on either path.
func (f *family) readPolicies() (out []policy, err error) {
	messages, err := retry(f.dumpPolicies)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil // a kernel without xfrm's interface has no policies
	}
	if err != nil {
		return nil, fmt.Errorf("list the host's xfrm policies (grant CAP_NET_ADMIN): %w", err)
	}
	for _, m := range messages {
		if p, counts := f.parsePolicy(m); counts {
			out = append(out, p)
		}
	}
	return out, nil
}

// dumpPolicies gives the kernel's messages. (netlink.XfrmPolicyList takes an IPv6 address whose last 12 bytes are zero, such
// as that of fd00::/64, for one of IPv4.)
func (f *family) dumpPolicies() ([][]byte, error) {
	req := nl.NewNetlinkRequest(nl.XFRM_MSG_GETPOLICY, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(f.af))
	return req.Execute(unix.NETLINK_XFRM, nl.XFRM_MSG_NEWPOLICY)
}

// parsePolicy reads a struct xfrm_userpolicy_info and its attributes.
func (f *family) parsePolicy(m []byte) (p policy, counts bool) {
	if len(m) < nl.SizeofXfrmUserpolicyInfo {
		return p, false
	}
	info := nl.DeserializeXfrmUserpolicyInfo(m)
	dir := netlink.Dir(info.Dir)
	if int(info.Sel.Family) != f.af || (dir != netlink.XFRM_DIR_IN && dir != netlink.XFRM_DIR_OUT && dir != netlink.XFRM_DIR_FWD) {
		return p, false
	}
	blocks := netlink.PolicyAction(info.Action) == netlink.XFRM_POLICY_BLOCK
	var templates []byte
	for kind, value := range attributes(m[nl.SizeofXfrmUserpolicyInfo:]) {
		switch {
		case kind == nl.XFRMA_TMPL:
			templates = value
		case kind == nl.XFRMA_IF_ID && len(value) == 4 && binary.NativeEndian.Uint32(value) != 0:
			return p, false
		}
	}
	src, dst := f.selector(info.Sel.Saddr, info.Sel.PrefixlenS), f.selector(info.Sel.Daddr, info.Sel.PrefixlenD)
	direction := strings.TrimPrefix(dir.String(), "dir ")
	text := fmt.Sprintf("src %s dst %s", src, dst) // in the words of `ip xfrm policy`
	if info.Sel.Proto != 0 {
		text += fmt.Sprintf(" proto %s", netlink.Proto(info.Sel.Proto))
	}
	if blocks {
		text += " action block"
	}
	text += fmt.Sprintf(" dir %s priority %d%s", direction, info.Priority, templatesText(templates))
	return policy{direction, src.Masked(), dst.Masked(), text}, blocks || len(templates) > 0
}

func (f *family) selector(a nl.XfrmAddress, bits uint8) netip.Prefix {
	return netip.PrefixFrom(xfrmAddr(a, f.af), int(bits))
}

func xfrmAddr(a nl.XfrmAddress, family int) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(a[:4]))
	}
	return netip.AddrFrom16(a)
}

// templatesText reads structs xfrm_user_tmpl.
func templatesText(b []byte) (out string) {
	for ; len(b) >= nl.SizeofXfrmUserTmpl; b = b[nl.SizeofXfrmUserTmpl:] {
		t := nl.DeserializeXfrmUserTmpl(b)
		out += fmt.Sprintf(" tmpl src %s dst %s proto %s mode %s", xfrmAddr(t.Saddr, int(t.Family)), xfrmAddr(t.XfrmId.Daddr, int(t.Family)),
			netlink.Proto(t.XfrmId.Proto), netlink.Mode(t.Mode))
	}
	return out
}
