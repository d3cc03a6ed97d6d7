// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
)

var (
	// ErrUnavailable: the kernel has no nf_conntrack_netlink, or CAP_NET_ADMIN is missing. All goes on without the
	// connections of before.
	ErrUnavailable = errors.New("connection tracking cannot be reached")
	// ErrConflict: another connection has the endpoints already, and keeps them.
	ErrConflict = errors.New("another tracked connection has these endpoints")
)

// Tuple is the endpoints of the packets of one direction.
type Tuple struct{ Src, Dst netip.AddrPort }

// Flow is an entry: a connection as netfilter tracks it.
type Flow struct {
	Protocol        dataplane.Protocol // TCP or UDP
	Original, Reply Tuple              // of the packets of who opened it, before translation, and of the answers to what was translated
	SeenReply       bool               // packets went both ways (IPS_SEEN_REPLY)
	Assured         bool               // survives a full table (IPS_ASSURED)
	SourceNAT       bool               // Reply.Dst is Original.Src translated (IPS_SRC_NAT)
	DestinationNAT  bool               // Reply.Src is Original.Dst translated (IPS_DST_NAT)
	TCPState        uint8              // enum tcp_conntrack of linux/netfilter/nf_conntrack_tcp.h; 0 for UDP
	Timeout         time.Duration      // until it expires, in whole seconds
}

// IPS_ bits of enum ip_conntrack_status (linux/netfilter/nf_conntrack_common.h).
const (
	statusSeenReply = 1 << 1
	statusAssured   = 1 << 2
	statusConfirmed = 1 << 3
	statusSourceNAT = 1 << 4
	statusDestNAT   = 1 << 5
)

// Attributes and messages of linux/netfilter/nfnetlink_conntrack.h. Numbers are in network byte order.
const (
	typeNew    = unix.NFNL_SUBSYS_CTNETLINK << 8 // IPCTNL_MSG_CT_NEW is 0
	typeGet    = typeNew | 1
	typeDelete = typeNew | 2

	attrOriginal  = 1
	attrReply     = 2
	attrStatus    = 3
	attrProtoInfo = 4
	attrSourceNAT = 6
	attrTimeout   = 7
	attrDestNAT   = 13
	attrZone      = 18

	attrTupleIP    = 1
	attrTupleProto = 2
	attrTupleZone  = 3

	attrIPSource       = 1
	attrIPDestination  = 2
	attrIPSource6      = 3
	attrIPDestination6 = 4

	attrProtoNumber      = 1
	attrProtoSource      = 2
	attrProtoDestination = 3

	attrTCP              = 1 // in attrProtoInfo
	attrTCPState         = 1
	attrTCPFlagsOriginal = 4 // struct nf_ct_tcp_flags: flags, mask
	attrTCPFlagsReply    = 5

	attrNATMinAddress  = 1
	attrNATMaxAddress  = 2
	attrNATProto       = 3
	attrNATMinAddress6 = 4
	attrNATMaxAddress6 = 5
	attrNATMinPort     = 1 // in attrNATProto
	attrNATMaxPort     = 2
)

// unavailable says by ErrUnavailable that the kernel's answer is about connection tracking as a whole.
func unavailable(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: give the process CAP_NET_ADMIN: %w", ErrUnavailable, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%w: load nf_conntrack_netlink: %w", ErrUnavailable, err)
	}
	return err
}
