// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/rig"
)

// frames are prebuilt, so that what is measured against each other is the packet path.
func frames(n int, spec func(i int) Spec) func(int) []byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = spec(i).Bytes()
	}
	return func(i int) []byte { return out[i%n] }
}

func endpointOf(addr string, port int) string { return fmt.Sprintf("%s:%d", addr, port) }

// TestRaces: two CPUs at once, and the sweeper between them.
func TestRaces(t *testing.T) {
	require.Long(t, "hammers for seconds")
	for name, c := range map[string]struct {
		options []rig.Option
		senders func(*bpf.Objects) []rig.Hammer
	}{
		"OneEndpointManyRemotes": {nil, oneEndpoint},
		"ManyEndpointsFewPorts":  {[]rig.Option{rig.WithPorts(40000, 40003)}, fewPorts},
		"SameFirstPacket":        {nil, sameFirstPacket},
		"BothDirections":         {[]rig.Option{rig.WithFiltering(dataplane.EndpointIndependent)}, bothDirections},
		"Hairpins":               {nil, hairpins},
		"HostAndContainer":       {[]rig.Option{rig.WithPorts(40000, 40007)}, hostAndContainer},
		"PortlessSameRemotes":    {nil, sameRemotes},
		"PortlessHostComesFirst": {nil, hostComesFirst},
	} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, append(c.options, rig.WithRealClock(), rig.WithSettings(rig.ShortTimeouts))...)
			r.Hammers(r.DP.Sweep, c.senders(r.DP.Objects())...)
			r.Settled()
		})
	}
}

func oneEndpoint(o *bpf.Objects) []rig.Hammer {
	towards := func(remote string) rig.Hammer {
		return rig.Hammer{Program: o.NatInside, Dev: "p1", Frame: frames(997, func(i int) Spec {
			return rig.FromContainer(UDP(rig.C1+":5000", endpointOf(remote, 1+i), "x"))
		})}
	}
	return []rig.Hammer{towards(rig.Peer1), towards(rig.Peer2)}
}

func fewPorts(o *bpf.Objects) []rig.Hammer {
	from := func(addr string) rig.Hammer {
		return rig.Hammer{Program: o.NatInside, Dev: "p1", Frame: frames(997, func(i int) Spec {
			return rig.FromContainer(UDP(endpointOf(addr, 40000+i%7), endpointOf(rig.Peer1, 1+i%3), "x"))
		})}
	}
	return []rig.Hammer{from(rig.C1), from(rig.C2)}
}

func sameFirstPacket(o *bpf.Objects) []rig.Hammer {
	same := rig.Hammer{Program: o.NatInside, Dev: "p1", Frame: frames(2000, func(i int) Spec {
		return rig.FromContainer(pickProtocol(i, endpointOf(rig.C1, 5000+i/3), rig.Peer1+":1"))
	})}
	return []rig.Hammer{same, same}
}

func pickProtocol(i int, src, dst string) Spec {
	return packetOf([]string{"udp", "tcp", "icmp"}[i%3], src, dst)
}

func bothDirections(o *bpf.Objects) []rig.Hammer {
	out := rig.Hammer{Program: o.NatInside, Dev: "p1", Frame: frames(500, func(i int) Spec {
		return rig.FromContainer(UDP(endpointOf(rig.C1, 5000+i%50), endpointOf(rig.Peer1, 1+i/50), "x"))
	})}
	in := rig.Hammer{Program: o.NatOutsideIngress, Dev: "eth0", Frame: frames(500, func(i int) Spec {
		return rig.FromOutside(UDP(endpointOf(rig.Peer1, 1+i/50), endpointOf(rig.External, 5000+i%50), "x"))
	})}
	return []rig.Hammer{out, in}
}

func hairpins(o *bpf.Objects) []rig.Hammer {
	pair := func(from, to string, dev string) rig.Hammer {
		return rig.Hammer{Program: o.NatInside, Dev: dev, Frame: frames(600, func(i int) Spec {
			if i%4 == 0 {
				return rig.FromContainer(UDP(endpointOf(from, 5000+i%5), endpointOf(rig.Peer1, 1), "x"))
			}
			return rig.FromContainer(UDP(endpointOf(from, 5000+i%5), endpointOf(rig.External, 5000+i%9), "x"))
		})}
	}
	return []rig.Hammer{pair(rig.C1, rig.C2, "p1"), pair(rig.C2, rig.C1, "p2")}
}

func hostAndContainer(o *bpf.Objects) []rig.Hammer {
	host := rig.Hammer{Program: o.NatOutsideEgress, Dev: "eth0", Frame: frames(600, func(i int) Spec {
		return rig.FromOutside(UDP(endpointOf(rig.External, 40000+i%8), endpointOf(rig.Peer1, 1+i%3), "x"))
	})}
	container := rig.Hammer{Program: o.NatInside, Dev: "p1", Frame: frames(600, func(i int) Spec {
		return rig.FromContainer(UDP(endpointOf(rig.C1, 40000+i%11), endpointOf(rig.Peer2, 1+i%3), "x"))
	})}
	return []rig.Hammer{host, container}
}

// tunnels sends from one address to many remotes.
func tunnels(program *ebpf.Program, dev, from string) rig.Hammer {
	return rig.Hammer{Program: program, Dev: dev, Frame: frames(500, func(i int) Spec {
		return rig.FromContainer(ESP(from, fmt.Sprintf("203.0.113.%d", 1+i%97), uint32(i), 8))
	})}
}

func sameRemotes(o *bpf.Objects) []rig.Hammer {
	return []rig.Hammer{tunnels(o.NatInside, "p1", rig.C1), tunnels(o.NatInside, "p2", rig.C2)}
}

func hostComesFirst(o *bpf.Objects) []rig.Hammer {
	return []rig.Hammer{tunnels(o.NatOutsideEgress, "eth0", rig.External), tunnels(o.NatInside, "p1", rig.C1)}
}

// TestKillUnderFire: forwards that come and go while packets open sessions through them. The tables are
// small, so that the walks that end sessions meet those that are being opened.
func TestKillUnderFire(t *testing.T) {
	require.Long(t, "hammers for seconds")
	// A session that a walk missed ends with the timer's next one.
	r := rig.New(t, rig.WithRealClock(), rig.WithSmallTables(), rig.WithSettings(func(s *dataplane.Settings) { s.SweepPeriod = 5 * time.Millisecond }))
	forward := dataplane.Forward{Protocol: dataplane.UDP, External: Endpoint(rig.External + ":5000"), Internal: Endpoint(rig.C1 + ":5000")}
	kills := 0
	comeAndGo := func() error {
		for range 100 {
			if _, err := r.DP.AddForward(forward); errors.Is(err, dataplane.ErrPortTaken) {
				return nil
			} else if err != nil {
				return err
			}
			if err := r.DP.RemoveForward(forward.Protocol, forward.External); err != nil {
				return err
			}
			kills++
		}
		return nil
	}
	send := func(remote string) rig.Hammer {
		return rig.Hammer{Program: r.DP.Objects().NatOutsideIngress, Dev: "eth0", Frame: frames(3000, func(i int) Spec {
			return rig.FromOutside(UDP(endpointOf(remote, 1+i), rig.External+":5000", "x"))
		})}
	}
	for range 5 {
		r.Hammers(comeAndGo, send(rig.Peer1), send(rig.Peer2))
	}
	r.Drained()
	if n := r.Count("translated_inbound"); n == 0 || kills == 0 {
		t.Errorf("%d packets came through %d forwards", n, kills)
	}
	t.Logf("%d forwards, %d packets through them", kills, r.Count("translated_inbound"))
}
