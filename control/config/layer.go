// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// Value is one value as it was written, and where. The zero Value is one that was not given.
type Value struct {
	Text   string
	Origin string // "conenat.yaml:3:9" or "--filtering"
}

// Given says whether somebody wrote the value.
func (v Value) Given() bool { return v.Origin != "" }

// Flag is a value from the command line.
func Flag(name, text string) Value { return Value{Text: text, Origin: "--" + name} }

func (v Value) errorf(format string, args ...any) error {
	return &ValueError{Origin: v.Origin, Err: fmt.Errorf(format, args...)}
}

// ValueError is a value that cannot stand; Origin says where it does.
type ValueError struct {
	Origin string
	Err    error
}

func (e *ValueError) Error() string {
	if e.Origin == "" { // a null in a list
		return e.Err.Error()
	}
	return e.Origin + ": " + e.Err.Error()
}

// Unwrap gives the reason without the place.
func (e *ValueError) Unwrap() error { return e.Err }

// Layer is what one source (the file, the command line) says, unchecked.
type Layer struct {
	Inside      []Value         `yaml:"inside"`
	Outside     []Value         `yaml:"outside"`
	External    List            `yaml:"external"`
	Docker      Value           `yaml:"docker"`
	Mapping     Behaviors       `yaml:"mapping"`
	Filtering   Behaviors       `yaml:"filtering"`
	Refusal     Value           `yaml:"refusal"`
	MSS         Value           `yaml:"mss"`
	Path        Value           `yaml:"path"`
	XDP         XDPValues       `yaml:"xdp"`
	Unsolicited Value           `yaml:"unsolicited"`
	Ports       Value           `yaml:"ports"`
	Timeouts    Timeouts        `yaml:"timeouts"`
	Capacity    Capacity        `yaml:"capacity"`
	Limits      Limits          `yaml:"limits"`
	BlockSize   Value           `yaml:"block_size"`
	Exclude     []Value         `yaml:"exclude"`
	Networks    []NetworkValues `yaml:"networks"`
	Forwards    []Forward       `yaml:"forwards"`
	Socket      Value           `yaml:"socket"`
	StateDir    Value           `yaml:"state_dir"`
}

// Behaviors are one mapping or filtering behaviour for all protocols, or one for each.
type Behaviors struct {
	All  Value `yaml:"-"`
	UDP  Value `yaml:"udp"`
	TCP  Value `yaml:"tcp"`
	ICMP Value `yaml:"icmp"`
}

// Timeouts are durations such as "5m" or "7440s".
type Timeouts struct {
	UDP            Value `yaml:"udp"`
	TCPEstablished Value `yaml:"tcp_established"`
	TCPPartialOpen Value `yaml:"tcp_partial_open"`
	TCPClosing     Value `yaml:"tcp_closing"`
	ICMP           Value `yaml:"icmp"`
	Sweep          Value `yaml:"sweep"`
}

// Capacity are numbers of table entries.
type Capacity struct {
	Sessions           Value `yaml:"sessions"`
	Bindings           Value `yaml:"bindings"`
	SessionsPerBinding Value `yaml:"sessions_per_binding"`
}

// Limits are numbers, 0 for none.
type Limits struct {
	PortsPerHost       Value `yaml:"ports_per_host"`
	SessionsPerHost    Value `yaml:"sessions_per_host"`
	PortsPerNetwork    Value `yaml:"ports_per_network"`
	SessionsPerNetwork Value `yaml:"sessions_per_network"`
}

// NetworkValues are what is said of one inside network, in place of what is said of all.
type NetworkValues struct {
	Name           Value   `yaml:"name"`
	Exclude        []Value `yaml:"exclude"`
	External       List    `yaml:"external"`
	Mode           Value   `yaml:"mode"`
	ExternalPrefix Value   `yaml:"external_prefix"`
}

// List is several values, or one in their place.
type List []Value

// UnmarshalYAML takes one value, as in "external: 198.51.100.1", or a list.
func (l *List) UnmarshalYAML(node ast.Node) error {
	if _, scalar := node.(ast.ScalarNode); scalar {
		*l = make(List, 1)
		return (*l)[0].UnmarshalYAML(node)
	}
	return yaml.NodeToValue(node, (*[]Value)(l), yaml.Strict())
}

// Forward is one static binding.
type Forward struct {
	Protocol Value `yaml:"protocol"`
	Network  Value `yaml:"network"`
	External Value `yaml:"external"`
	Internal Value `yaml:"internal"`
}

// UnmarshalYAML takes a scalar as it was written; strings, numbers and addresses alike.
func (v *Value) UnmarshalYAML(node ast.Node) error {
	origin := position(node)
	scalar, ok := node.(ast.ScalarNode)
	if !ok {
		return &ValueError{Origin: origin, Err: fmt.Errorf("want a single value here, not a %s", kind(node))}
	}
	*v = Value{Text: scalar.GetToken().Value, Origin: origin}
	return nil
}

// UnmarshalYAML takes one behaviour, as in "filtering: address-dependent", or a behaviour under each protocol's name.
func (b *Behaviors) UnmarshalYAML(node ast.Node) error {
	if _, scalar := node.(ast.ScalarNode); scalar {
		return b.All.UnmarshalYAML(node)
	}
	type perProtocol Behaviors
	return yaml.NodeToValue(node, (*perProtocol)(b), yaml.Strict())
}

// values are all that can be given.
func (b *Behaviors) values() []*Value { return []*Value{&b.All, &b.UDP, &b.TCP, &b.ICMP} }

// origin is where the first of them was given.
func (b *Behaviors) origin() string {
	for _, v := range b.values() {
		if v.Given() {
			return v.Origin
		}
	}
	return ""
}

func position(node ast.Node) string {
	p := node.GetToken().Position
	return fmt.Sprintf("%d:%d", p.Line, p.Column)
}

func kind(node ast.Node) string {
	return strings.ToLower(node.Type().String())
}

// Parse reads the YAML of a configuration file; name is what errors call the file. Unknown and doubled
// keys are refused.
func Parse(name string, r io.Reader) (Layer, error) {
	var l Layer
	err := decode(r, &l)
	if errors.Is(err, io.EOF) { // an empty file says nothing
		return l, nil
	}
	var value *ValueError
	var syntax yaml.Error
	switch {
	case err == nil:
	case errors.As(err, &value):
		return Layer{}, &ValueError{Origin: name + ":" + value.Origin, Err: value.Err}
	case errors.As(err, &syntax) && syntax.GetToken() != nil:
		p := syntax.GetToken().Position
		return Layer{}, &ValueError{Origin: fmt.Sprintf("%s:%d:%d", name, p.Line, p.Column), Err: errors.New(syntax.GetMessage())}
	default:
		return Layer{}, &ValueError{Origin: name, Err: err}
	}
	l.unshare()
	l.each(func(v *Value) {
		if v.Given() {
			v.Origin = name + ":" + v.Origin
		}
	})
	return l, nil
}

// decode turns the panics that goccy/go-yaml 1.19.2 has on some malformed files (a tag without a value where a list belongs;
// see the fuzz corpus) into errors.
func decode(r io.Reader, l *Layer) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errors.New("the file is not YAML that can be understood: write it without tags, anchors and aliases")
		}
	}()
	return yaml.NewDecoder(r, yaml.Strict()).Decode(l)
}

// unshare copies the lists, which aliases share.
func (l *Layer) unshare() {
	l.Inside, l.Outside, l.Forwards = slices.Clone(l.Inside), slices.Clone(l.Outside), slices.Clone(l.Forwards)
	l.Exclude, l.Networks, l.External = slices.Clone(l.Exclude), slices.Clone(l.Networks), slices.Clone(l.External)
	for i := range l.Networks {
		l.Networks[i].Exclude, l.Networks[i].External = slices.Clone(l.Networks[i].Exclude), slices.Clone(l.Networks[i].External)
	}
}

// Merge is base with everything that over gives in its place. Lists are replaced, not appended to.
func Merge(base, over Layer) Layer {
	if over.Inside == nil {
		over.Inside = base.Inside
	}
	if over.Outside == nil {
		over.Outside = base.Outside
	}
	if over.Forwards == nil {
		over.Forwards = base.Forwards
	}
	if over.Exclude == nil {
		over.Exclude = base.Exclude
	}
	if over.External == nil {
		over.External = base.External
	}
	if over.Networks == nil {
		over.Networks = base.Networks
	}
	if over.Mapping == (Behaviors{}) {
		over.Mapping = base.Mapping
	}
	if over.Filtering == (Behaviors{}) {
		over.Filtering = base.Filtering
	}
	under := base.values()
	for i, v := range over.values() {
		if !v.Given() {
			*v = *under[i]
		}
	}
	return over
}

// values are the single values, in one order for every Layer, without mapping and filtering, which are all or nothing.
func (l *Layer) values() []*Value {
	t, c, m, x := &l.Timeouts, &l.Capacity, &l.Limits, &l.XDP
	return []*Value{
		&l.Docker, &l.Refusal, &l.MSS, &l.Path, &l.Ports, &l.Socket, &l.StateDir,
		&t.UDP, &t.TCPEstablished, &t.TCPPartialOpen, &t.TCPClosing, &t.ICMP, &t.Sweep,
		&c.Sessions, &c.Bindings, &c.SessionsPerBinding,
		&m.PortsPerHost, &m.SessionsPerHost, &m.PortsPerNetwork, &m.SessionsPerNetwork, &l.BlockSize,
		&x.Mode, &x.Containers, &x.Veth, &l.Unsolicited,
	}
}

func (l *Layer) each(visit func(*Value)) {
	all := l.values()
	for i := range l.Inside {
		all = append(all, &l.Inside[i])
	}
	for i := range l.Outside {
		all = append(all, &l.Outside[i])
	}
	for i := range l.Exclude {
		all = append(all, &l.Exclude[i])
	}
	for i := range l.External {
		all = append(all, &l.External[i])
	}
	for i := range l.Networks {
		n := &l.Networks[i]
		all = append(all, &n.Name, &n.Mode, &n.ExternalPrefix)
		for j := range n.External {
			all = append(all, &n.External[j])
		}
		for j := range n.Exclude {
			all = append(all, &n.Exclude[j])
		}
	}
	for i := range l.Forwards {
		f := &l.Forwards[i]
		all = append(all, &f.Protocol, &f.Network, &f.External, &f.Internal)
	}
	all = append(append(all, l.Mapping.values()...), l.Filtering.values()...)
	for _, v := range all {
		visit(v)
	}
}
