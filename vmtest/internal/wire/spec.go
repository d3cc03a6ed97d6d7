// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
)

// Spec is a wire with a card of the same model at each end.
type Spec struct {
	Model  string // of `qemu-system-x86_64 -device help`
	Queues int    // pairs of them, in each card
}

const (
	maxWires  = 16
	maxQueues = 8 // a TAP device has up to 256
)

var model = regexp.MustCompile(`^[a-z0-9-]+$`)

// Parse reads MODEL or MODEL,queues=N. Whether there is such a card, QEMU will say.
func Parse(text string) (Spec, error) {
	name, option, more := strings.Cut(text, ",")
	s := Spec{Model: name, Queues: 1}
	if !model.MatchString(name) {
		return s, fmt.Errorf("wire %q: %q is no name of a network card", text, name)
	}
	if !more {
		return s, nil
	}
	count, ok := strings.CutPrefix(option, "queues=")
	n, err := strconv.Atoi(count)
	if !ok || err != nil || n < 1 || n > maxQueues {
		return s, fmt.Errorf("wire %q: after the card's name comes nothing, or queues=1 to %d", text, maxQueues)
	}
	if n > 1 && !strings.HasPrefix(name, "virtio-") {
		return s, fmt.Errorf("wire %q: of QEMU's cards only virtio's have more than one queue of a TAP device", text)
	}
	s.Queues = n
	return s, nil
}

// ParseAll reads some of them.
func ParseAll(texts []string) (specs []Spec, err error) {
	if len(texts) > maxWires {
		return nil, fmt.Errorf("%d wires: there may be %d", len(texts), maxWires)
	}
	for _, text := range texts {
		s, err := Parse(text)
		if err != nil {
			return nil, err
		}
		specs = append(specs, s)
	}
	return specs, nil
}

// MAC is the address of a card: end 0 or 1 of a wire. It is one of local administration, and spells "vmt".
func MAC(wire, end int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 'v', 'm', 't', byte(wire), byte(end)}
}

// Args are QEMU's, for cards whose descriptors it inherits from first on, in the order of Open.
func Args(specs []Spec, first int) (args []string) {
	fd := first
	for i, s := range specs {
		for end := range 2 {
			id := fmt.Sprintf("wire%d%c", i, 'a'+end)
			var fds []string
			for range s.Queues {
				fds = append(fds, strconv.Itoa(fd))
				fd++
			}
			card := fmt.Sprintf("%s,netdev=%s,mac=%s,romfile=", s.Model, id, MAC(i, end)) // nobody boots from it
			if s.Queues > 1 {
				card += fmt.Sprintf(",mq=on,vectors=%d", 2*s.Queues+2) // one each, the control queue's, and the configuration's
			}
			args = append(args, "-netdev", fmt.Sprintf("tap,id=%s,fds=%s", id, strings.Join(fds, ":")), "-device", card)
		}
	}
	return args
}

// Variable is what tells the command in the guest of its wires, in their order: "MODEL QUEUES MAC MAC", with commas between.
const Variable = "VMTEST_WIRES"

// Environment is Variable's value.
func Environment(specs []Spec) string {
	var wires []string
	for i, s := range specs {
		wires = append(wires, fmt.Sprintf("%s %d %s %s", s.Model, s.Queues, MAC(i, 0), MAC(i, 1)))
	}
	return strings.Join(wires, ",")
}
