// SPDX-License-Identifier: Apache-2.0

package config

import (
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// XDPMode is what native XDP is used for.
type XDPMode string

// The modes: by itself no more than what DropUnsolicited has use for; nothing; also to translate between network cards.
const (
	XDPAuto    XDPMode = "auto"
	XDPOff     XDPMode = "off"
	XDPGateway XDPMode = "gateway"
)

// XDP is what may be done in the drivers of network cards, before the kernel sees a packet.
type XDP struct {
	Mode       XDPMode
	Containers bool // XDPGateway: from an outside interface into containers as well
	Veth       bool // on veth pairs as well, whose peers compute their checksums
}

// XDPValues are a mode alone, or with what goes with it.
type XDPValues struct {
	Mode       Value `yaml:"mode"`
	Containers Value `yaml:"containers"`
	Veth       Value `yaml:"veth"`
}

// UnmarshalYAML takes a mode, as in "xdp: gateway", or the keys.
func (x *XDPValues) UnmarshalYAML(node ast.Node) error {
	if _, scalar := node.(ast.ScalarNode); scalar {
		return x.Mode.UnmarshalYAML(node)
	}
	type keys XDPValues
	return yaml.NodeToValue(node, (*keys)(x), yaml.Strict())
}

// xdp: off is off, whatever the file says beside it, so that one flag is enough.
func (b *builder) xdp(v XDPValues) XDP {
	x := XDP{Mode: b.xdpMode(v.Mode), Containers: b.boolean(v.Containers), Veth: b.boolean(v.Veth)}
	if x.Containers && x.Mode == XDPAuto {
		b.refuse(v.Containers, "containers are reached by XDP with mode %s beside it alone", XDPGateway)
	}
	return x
}

func (b *builder) xdpMode(v Value) XDPMode {
	switch m := XDPMode(v.Text); {
	case !v.Given():
		return XDPAuto
	case m == XDPAuto, m == XDPOff, m == XDPGateway:
		return m
	}
	b.refuse(v, "xdp %q: want auto, off or gateway", v.Text)
	return XDPAuto
}

// unsolicited says whether it is dropped.
func (b *builder) unsolicited(v Value) bool {
	switch v.Text {
	case "drop":
		return true
	case "pass":
		return false
	}
	if v.Given() {
		b.refuse(v, "unsolicited %q: want pass or drop", v.Text)
	}
	return false
}
