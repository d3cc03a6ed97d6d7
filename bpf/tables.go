// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"

	"github.com/cilium/ebpf"
)

// Tables are the maps of one family.
type Tables struct {
	Zones      Table[uint32, Zone]
	Realms     Table[uint32, Realm]
	Addresses  Table[Addr, Address]
	Externals  Table[uint32, External]
	Sets       Table[uint32, Set]
	Owners     Table[OwnerKey, Owner]
	Exclusions Table[ExclusionKey, uint32]

	Sessions    Table[SessionKey, SessionHalf]
	Slots       Table[uint32, SessionSlot]
	Bindings    Table[uint32, Binding]
	Internals   Table[BindingKey, BindingRef]
	Claims      Table[ClaimKey, Claim]
	Permissions Table[PermissionKey, uint32]
	Hosts       Table[OwnerKey, Host]
	Blocks      Table[BlockKey, Blocks]
	Fragments   Table[FragmentKey, Fragment]
	Origins     Table[OriginKey, Origin]

	Pools, Ports, BlockWords, Held, HeldPorts, Sweeper, SessionFree, BindingFree *ebpf.Map

	Requests Requests
}

// Requests turns requests into what a family's nat_control reads, and what that has left of them into requests.
type Requests struct {
	Encode func(Request) ([]byte, error)
	Decode func([]byte) (Request, error)
}

// Requests4 are IPv4's, and Requests6 IPv6's.
var (
	Requests4 = requestsOf[natNatRequest4]()
	Requests6 = requestsOf[Request]()
)

func requestsOf[N any]() Requests {
	c := NewCodec[N, Request]()
	return Requests{
		Encode: func(r Request) ([]byte, error) { return binary.Append(nil, binary.NativeEndian, c.Narrow(r)) },
		Decode: func(raw []byte) (Request, error) {
			var n N
			_, err := binary.Decode(raw, binary.NativeEndian, &n)
			return c.Widen(n), err
		},
	}
}

// Tables are IPv4's.
func (o *natMaps) Tables() *Tables {
	return &Tables{
		Zones:       tableOf[uint32, natNatZone4, uint32, Zone](o.Zones4),
		Realms:      tableOf[uint32, natNatRealm4, uint32, Realm](o.Realms4),
		Addresses:   tableOf[uint32, natNatAddress, Addr, Address](o.Addresses4),
		Externals:   tableOf[uint32, natNatExternal4, uint32, External](o.Externals4),
		Sets:        tableOf[uint32, natNatSet4, uint32, Set](o.Sets4),
		Owners:      tableOf[natOwnerKey4, natNatOwner, OwnerKey, Owner](o.Owners4),
		Exclusions:  tableOf[natExclusionKey4, uint32, ExclusionKey, uint32](o.Exclusions4),
		Sessions:    tableOf[natSessionKey4, natSessionHalf4, SessionKey, SessionHalf](o.Sessions4),
		Slots:       tableOf[uint32, natSessionSlot4, uint32, SessionSlot](o.SessionSlots4),
		Bindings:    tableOf[uint32, natBinding4, uint32, Binding](o.Bindings4),
		Internals:   tableOf[natBindingKey4, natBindingRef, BindingKey, BindingRef](o.Internals4),
		Claims:      tableOf[natClaimKey4, natNatClaim, ClaimKey, Claim](o.Claims4),
		Permissions: tableOf[natPermissionKey4, uint32, PermissionKey, uint32](o.Permissions4),
		Hosts:       tableOf[natOwnerKey4, natNatHost, OwnerKey, Host](o.Hosts4),
		Blocks:      tableOf[natBlockKey4, natNatBlocks4, BlockKey, Blocks](o.Blocks4),
		Fragments:   tableOf[natFragmentKey4, natFragment4, FragmentKey, Fragment](o.Fragments4),
		Origins:     tableOf[natOriginKey4, natNatOrigin, OriginKey, Origin](o.Origins4),
		Pools:       o.Pools, Ports: o.Ports, BlockWords: o.BlockWords, Held: o.Held, HeldPorts: o.HeldPorts, Sweeper: o.Sweeper,
		SessionFree: o.SessionFree4, BindingFree: o.BindingFree4,
		Requests: Requests4,
	}
}

// Tables are IPv6's.
func (o *nat6Maps) Tables() *Tables {
	return &Tables{
		Zones:       tableOf[uint32, Zone, uint32, Zone](o.Zones6),
		Realms:      tableOf[uint32, Realm, uint32, Realm](o.Realms6),
		Addresses:   tableOf[Addr, Address, Addr, Address](o.Addresses6),
		Externals:   tableOf[uint32, External, uint32, External](o.Externals6),
		Sets:        tableOf[uint32, Set, uint32, Set](o.Sets6),
		Owners:      tableOf[OwnerKey, Owner, OwnerKey, Owner](o.Owners6),
		Exclusions:  tableOf[ExclusionKey, uint32, ExclusionKey, uint32](o.Exclusions6),
		Sessions:    tableOf[SessionKey, SessionHalf, SessionKey, SessionHalf](o.Sessions6),
		Slots:       tableOf[uint32, SessionSlot, uint32, SessionSlot](o.SessionSlots6),
		Bindings:    tableOf[uint32, Binding, uint32, Binding](o.Bindings6),
		Internals:   tableOf[BindingKey, BindingRef, BindingKey, BindingRef](o.Internals6),
		Claims:      tableOf[ClaimKey, Claim, ClaimKey, Claim](o.Claims6),
		Permissions: tableOf[PermissionKey, uint32, PermissionKey, uint32](o.Permissions6),
		Hosts:       tableOf[OwnerKey, Host, OwnerKey, Host](o.Hosts6),
		Blocks:      tableOf[BlockKey, Blocks, BlockKey, Blocks](o.Blocks6),
		Fragments:   tableOf[FragmentKey, Fragment, FragmentKey, Fragment](o.Fragments6),
		Origins:     tableOf[OriginKey, Origin, OriginKey, Origin](o.Origins6),
		Pools:       o.Pools6, Ports: o.Ports6, BlockWords: o.BlockWords6, Held: o.Held6, HeldPorts: o.HeldPorts6, Sweeper: o.Sweeper6,
		SessionFree: o.SessionFree6, BindingFree: o.BindingFree6,
		Requests: Requests6,
	}
}
