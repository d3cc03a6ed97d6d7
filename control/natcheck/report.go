// SPDX-License-Identifier: Apache-2.0

package natcheck

import "net/netip"

// Behavior is a mapping or filtering behaviour (RFC 4787, sections 4.1 and 5).
type Behavior string

// The behaviours. A mapping of None is no NAT at all; Unknown could not be told.
const (
	EndpointIndependent     Behavior = "endpoint-independent"
	AddressDependent        Behavior = "address-dependent"
	AddressAndPortDependent Behavior = "address-and-port-dependent"
	None                    Behavior = "none"
	Unknown                 Behavior = "unknown"
)

// Report is what was found. A pointer is nil where it could not be told or makes no sense (no NAT, no hairpin).
type Report struct {
	Server       netip.AddrPort `json:"server"`
	OtherAddress netip.AddrPort `json:"other_address"` // zero: the server told none
	Internal     netip.AddrPort `json:"internal"`      // one of the endpoints that asked, and
	External     netip.AddrPort `json:"external"`      // how the server saw it
	NAT          *bool          `json:"nat"`

	Mapping       Behavior `json:"mapping"`
	Filtering     Behavior `json:"filtering"`
	PortPreserved *bool    `json:"port_preserved"` // from every port that was used
	// Stable: mapping is the same from a port that unsolicited packets came to before (RFC 4787, REQ-11).
	Stable           *bool    `json:"stable"`
	AfterUnsolicited Behavior `json:"mapping_after_unsolicited"`

	Hairpin *bool `json:"hairpin"`
	// HairpinSource is the address that a hairpinned packet comes from: "external" as RFC 4787's REQ-9a wants it, or "internal".
	HairpinSource string   `json:"hairpin_source,omitempty"`
	Lifetime      Lifetime `json:"lifetime"`
	TCP           TCP      `json:"tcp"`

	// RFC3489 is the type's name there: "open Internet", "full cone", "restricted cone", "port-restricted cone",
	// "symmetric", "symmetric UDP firewall", "UDP blocked" or "unknown".
	RFC3489 string `json:"rfc3489"`

	Mapped   []Mapped `json:"mapped"`
	Problems []string `json:"problems"` // why something is unknown
	Notes    []string `json:"notes"`
}

// Mapped is how one of the server's endpoints saw the port that asked.
type Mapped struct {
	Protocol string         `json:"protocol"`
	Remote   netip.AddrPort `json:"remote"`
	Internal netip.AddrPort `json:"internal"`
	External netip.AddrPort `json:"external"`
	// AfterUnsolicited: other endpoints of the server had sent to this port before.
	AfterUnsolicited bool `json:"after_unsolicited"`
}

// Lifetime is how long a UDP binding lives without packets, in seconds.
type Lifetime struct {
	Asked   bool     `json:"asked"`
	AtLeast *float64 `json:"at_least_s"` // a binding of this age was alive
	Below   *float64 `json:"below_s"`    // and one of this age was not; nil: none was found dead
}

// TCP is what was found over TCP.
type TCP struct {
	Internal      netip.AddrPort `json:"internal"`
	External      netip.AddrPort `json:"external"`
	Mapping       Behavior       `json:"mapping"`
	PortPreserved *bool          `json:"port_preserved"`
}

// seen is how a port was seen by the server's endpoints, in the order of remotes: address and port, the primary first.
type seen [4]netip.AddrPort

// classify is the mapping behaviour (RFC 5780, section 4.3, with the fourth endpoint beside its three).
func classify(internal netip.AddrPort, s seen) Behavior {
	for _, external := range s {
		if !external.IsValid() {
			return Unknown
		}
	}
	switch {
	case s[0] == s[1] && s[0] == s[2] && s[0] == s[3] && s[0] == internal:
		return None
	case s[0] == s[1] && s[0] == s[2] && s[0] == s[3]:
		return EndpointIndependent
	case s[0] == s[1] && s[2] == s[3]:
		return AddressDependent
	}
	return AddressAndPortDependent
}

// rfc3489 is the old name (RFC 3489, section 10.1, figure 2).
func rfc3489(mapping, filtering Behavior) string {
	switch {
	case mapping == Unknown || filtering == Unknown && mapping != AddressDependent && mapping != AddressAndPortDependent:
		return "unknown"
	case mapping == AddressDependent || mapping == AddressAndPortDependent:
		return "symmetric"
	case mapping == None && filtering == EndpointIndependent:
		return "open Internet"
	case mapping == None:
		return "symmetric UDP firewall"
	}
	return map[Behavior]string{
		EndpointIndependent:     "full cone",
		AddressDependent:        "restricted cone",
		AddressAndPortDependent: "port-restricted cone",
	}[filtering]
}
