// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// readLegacy reads the tables of iptables' old back end, which has no other interface than its tool's text.
func (f *family) readLegacy() ([]table, error) {
	text, err := f.legacyText()
	if err != nil || len(text) == 0 {
		return nil, err
	}
	tables, err := parseSave(f.legacy, string(text))
	if err != nil {
		return nil, fmt.Errorf("understand what %s printed: %w", f.legacySave, err)
	}
	return tables, nil
}

// legacyText is nil where there are no legacy tables.
func (f *family) legacyText() ([]byte, error) {
	names, err := os.ReadFile(f.legacyTables)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && len(bytes.TrimSpace(names)) == 0) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s (grant CAP_NET_ADMIN): %w", f.legacyTables, err)
	}
	tool, err := f.legacyTool()
	if err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	cmd := exec.Command(tool)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("read the legacy rules of iptables with %s (grant CAP_NET_ADMIN and CAP_NET_RAW): %w: %s",
			tool, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// legacyTool is iptables-legacy-save, or the iptables-save of a host that knows no other back end.
func (f *family) legacyTool() (string, error) {
	if tool := lookPath(f.legacySave); tool != "" {
		return tool, nil
	}
	tool := lookPath(f.save)
	if tool != "" {
		if version, err := exec.Command(tool, "--version").Output(); err == nil && !bytes.Contains(version, []byte("nf_tables")) {
			return tool, nil
		}
	}
	return "", fmt.Errorf("cannot read the host's legacy iptables rules: install %s (Debian: package iptables)", f.legacySave)
}

// searched is where tools are: on the PATH, and where a service's PATH may not lead.
var searched = []string{"", "/usr/sbin/", "/sbin/"}

func lookPath(name string) string {
	for _, dir := range searched {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	return ""
}

// parseSave makes tables of what iptables-save prints.
func parseSave(b backend, text string) (tables []table, err error) {
	for n, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line == "COMMIT":
			continue
		case line[0] == '*':
			tables = append(tables, table{backend: b, family: b.tables(), name: line[1:]})
			continue
		case len(tables) == 0:
			return nil, fmt.Errorf("line %d: %q is in no table", n+1, line)
		}
		t := &tables[len(tables)-1]
		read := t.append
		if line[0] == ':' {
			read = t.declare
		}
		if err := read(line); err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
	}
	for i := range tables {
		tables[i].resolve()
	}
	return tables, nil
}

var (
	hooks      = map[string]hook{"PREROUTING": prerouting, "INPUT": input, "FORWARD": forward, "OUTPUT": output, "POSTROUTING": postrouting}
	priorities = map[string]int{"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50} // netfilter_ipv4.h
)

// tables is the family of a back end's tables, as nft calls it.
func (b backend) tables() string {
	if b == ip6tables || b == ip6tablesLegacy {
		return ipv6.word
	}
	return ipv4.word
}

// declare is a line like ":FORWARD DROP [0:0]".
func (t *table) declare(line string) error {
	fields := strings.Fields(line[1:])
	if len(fields) == 0 {
		return fmt.Errorf("%q names no chain", line)
	}
	c := &chain{name: fields[0], kind: "filter"}
	if len(fields) > 1 && fields[1] != "-" {
		c.hook, c.priority, c.drops = hooks[c.name], priorities[t.name], fields[1] == "DROP"
	}
	if t.name == "nat" {
		c.kind = "nat"
		if c.hook == postrouting || c.hook == input {
			c.priority = 100
		}
	}
	t.add(c)
	return nil
}

// append is a line like "-A FORWARD -i docker0 -j ACCEPT".
func (t *table) append(line string) error {
	words, err := split(line)
	if err != nil {
		return err
	}
	if len(words) > 0 && strings.HasPrefix(words[0], "[") { // iptables-save -c
		words = words[1:]
	}
	if len(words) < 2 || words[0] != "-A" {
		return fmt.Errorf("%q is no rule", line)
	}
	c := t.chain(words[1])
	if c == nil {
		return fmt.Errorf("rule %q is for a chain that is not declared", line)
	}
	p := parser{words: words[2:]}
	if err := p.parse(); err != nil {
		return fmt.Errorf("rule %q: %w", line, err)
	}
	p.rule.raw = line[max(0, strings.Index(line, "-A ")):]
	c.rules = append(c.rules, p.rule)
	return nil
}

// split is at spaces, but for what is in double quotes, where a backslash quotes the next character.
func split(line string) (words []string, err error) {
	var word strings.Builder
	quoted, open := false, false
	for i := 0; i < len(line); i++ {
		switch ch := line[i]; {
		case ch == '"':
			quoted, open = !quoted, true
		case ch == '\\' && quoted && i+1 < len(line):
			i++
			word.WriteByte(line[i])
		case ch == ' ' && !quoted:
			if open {
				words = append(words, word.String())
			}
			word.Reset()
			open = false
		default:
			word.WriteByte(ch)
			open = true
		}
	}
	if quoted {
		return nil, fmt.Errorf("%q has a quote without end", line)
	}
	if open {
		words = append(words, word.String())
	}
	return words, nil
}

// parser takes the words of one rule.
type parser struct {
	words []string
	rule  rule
	match string   // the -m that options belong to
	extra []string // its options that decide nothing
}

func (p *parser) parse() (err error) {
	negated := false
	for len(p.words) > 0 && err == nil {
		word := p.next()
		switch word {
		case "!":
			negated = true
			continue
		case "-m", "--match":
			p.close()
			p.match = p.next()
		case "-j", "--jump", "-g", "--goto":
			p.close()
			p.jump(word == "-g" || word == "--goto")
			p.words = nil // the target's options
		default:
			err = p.option(word, negated)
		}
		negated = false
	}
	p.close()
	return err
}

func (p *parser) next() (word string) {
	if len(p.words) > 0 {
		word, p.words = p.words[0], p.words[1:]
	}
	return word
}

// close ends a -m: what it matches beyond what is understood is kept as text. tcp and udp match nothing by
// themselves, and comment never does.
func (p *parser) close() {
	understood := slices.Contains([]string{"", "tcp", "udp", "comment", "multiport", "addrtype"}, p.match)
	if p.match != "comment" && (len(p.extra) > 0 || !understood) {
		if p.match != "" {
			p.extra = append([]string{"-m", p.match}, p.extra...)
		}
		p.rule.extra = append(p.rule.extra, strings.Join(p.extra, " "))
	}
	p.match, p.extra = "", nil
}

func (p *parser) option(word string, negated bool) (err error) {
	r := &p.rule
	switch word {
	case "-i", "--in-interface":
		r.in = append(r.in, pattern(p.next(), negated))
	case "-o", "--out-interface":
		r.out = append(r.out, pattern(p.next(), negated))
	case "-s", "--source":
		r.src, err = appendAddrs(r.src, p.next(), negated)
	case "-d", "--destination":
		r.dst, err = appendAddrs(r.dst, p.next(), negated)
	case "-p", "--protocol":
		r.protocols, err = appendProtocol(r.protocols, p.next(), negated)
	case "--dport", "--dports":
		r.ports, err = appendPorts(r.ports, p.next(), negated)
	case "--dst-type":
		if kind := p.next(); kind == "LOCAL" && !negated {
			r.local = true
		} else {
			p.extra = append(p.extra, not(negated, "! ")+"--dst-type "+kind)
		}
	case "--comment", "--string", "--hex-string": // their text may look like an option
		p.extra = append(p.extra, not(negated, "! ")+word, strconv.Quote(p.next()))
	default:
		p.extra = append(p.extra, not(negated, "! ")+word)
	}
	return err
}

func pattern(name string, negated bool) names {
	if prefix, wild := strings.CutSuffix(name, "+"); wild {
		name = prefix + "*"
	}
	return names{negated, []string{name}}
}

func appendAddrs(list []addrs, text string, negated bool) ([]addrs, error) {
	if !strings.Contains(text, "/") {
		text += map[bool]string{false: "/32", true: "/128"}[strings.Contains(text, ":")]
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		if _, mask, ok := strings.Cut(text, "/"); ok && strings.ContainsAny(mask, ".:") { // a mask with holes: any address
			return list, nil
		}
		return nil, err
	}
	return append(list, addrs{negated, []netip.Prefix{p.Masked()}}), nil
}

func appendProtocol(list []protocols, text string, negated bool) ([]protocols, error) {
	value, ok := protocolNumbers[text]
	if !ok {
		n, err := strconv.ParseUint(text, 10, 8)
		if err != nil {
			return list, nil // a name of /etc/protocols: any protocol
		}
		value = uint8(n)
	}
	if value == 0 {
		return list, nil
	}
	return append(list, protocols{negated, []uint8{value}}), nil
}

func appendPorts(list []ports, text string, negated bool) ([]ports, error) {
	var ranges []portRange
	for _, part := range strings.Split(text, ",") {
		low, high, isRange := strings.Cut(part, ":")
		if !isRange {
			high = low
		}
		from, err := strconv.ParseUint(low, 10, 16)
		if err != nil {
			return nil, err
		}
		to, err := strconv.ParseUint(high, 10, 16)
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, portRange{uint16(from), uint16(to)})
	}
	return append(list, ports{negated, ranges}), nil
}

// jump is a verdict, a chain, or an extension. A chain's name is no extension's: iptables refuses that.
func (p *parser) jump(isGoto bool) {
	r := &p.rule
	r.target = p.next()
	verdicts := map[string]verdict{"ACCEPT": accepts, "DROP": drops, "REJECT": rejects, "RETURN": returns,
		"DNAT": diverts, "REDIRECT": diverts, "NETMAP": diverts}
	v, known := verdicts[r.target]
	switch {
	case isGoto:
		r.verdict = gotos
	case known:
		r.verdict = v
	default:
		r.verdict = jumps // or an extension: resolve knows the chains
	}
}

// resolve makes jumps to what is no chain what they are: extensions.
func (t *table) resolve() {
	for _, c := range t.chains {
		for i := range c.rules {
			if r := &c.rules[i]; r.verdict == jumps && t.chain(r.target) == nil {
				r.verdict = others
			}
		}
	}
}
