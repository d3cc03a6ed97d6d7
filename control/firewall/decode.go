// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"bytes"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// decoder turns the expressions of one nftables rule into the model, by following what they load into the
// registers. What it does not know becomes an extra match, and an effect if it might be one: it counts.
type decoder struct {
	reader    *nftReader
	table     *table
	family    uint8
	rule      rule
	registers [registerCount]loaded
	branches  []rule // of a verdict map
	from      []byte // the beginning of a range whose end is the next expression,
	fromSreg  []byte // and the register that both compare
}

// Registers are 20 of 32 bits; NFT_REG_1 to 4 are the first 16 in fours (linux/netfilter/nf_tables.h).
const registerCount = 20

func register(number uint32) int {
	switch {
	case number >= unix.NFT_REG_1 && number <= unix.NFT_REG_4:
		return int(number-unix.NFT_REG_1) * 4
	case number >= unix.NFT_REG32_00 && number <= unix.NFT_REG32_15:
		return int(number - unix.NFT_REG32_00)
	}
	return -1
}

// decode gives more than one rule for a verdict map.
func (d *decoder) decode(expressions []byte) ([]rule, error) {
	for _, data := range attributes(expressions) {
		var name string
		var body []byte
		for kind, data := range attributes(data) {
			switch kind {
			case unix.NFTA_EXPR_NAME:
				name = text(data)
			case unix.NFTA_EXPR_DATA:
				body = data
			}
		}
		if name != "cmp" {
			d.flush()
		}
		if err := d.expression(name, fieldsOf(body)); err != nil {
			return nil, err
		}
	}
	d.flush()
	if len(d.branches) > 0 && d.rule.verdict == none && len(d.rule.effects) == 0 {
		return d.branches, nil
	}
	return append(d.branches, d.rule), nil
}

// fields are an expression's attributes by type, of which none has more.
type fields [16][]byte

func fieldsOf(body []byte) *fields {
	var out fields
	for kind, data := range attributes(body) {
		if int(kind) < len(out) {
			out[kind] = data
		}
	}
	return &out
}

// expression is one of the kernel's nft_*.c.
func (d *decoder) expression(name string, f *fields) error {
	switch name {
	case "counter", "last":
	case "meta", "payload", "ct", "fib", "exthdr", "rt", "socket", "tunnel", "osf", "xfrm", "numgen", "hash", "inner":
		d.load(name, f)
	case "bitwise":
		d.bitwise(f)
	case "byteorder": // NFTA_BYTEORDER_SREG, _DREG: what is compared later has this order
		d.set(f[2], d.get(f[1]))
	case "cmp":
		d.cmp(f)
	case "range":
		d.span(f[unix.NFTA_RANGE_SREG], number(f[unix.NFTA_RANGE_OP]) == unix.NFT_CMP_NEQ,
			value(f[unix.NFTA_RANGE_FROM_DATA]), value(f[unix.NFTA_RANGE_TO_DATA]))
	case "lookup":
		return d.lookup(f)
	case "immediate":
		d.immediate(f)
	case "match":
		d.rule.match(text(f[unix.NFTA_MATCH_NAME]), number(f[unix.NFTA_MATCH_REV]), f[unix.NFTA_MATCH_INFO])
	case "target":
		d.rule.extension(d.reader.family, text(f[unix.NFTA_TARGET_NAME]), f[unix.NFTA_TARGET_INFO])
	case "limit", "quota", "connlimit":
		d.rule.partial = true
		d.extra(name)
	case "objref":
		d.objref(f)
	default:
		d.statement(name, f)
	}
	return nil
}

// extra is a match that is not followed, in the words of the table's tool.
func (d *decoder) extra(text string) {
	if d.table.backend != nft {
		text = "-m " + text
	}
	d.rule.extra = append(d.rule.extra, text)
}

func (d *decoder) effect(text string) {
	d.rule.effects = append(d.rule.effects, text)
}

// statement is an expression that acts on the packet.
func (d *decoder) statement(name string, f *fields) {
	r := &d.rule
	switch name {
	case "reject":
		r.verdict = rejects
	case "nat":
		r.verdict, r.target = others, "snat"
		if number(f[unix.NFTA_NAT_TYPE]) == unix.NFT_NAT_DNAT {
			r.verdict, r.target = diverts, "dnat"
		}
	case "redir":
		r.verdict, r.target = diverts, "redirect"
	case "masq":
		r.verdict, r.target = others, "masquerade"
	case "queue", "tproxy", "synproxy", "fwd":
		r.verdict, r.target = others, name
	case "log":
		d.log(f)
	case "notrack", "dup", "dynset", "flow_offload":
		d.effect(name)
	default: // unknown here: assume the worst
		d.rule.partial = true
		d.effect(name)
	}
}

func (d *decoder) log(f *fields) {
	out := "log"
	if prefix := text(f[unix.NFTA_LOG_PREFIX]); prefix != "" {
		out += fmt.Sprintf(" prefix %q", prefix)
	}
	d.effect(out)
}

// objref: a counter is nothing, a quota or limit is a match, and anything else (a helper, a mark) an effect.
// The types are NFT_OBJECT_* of linux/netfilter/nf_tables.h.
func (d *decoder) objref(f *fields) {
	const counter, quota, limit, connlimit = 1, 2, 4, 5
	switch kind := number(f[unix.NFTA_OBJREF_IMM_TYPE]); kind {
	case counter:
	case quota, limit, connlimit:
		d.rule.partial = true
		d.extra("object " + text(f[unix.NFTA_OBJREF_IMM_NAME]))
	default:
		d.rule.partial = true
		d.effect("object " + text(f[unix.NFTA_OBJREF_IMM_NAME]))
	}
}

func (d *decoder) immediate(f *fields) {
	if number(f[unix.NFTA_IMMEDIATE_DREG]) != unix.NFT_REG_VERDICT {
		d.set(f[unix.NFTA_IMMEDIATE_DREG], loaded{text: "value"})
		return
	}
	if v, target, ok := parseVerdict(f[unix.NFTA_IMMEDIATE_DATA]); ok {
		d.rule.verdict, d.rule.target = v, target
	}
}

func (d *decoder) get(number32 []byte) loaded {
	if i := register(number(number32)); i >= 0 {
		return d.registers[i]
	}
	return loaded{text: "register"}
}

func (d *decoder) set(number32 []byte, l loaded) {
	if i := register(number(number32)); i >= 0 {
		d.registers[i] = l
	}
}

// bitwise masks what is loaded: of an address it leaves a prefix; of anything else, nothing that is known.
func (d *decoder) bitwise(f *fields) {
	l := d.get(f[unix.NFTA_BITWISE_SREG])
	mask := value(f[unix.NFTA_BITWISE_MASK])
	if bits, ok := maskBits(mask); ok && (l.field == source || l.field == destination) && len(mask) == int(d.reader.family.size) && l.length == len(mask) {
		l.bits = bits
	} else {
		l.field, l.mask = unknown, mask
	}
	d.set(f[unix.NFTA_BITWISE_DREG], l)
}

func maskBits(mask []byte) (bits int, ok bool) {
	ended := false
	for _, b := range mask {
		for i := 7; i >= 0; i-- {
			if b>>i&1 == 0 {
				ended = true
				continue
			}
			if ended {
				return 0, false
			}
			bits++
		}
	}
	return bits, true
}

func (d *decoder) cmp(f *fields) {
	sreg, data := f[unix.NFTA_CMP_SREG], value(f[unix.NFTA_CMP_DATA])
	zero, ones := make([]byte, len(data)), slices.Repeat([]byte{0xff}, len(data))
	if number(f[unix.NFTA_CMP_OP]) == unix.NFT_CMP_LTE && bytes.Equal(sreg, d.fromSreg) {
		zero, d.fromSreg = d.from, nil
	}
	d.flush()
	switch op := number(f[unix.NFTA_CMP_OP]); op {
	case unix.NFT_CMP_EQ, unix.NFT_CMP_NEQ:
		d.span(sreg, op == unix.NFT_CMP_NEQ, data, data)
	case unix.NFT_CMP_LTE:
		d.span(sreg, false, zero, data)
	case unix.NFT_CMP_GTE:
		d.from, d.fromSreg = data, sreg
	case unix.NFT_CMP_LT:
		d.span(sreg, true, data, ones)
	case unix.NFT_CMP_GT:
		d.span(sreg, true, zero, data)
	}
}

// flush is for a range that has no end.
func (d *decoder) flush() {
	if sreg := d.fromSreg; sreg != nil {
		d.fromSreg = nil
		d.span(sreg, false, d.from, slices.Repeat([]byte{0xff}, len(d.from)))
	}
}

// span is a match: what is loaded lies between two values, or not.
func (d *decoder) span(sreg []byte, negated bool, low, high []byte) {
	l := d.get(sreg)
	if !d.add(&d.rule, l, negated, []element{{low: low, high: high}}) {
		d.extra(d.unknownMatch(l, negated, low, high))
	}
}

// lookup is a match against a set, a verdict map, or a map whose value is used later, and whose keys then match.
func (d *decoder) lookup(f *fields) error {
	s := d.reader.sets[setID{d.family, d.table.name, text(f[unix.NFTA_LOOKUP_SET])}]
	if s == nil {
		return fmt.Errorf("rule %d of table %s looks into a set %q that is not there", d.rule.handle, d.table.name, text(f[unix.NFTA_LOOKUP_SET]))
	}
	dreg := f[unix.NFTA_LOOKUP_DREG]
	mapped := dreg != nil
	verdicts := mapped && number(dreg) == unix.NFT_REG_VERDICT
	negated := number(f[unix.NFTA_LOOKUP_FLAGS])&unix.NFT_LOOKUP_F_INV != 0
	key := register(number(f[unix.NFTA_LOOKUP_SREG]))
	if mapped && !verdicts {
		defer d.set(dreg, loaded{text: "map"})
	}
	if key < 0 || !verdicts && !d.worth(s, key) {
		d.rule.partial = d.rule.partial || s.anonymous
		d.extra(d.lookupText(s, key, negated))
		return nil
	}
	elements, err := d.reader.read(s)
	if err != nil {
		return err
	}
	if verdicts {
		d.branch(s, key, elements)
		return nil
	}
	d.member(s, key, elements, negated)
	return nil
}

// worth says whether a set's elements decide anything here. Those of a block list do not: it may hold
// anything at the next moment, and many thousands of addresses.
func (d *decoder) worth(s *set, key int) bool {
	l := d.registers[key]
	if !d.concat(s, key) && (l.field == source || l.field == destination) {
		return s.anonymous
	}
	return l.field != unknown || d.concat(s, key)
}

// concat says whether a key is of more than the one field that its first register holds.
func (d *decoder) concat(s *set, key int) bool {
	return s.concat || int(s.length) > (d.registers[key].length+3)&^3
}

// member is a match against a set; of a concatenation, what each part must be by itself.
func (d *decoder) member(s *set, key int, elements []element, negated bool) {
	parts := d.parts(s, key, elements)
	if len(elements) == 0 && !negated {
		d.rule.never = d.rule.never || s.anonymous
	}
	if len(parts) == 0 || len(elements) == 0 || (negated && len(parts) > 1) {
		d.extra(d.lookupText(s, key, negated))
		return
	}
	added := true
	for _, p := range parts {
		added = d.add(&d.rule, p.loaded, negated, p.elements) && added
	}
	if !added || len(parts) > 1 {
		d.extra(d.lookupText(s, key, negated))
	}
}

// branch makes a rule for each element of a verdict map.
func (d *decoder) branch(s *set, key int, elements []element) {
	for _, e := range elements {
		r := d.rule.clone()
		r.verdict, r.target = e.verdict, e.target
		decided := e.low != nil
		for _, p := range d.parts(s, key, []element{e}) {
			decided = d.add(&r, p.loaded, false, p.elements) && decided
		}
		if !decided {
			r.extra = append(r.extra, d.lookupText(s, key, false))
		}
		d.branches = append(d.branches, r)
	}
}

// clone is a rule whose lists may grow apart from the original's.
func (r rule) clone() rule {
	r.in, r.out, r.src, r.dst = slices.Clip(r.in), slices.Clip(r.out), slices.Clip(r.src), slices.Clip(r.dst)
	r.protocols, r.ports = slices.Clip(r.protocols), slices.Clip(r.ports)
	r.extra, r.effects = slices.Clip(r.extra), slices.Clip(r.effects)
	return r
}

// part is one field of a key, and what the elements have for it.
type part struct {
	loaded
	elements []element
}

// parts splits keys at the registers that they were gathered from; each begins at 4 bytes.
func (d *decoder) parts(s *set, key int, elements []element) (out []part) {
	if len(elements) == 0 || elements[0].low == nil {
		return nil
	}
	length := len(elements[0].low)
	if !d.concat(s, key) {
		return []part{{d.registers[key], elements}}
	}
	for at := 0; at < length && key+at/4 < registerCount; {
		p := part{loaded: d.registers[key+at/4]}
		if p.length == 0 {
			return out
		}
		for _, e := range elements {
			if e.low == nil || e.high == nil || len(e.low) < at+p.length || len(e.high) < at+p.length {
				return out
			}
			p.elements = append(p.elements, element{low: e.low[at : at+p.length], high: e.high[at : at+p.length]})
		}
		out = append(out, p)
		at += (p.length + 3) &^ 3
	}
	return out
}
