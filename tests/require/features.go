// SPDX-License-Identifier: Apache-2.0

package require

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane/thread"
)

// Bonding is bonds of several links.
var Bonding = Feature{
	Name: "bonding", Config: []string{"CONFIG_BONDING"},
	Probe: func() error {
		return addLinks(netlink.NewLinkBond(netlink.LinkAttrs{Name: "bond1"}))
	},
}

// VLAN is VLANs on a link.
var VLAN = Feature{
	Name: "VLANs", Config: []string{"CONFIG_VLAN_8021Q"},
	Probe: func() error {
		return addLinks(
			&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth1", Index: 100}, PeerName: "veth2"},
			&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "vlan1", ParentIndex: 100}, VlanId: 1})
	},
}

// addLinks makes links in a network namespace that is gone when it returns.
func addLinks(links ...netlink.Link) error {
	return thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		handle, err := netlink.NewHandle()
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer handle.Close()
		for _, link := range links {
			if err := handle.LinkAdd(link); err != nil {
				return fmt.Errorf("make %s %s: %w", link.Type(), link.Attrs().Name, err)
			}
		}
		return nil
	})
}
