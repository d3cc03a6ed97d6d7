// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"testing"
	"time"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/rig"
)

// blocks gives br0's hosts blocks of so many ports; br1's have none.
func blocks(size uint32) rig.Option {
	return rig.WithNetworks(func(n *dataplane.Network) {
		if n.Name == "br0" {
			n.BlockSize = size
		}
	})
}

// blocksOf are a host's.
func blocksOf(r *rig.Rig, host string) (list []dataplane.Block) {
	r.T.Helper()
	r.Must("read the usage", func() error {
		u, err := r.DP.NetworkUsages()
		for _, h := range u["br0"].Hosts {
			if h.Address == r.Address(host) {
				list = h.Blocks
			}
		}
		return err
	})
	return list
}

func within(port int, list []dataplane.Block) bool {
	for _, b := range list {
		if port >= int(b.First) && port <= int(b.Last) {
			return true
		}
	}
	return false
}

// TestBlock: all of a host's ports are of its block, for every protocol, and one event says so when it begins and when it ends.
func TestBlock(t *testing.T) { family.Each(t, testBlock) }

func testBlock(t *testing.T, fam family.Family) {
	for _, size := range []uint32{64, 256, 4096} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			r := rig.New(t, rig.In(fam), blocks(size))
			first := r.Opened("udp", rig.C1+":5000")
			got := blocksOf(r, rig.C1)
			if len(got) != 1 || uint32(got[0].First)%size != 0 || uint32(got[0].Last-got[0].First)+1 != size || got[0].First < 1024 {
				t.Fatalf("blocks %+v", got)
			}
			block := fam.Text(fmt.Sprintf("br0 %s %s:%d-%d", rig.C1, rig.External, got[0].First, got[0].Last))
			r.WantEvents("block.allocated "+block, "binding.created udp br0 "+rig.C1+":5000*", "session.created udp br0 "+rig.C1+":5000*")
			ports := map[int]bool{first: true}
			for i := range 20 {
				ports[r.Opened("udp", fmt.Sprintf("%s:%d", rig.C1, 6000+i))] = true
			}
			ports[r.Opened("tcp", rig.C1+":443")] = false // below 1024: of its class, and of no block
			for _, proto := range []string{"tcp", "icmp"} {
				ports[r.Opened(proto, rig.C1+":5000")] = true
			}
			for port, ofBlock := range ports {
				if within(port, got) != ofBlock {
					t.Errorf("port %d: of block %+v is not %t", port, got, ofBlock)
				}
			}
			if len(blocksOf(r, rig.C1)) != 1 {
				t.Errorf("blocks %+v", blocksOf(r, rig.C1))
			}
			r.Consistent()
			r.Forget()
			r.Wait(7441 * time.Second)
			if events := r.Events(); rig.EventLine(events[len(events)-2]) != "block.released "+block && rig.EventLine(events[len(events)-1]) != "block.released "+block {
				t.Errorf("the last events are %q and %q", rig.EventLine(events[len(events)-2]), rig.EventLine(events[len(events)-1]))
			}
			r.Empty()
		})
	}
}

// TestBlockPorts: the internal port itself where it lies inside and is free, then its parity, then any.
func TestBlockPorts(t *testing.T) { family.Each(t, testBlockPorts) }

func testBlockPorts(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), blocks(64))
	r.Opened("udp", rig.C1+":5000")
	b := blocksOf(r, rig.C1)[0]
	inside := int(b.First) + 7
	if got := r.Opened("tcp", fmt.Sprintf("%s:%d", rig.C1, inside)); got != inside {
		t.Errorf("port %d of the block became %d", inside, got)
	}
	for i := range 31 { // with the first one: all even ports
		if got := r.Opened("udp", fmt.Sprintf("%s:%d", rig.C1, 6000+2*i)); got%2 != 0 {
			t.Errorf("an even port became %d", got)
		}
	}
	if got := r.Opened("udp", rig.C1+":7000"); got%2 != 1 || !within(got, []dataplane.Block{b}) {
		t.Errorf("after all even ports of %+v comes %d", b, got)
	}
	r.Consistent()
}

// TestMoreBlocks: a host whose block is full gets another one, eight of them at most; then it is refused and told.
func TestMoreBlocks(t *testing.T) { family.Each(t, testMoreBlocks) }

func testMoreBlocks(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), blocks(64))
	for i := range 8 * 64 {
		r.Opened("udp", fmt.Sprintf("%s:%d", rig.C1, 5000+i))
	}
	list := blocksOf(r, rig.C1)
	if len(list) != bpf.HostBlocks {
		t.Errorf("512 ports lie in %d blocks: %+v", len(list), list)
	}
	r.Forget()
	r.Inside(UDP(rig.C1+":6000", rig.Peer1+":1", "x")).Dropped("host_ports")
	r.WantEvents("quota.exceeded udp br0 " + rig.C1 + ":6000 *")
	r.Opened("udp", rig.C2+":6000")
	r.Opened("tcp", rig.C1+":6000") // another protocol's ports of the same blocks
	r.Consistent()
	r.Wait(7441 * time.Second)
	r.Empty()
}

// TestBlocksAreTheirHosts: of a range that is one block, another network's host gets nothing, nor does another host; and a block
// that a port of is in use is nobody's.
func TestBlocksAreTheirHosts(t *testing.T) { family.Each(t, testBlocksAreTheirHosts) }

func testBlocksAreTheirHosts(t *testing.T, fam family.Family) {
	t.Run("Taken", func(t *testing.T) {
		r := rig.New(t, rig.In(fam), blocks(64), rig.WithPorts(40000, 40063))
		r.Opened("udp", rig.C1+":5000")
		r.From("q1", UDP(rig.Other+":5000", rig.Peer1+":1", "x")).Dropped("port_exhausted")
		r.From("q1", TCP(rig.Other+":40001", rig.Peer1+":1", "S", "")).Dropped("port_exhausted") // nor by preservation
		r.Inside(UDP(rig.C2+":5000", rig.Peer1+":1", "x")).Dropped("port_exhausted")
		r.Forward("br1", dataplane.UDP, rig.External+":40001", rig.Other+":53") // static bindings are outside of blocks
		r.Consistent()
		r.Wait(301 * time.Second)
		r.From("q1", UDP(rig.Other+":5000", rig.Peer1+":1", "x"))
		r.Consistent()
	})
	t.Run("InUse", func(t *testing.T) {
		r := rig.New(t, rig.In(fam), blocks(64), rig.WithPorts(40000, 40127))
		r.From("q1", TCP(rig.Other+":40001", rig.Peer1+":1", "S", ""))
		if got := r.Opened("udp", rig.C1+":5000"); got < 40064 {
			t.Errorf("port %d is of a block of which TCP port 40001 is in use", got)
		}
		r.Inside(UDP(rig.C2+":5000", rig.Peer1+":1", "x")).Dropped("port_exhausted")
		r.Consistent()
	})
	t.Run("LimitOfPorts", func(t *testing.T) {
		r := rig.New(t, rig.In(fam), rig.WithNetworks(func(n *dataplane.Network) { n.BlockSize, n.Limits = 64, dataplane.Limits{HostPorts: 2} }))
		r.Opened("udp", rig.C1+":5000")
		r.Opened("udp", rig.C1+":5001")
		r.Inside(UDP(rig.C1+":5002", rig.Peer1+":1", "x")).Dropped("host_ports")
		r.Consistent()
	})
}

// TestBlocksChange: what is there stays as it is while the network's blocks change, and is given back.
func TestBlocksChange(t *testing.T) { family.Each(t, testBlocksChange) }

func testBlocksChange(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), blocks(64))
	r.Opened("udp", rig.C1+":5000")
	resize := func(size uint32) {
		r.Must("change the blocks", func() error {
			networks, err := r.DP.Networks()
			for _, n := range networks {
				if n.Name == "br0" && err == nil {
					n.BlockSize = size
					err = r.DP.PutNetwork(n)
				}
			}
			return err
		})
	}
	port := 6000
	if mine := blocksOf(r, rig.C1)[0]; int(mine.First) <= port && port <= int(mine.Last) {
		port += 64 // one that is nobody's
	}
	resize(0)
	if got := r.Opened("udp", fmt.Sprintf("%s:%d", rig.C1, port)); got != port {
		t.Errorf("without blocks, port %d became %d", port, got)
	}
	resize(128)
	for i := range 70 {
		r.Opened("udp", fmt.Sprintf("%s:%d", rig.C1, 7000+i))
	}
	r.Consistent()
	if list := blocksOf(r, rig.C1); len(list) != 2 || list[0].Last-list[0].First != 63 || list[1].Last-list[1].First != 127 {
		t.Errorf("blocks %+v", list)
	}
	r.Wait(301 * time.Second)
	r.Empty()
}

// TestBlockRaces: hosts with and without blocks on two CPUs, in a range that is too small for them.
func TestBlockRaces(t *testing.T) {
	require.Long(t, "hammers for seconds")
	r := rig.New(t, blocks(64), rig.WithPorts(40000, 40511), rig.WithFiltering(dataplane.EndpointIndependent), rig.WithRealClock(),
		rig.WithSettings(rig.ShortTimeouts))
	o := r.DP.Objects()
	ofBlocks := rig.Hammer{Program: o.NatInside, Dev: "p1", Frame: frames(997, func(i int) Spec {
		return rig.FromContainer(UDP(fmt.Sprintf("172.17.0.%d:%d", 2+i%5, 5000+i), rig.Peer1+":1", "x"))
	})}
	without := rig.Hammer{Program: o.NatInside, Dev: "q1", Frame: frames(991, func(i int) Spec {
		s := TCP(fmt.Sprintf("172.18.0.2:%d", 40000+i%512), rig.Peer1+":1", "S", "")
		s.DstMAC = rig.Bridge2
		return rig.FromContainer(s)
	})}
	r.Hammers(r.DP.Sweep, ofBlocks, without)
	r.Settled()
}

// TestLimitRaces: two CPUs at a host's and a network's limit, and the sweeper between them; the counts are exact afterwards.
func TestLimitRaces(t *testing.T) {
	require.Long(t, "hammers for seconds")
	r := rig.New(t, limited(dataplane.Limits{HostPorts: 20, HostSessions: 30, NetworkPorts: 50, NetworkSessions: 70}), rig.WithRealClock(),
		rig.WithSettings(rig.ShortTimeouts))
	o := r.DP.Objects()
	from := func(step int) rig.Hammer {
		return rig.Hammer{Program: o.NatInside, Dev: "p1", Frame: frames(997, func(i int) Spec {
			return rig.FromContainer(UDP(fmt.Sprintf("172.17.0.%d:%d", 2+i*step%5, 5000+i%60), fmt.Sprintf("%s:%d", rig.Peer1, 1+i%7), "x"))
		})}
	}
	r.Hammers(r.DP.Sweep, from(1), from(3))
	r.Settled()
}
