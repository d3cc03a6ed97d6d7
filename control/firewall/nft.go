// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The rules are read by netlink directly: github.com/google/nftables leaves expressions that it does not
// know out of a rule, without a word, and a rule whose statement is missing looks as if it did nothing.

// nftReader reads nftables' tables, at one generation of them.
type nftReader struct {
	family   *family
	links    []link
	sets     map[setID]*set
	elements map[setID][]element
}

type setID struct {
	family      uint8
	table, name string
}

type set struct {
	id        setID
	anonymous bool
	interval  bool
	concat    bool   // of intervals
	length    uint32 // of a key, in bytes
}

// element is a range of keys, both ends included, and what a verdict map has for them.
type element struct {
	low, high []byte
	verdict   verdict
	target    string
}

// errNoNFT: the kernel knows no nftables.
var errNoNFT = errors.New("no nftables in this kernel")

// readNFT reads all tables that the family's packets meet, in a moment in which none of them changed.
func (f *family) readNFT(links []link) ([]table, error) {
	for range attempts {
		before, err := generation()
		if errors.Is(err, errNoNFT) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the host's nftables rules (grant CAP_NET_ADMIN): %w", err)
		}
		r := nftReader{family: f, links: links, sets: map[setID]*set{}, elements: map[setID][]element{}}
		tables, readErr := r.tables()
		after, err := generation()
		if err != nil {
			return nil, fmt.Errorf("read the host's nftables rules: %w", err)
		}
		if before == after {
			if readErr != nil {
				return nil, fmt.Errorf("read the host's nftables rules: %w", readErr)
			}
			return tables, nil
		}
	}
	return nil, fmt.Errorf("read the host's nftables rules: they change faster than they can be read, %d times in a row", attempts)
}

// noNFT: what a kernel answers that knows no nftables.
func noNFT(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// generation is the number of the transaction that the rules stand at.
func generation() (uint32, error) {
	messages, err := request(unix.NFT_MSG_GETGEN, 0, 0)
	if noNFT(err) {
		return 0, errNoNFT
	}
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		for kind, data := range attributes(m[nl.SizeofNfgenmsg:]) {
			if kind == unix.NFTA_GEN_ID && len(data) >= 4 {
				return binary.BigEndian.Uint32(data), nil
			}
		}
	}
	return 0, errors.New("the kernel named no generation")
}

// request sends one message of the nftables subsystem. Each answer begins with an Nfgenmsg.
func request(message int, flags int, family uint8, attrs ...*nl.RtAttr) ([][]byte, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|message, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	for _, a := range attrs {
		req.AddData(a)
	}
	messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(messages, func(m []byte) bool { return len(m) < nl.SizeofNfgenmsg }), nil
}

// attributes walks netlink attributes: type without flags, and value.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	const header, align, typeMask = 4, 4, 0x3fff // NLA_TYPE_MASK
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= header {
			length := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) & typeMask
			if length < header || length > len(b) || !yield(kind, b[header:length]) {
				return
			}
			b = b[min(len(b), (length+align-1)&^(align-1)):]
		}
	}
}

func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

type tableID struct {
	family uint8
	name   string
}

// tables reads chains, sets and rules.
func (r *nftReader) tables() ([]table, error) {
	byID := map[tableID]*table{}
	var order []tableID
	dormant, err := r.dormant()
	if err != nil {
		return nil, err
	}
	err = r.dump(unix.NFT_MSG_GETCHAIN, func(family uint8, b []byte) error {
		id, c := parseChain(family, b)
		if dormant[id] {
			return nil
		}
		if byID[id] == nil {
			byID[id] = &table{backend: nft, family: r.family.tables[family], name: id.name}
			order = append(order, id)
		}
		byID[id].add(c)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := r.dump(unix.NFT_MSG_GETSET, r.addSet); err != nil {
		return nil, err
	}
	for _, t := range byID {
		t.recognize(r.family)
	}
	if err := r.dump(unix.NFT_MSG_GETRULE, func(family uint8, b []byte) error { return r.addRule(byID, family, b) }); err != nil {
		return nil, err
	}
	tables := make([]table, len(order))
	for i, id := range order {
		tables[i] = *byID[id]
	}
	return tables, nil
}

// dormant are the tables whose chains are not at their hooks.
func (r *nftReader) dormant() (map[tableID]bool, error) {
	const dormantFlag = 1 // NFT_TABLE_F_DORMANT
	out := map[tableID]bool{}
	err := r.dump(unix.NFT_MSG_GETTABLE, func(family uint8, b []byte) error {
		id := tableID{family: family}
		var flags uint32
		for kind, data := range attributes(b) {
			switch kind {
			case unix.NFTA_TABLE_NAME:
				id.name = text(data)
			case unix.NFTA_TABLE_FLAGS:
				flags = number(data)
			}
		}
		out[id] = flags&dormantFlag != 0
		return nil
	})
	return out, err
}

// dump lists the objects of all tables that the family's packets meet.
func (r *nftReader) dump(message int, each func(family uint8, attrs []byte) error) error {
	messages, err := request(message, unix.NLM_F_DUMP, unix.NFPROTO_UNSPEC)
	if err != nil {
		return err
	}
	for _, m := range messages {
		if r.family.tables[m[0]] == "" {
			continue
		}
		if err := each(m[0], m[nl.SizeofNfgenmsg:]); err != nil {
			return err
		}
	}
	return nil
}

func parseChain(family uint8, b []byte) (tableID, *chain) {
	id, c := tableID{family: family}, &chain{}
	for kind, data := range attributes(b) {
		switch kind {
		case unix.NFTA_CHAIN_TABLE:
			id.name = text(data)
		case unix.NFTA_CHAIN_NAME:
			c.name = text(data)
		case unix.NFTA_CHAIN_TYPE:
			c.kind = text(data)
		case unix.NFTA_CHAIN_POLICY:
			c.drops = number(data) == 0 // NF_DROP
		case unix.NFTA_CHAIN_HOOK:
			for kind, data := range attributes(data) {
				switch kind {
				case unix.NFTA_HOOK_HOOKNUM:
					c.hook = nftHook(number(data))
				case unix.NFTA_HOOK_PRIORITY:
					c.priority = int(int32(number(data)))
				}
			}
		}
	}
	return id, c
}

// nftHook: the numbers of the hooks of IPv4, IPv6 and the bridge are the same (linux/netfilter.h, netfilter_bridge.h).
// inet's ingress, 5, is none of ours.
func nftHook(n uint32) hook {
	return map[uint32]hook{0: prerouting, 1: input, 2: forward, 3: output, 4: postrouting}[n]
}

// recognize tells tables of iptables-nft from others that bear the same name: by its base chains' names.
func (t *table) recognize(f *family) {
	if _, known := priorities[t.name]; !known || t.family != f.word {
		return
	}
	based := false
	for _, c := range t.chains {
		if c.hook == noHook {
			continue
		}
		if hooks[c.name] != c.hook {
			return
		}
		based = true
	}
	if based {
		t.backend = f.iptables
	}
}

func (r *nftReader) addSet(family uint8, b []byte) error {
	s := &set{id: setID{family: family}}
	for kind, data := range attributes(b) {
		switch kind {
		case unix.NFTA_SET_TABLE:
			s.id.table = text(data)
		case unix.NFTA_SET_NAME:
			s.id.name = text(data)
		case unix.NFTA_SET_FLAGS:
			flags := number(data)
			s.anonymous, s.interval = flags&unix.NFT_SET_ANONYMOUS != 0, flags&unix.NFT_SET_INTERVAL != 0
			s.concat = flags&setConcat != 0
		case unix.NFTA_SET_KEY_LEN:
			s.length = number(data)
		}
	}
	r.sets[s.id] = s
	return nil
}

// NFT_SET_CONCAT and NFTA_SET_ELEM_KEY_END of linux/netfilter/nf_tables.h.
const (
	setConcat    = 0x80
	setElemEnd   = 10
	elemCatchAll = 2
)

func (r *nftReader) addRule(tables map[tableID]*table, family uint8, b []byte) error {
	id := tableID{family: family}
	var handle uint64
	var name string
	var expressions []byte
	for kind, data := range attributes(b) {
		switch kind {
		case unix.NFTA_RULE_TABLE:
			id.name = text(data)
		case unix.NFTA_RULE_CHAIN:
			name = text(data)
		case unix.NFTA_RULE_HANDLE:
			if len(data) == 8 {
				handle = binary.BigEndian.Uint64(data)
			}
		case unix.NFTA_RULE_EXPRESSIONS:
			expressions = data
		}
	}
	t := tables[id]
	if t == nil || t.conenats() {
		return nil
	}
	c := t.chain(name)
	if c == nil {
		return fmt.Errorf("rule %d of table %s is in no chain", handle, id.name)
	}
	if t.unread(c) {
		return nil
	}
	rules, err := (&decoder{reader: r, table: t, family: family, rule: rule{handle: handle}}).decode(expressions)
	c.rules = append(c.rules, rules...)
	return err
}

// unread says whether a chain's rules decide nothing here: there may be tens of thousands of them.
func (t *table) unread(c *chain) bool {
	published := t.backend != nft && t.name == "filter" && c.name == "DOCKER" // its bridges stand elsewhere too
	return published || c.kind == "nat" && c.hook != prerouting && c.hook != noHook
}

// read gets the elements of a set, once.
func (r *nftReader) read(s *set) ([]element, error) {
	if known, ok := r.elements[s.id]; ok {
		return known, nil
	}
	messages, err := request(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, s.id.family,
		nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_TABLE, nl.ZeroTerminated(s.id.table)),
		nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_SET, nl.ZeroTerminated(s.id.name)))
	if err != nil {
		return nil, fmt.Errorf("read set %s of table %s: %w", s.id.name, s.id.table, err)
	}
	var found []rawElement
	for _, m := range messages {
		found = append(found, parseElements(m[nl.SizeofNfgenmsg:])...)
	}
	r.elements[s.id] = ranges(s, found)
	return r.elements[s.id], nil
}

func parseElements(b []byte) (out []rawElement) {
	for kind, data := range attributes(b) {
		if kind == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			for _, data := range attributes(data) {
				out = append(out, parseElement(data))
			}
		}
	}
	return out
}

type rawElement struct {
	element
	ends bool // an interval ends before this key
	all  bool // the catch-all
}

func parseElement(b []byte) (e rawElement) {
	for kind, data := range attributes(b) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			e.low = value(data)
		case setElemEnd:
			e.high = value(data)
		case unix.NFTA_SET_ELEM_DATA:
			e.verdict, e.target, _ = parseVerdict(data)
		case unix.NFTA_SET_ELEM_FLAGS:
			e.ends, e.all = number(data)&unix.NFT_SET_ELEM_INTERVAL_END != 0, number(data)&elemCatchAll != 0
		}
	}
	return e
}

// ranges makes ranges of keys and marks of ends. A catch-all is a range without bounds.
func ranges(s *set, found []rawElement) (out []element) {
	slices.SortStableFunc(found, func(a, b rawElement) int { return bytes.Compare(a.low, b.low) })
	for i, e := range found {
		if e.ends {
			continue
		}
		switch {
		case e.all || e.high != nil:
		case !s.interval || s.concat:
			e.high = e.low
		case i+1 < len(found):
			e.high = before(found[i+1].low)
		default:
			e.high = bytes.Repeat([]byte{0xff}, len(e.low))
		}
		out = append(out, e.element)
	}
	return out
}

// before is the number one less.
func before(b []byte) []byte {
	b = slices.Clone(b)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]--
		if b[i] != 0xff {
			break
		}
	}
	return b
}

// value is what NFTA_DATA_VALUE holds.
func value(b []byte) []byte {
	for kind, data := range attributes(b) {
		if kind == unix.NFTA_DATA_VALUE {
			return data
		}
	}
	return nil
}

// parseVerdict is what NFTA_DATA_VERDICT holds, if it is there.
func parseVerdict(b []byte) (v verdict, target string, ok bool) {
	for kind, data := range attributes(b) {
		if kind != unix.NFTA_DATA_VERDICT {
			continue
		}
		ok = true
		for kind, data := range attributes(data) {
			switch kind {
			case unix.NFTA_VERDICT_CODE:
				v = verdictOf(int32(number(data)))
			case unix.NFTA_VERDICT_CHAIN:
				target = text(data)
			}
		}
	}
	if v == others {
		target = "queue"
	}
	return v, target, ok
}

// verdictOf is enum nft_verdicts, and netfilter's own (linux/netfilter.h).
func verdictOf(code int32) verdict {
	switch code {
	case 0: // NF_DROP
		return drops
	case 1: // NF_ACCEPT
		return accepts
	case unix.NFT_CONTINUE:
		return none
	case unix.NFT_RETURN:
		return returns
	case unix.NFT_JUMP:
		return jumps
	case unix.NFT_GOTO:
		return gotos
	}
	return others
}
