// SPDX-License-Identifier: Apache-2.0

package natcheck_test

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/pion/stun/v2"

	"github.com/conenat/conenat/control/natcheck"
	"github.com/conenat/conenat/control/stunattr"
	"github.com/conenat/conenat/tests/topo"
)

// fake answers every request at one endpoint of peer 1 by what it is told, after the mapped endpoint.
func fake(t *testing.T, f *topo.Figure3, at netip.AddrPort, answer func(mapped netip.AddrPort) []stun.Setter) {
	t.Helper()
	conn, err := f.Peer1.ListenUDP(at)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	go func() {
		defer close(done)
		buffer := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			request := &stun.Message{Raw: buffer[:n]}
			if err != nil || request.Decode() != nil {
				continue
			}
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			setters := append([]stun.Setter{stun.NewTransactionIDSetter(request.TransactionID)}, answer(from)...)
			if m, err := stun.Build(setters...); err == nil {
				_, _ = conn.WriteToUDPAddrPort(m.Raw, from)
			}
		}
	}()
}

// Servers that are not what they say: check must say so, and not take their silence for a NAT's behaviour.
func TestServersWithFaults(t *testing.T) {
	clean(t)
	at := func(addr string, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
	}
	address := func(t stun.AttrType, a netip.AddrPort) stun.Setter { return stunattr.Address{Type: t, Addr: a} }
	success := func(other netip.AddrPort) func(netip.AddrPort) []stun.Setter {
		return func(mapped netip.AddrPort) []stun.Setter {
			return []stun.Setter{stun.BindingSuccess, stunattr.XORMapped(mapped), address(stun.AttrOtherAddress, other)}
		}
	}
	for name, tc := range map[string]struct {
		answer  func(netip.AddrPort) []stun.Setter
		all     bool // the other endpoints are there, too
		err     error
		says    string
		mapping natcheck.Behavior
	}{
		"IgnoresChangeRequest": {success(at("203.0.113.9", 3491)), true, natcheck.ErrIncomplete,
			"it answers CHANGE-REQUEST from 203.0.113.1:3490 and not from", natcheck.EndpointIndependent},
		"OtherEndpointsAreDead": {success(at("203.0.113.9", 3491)), false, natcheck.ErrIncomplete,
			"mapping cannot be told: ask 203.0.113.", natcheck.Unknown},
		"OtherAddressIsItself": {success(at("203.0.113.1", 3491)), false, natcheck.ErrIncomplete,
			"is not another address and another port", natcheck.Unknown},
		"OtherAddressOfAnotherFamily": {success(at("2001:db8::9", 3491)), false, natcheck.ErrIncomplete,
			"is of another family", natcheck.Unknown},
		"Refuses": {func(netip.AddrPort) []stun.Setter {
			return []stun.Setter{stun.BindingError, stun.CodeUnauthorized}
		}, false, nil, "STUN server 203.0.113.1:3490 refuses: 401: Unauthorized", natcheck.Unknown},
		"ShortAddress": {func(netip.AddrPort) []stun.Setter {
			return []stun.Setter{stun.BindingSuccess, stun.RawAttribute{Type: stun.AttrXORMappedAddress, Value: []byte{0}}}
		}, false, nil, "no endpoint in its answer", natcheck.Unknown},
		"Rewritten": {func(mapped netip.AddrPort) []stun.Setter {
			return []stun.Setter{stun.BindingSuccess, stunattr.XORMapped(mapped), address(stun.AttrMappedAddress, at("172.17.0.2", 1))}
		}, false, natcheck.ErrIncomplete, "rewrites addresses in payloads", natcheck.Unknown},
		"RFC3489": {func(mapped netip.AddrPort) []stun.Setter {
			return []stun.Setter{stun.BindingSuccess, address(stun.AttrMappedAddress, mapped), address(stun.AttrChangedAddress, at("203.0.113.9", 3491))}
		}, true, natcheck.ErrIncomplete, "it answers CHANGE-REQUEST from", natcheck.EndpointIndependent},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := network(t)
			nft(t, f.Host, masquerade+inputDrop)
			fake(t, f, at("203.0.113.1", 3490), tc.answer)
			if tc.all {
				for _, other := range []netip.AddrPort{at("203.0.113.1", 3491), at("203.0.113.9", 3490), at("203.0.113.9", 3491)} {
					fake(t, f, other, tc.answer)
				}
			}
			r, err := run(t, f.Containers[0], 3490, 0)
			said := strings.Join(append(r.Problems, r.Notes...), "\n")
			if err != nil {
				said += "\n" + err.Error()
			}
			if err == nil || tc.err != nil && !errors.Is(err, tc.err) || !strings.Contains(said, tc.says) {
				t.Errorf("%v\n%s\nwant %q", err, text(r), tc.says)
			}
			if r.Mapping != tc.mapping || r.Filtering != natcheck.Unknown || r.RFC3489 != "unknown" || r.Stable != nil {
				t.Errorf("told what cannot be told: %s", text(r))
			}
		})
	}
}
