// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/topo"
)

// load is one kind of traffic.
type load struct {
	flows int // UDP source ports
	bytes int // of a frame, without its checksum
}

// Ports of the inside endpoints, from the first one up.
const firstPort = 20000

// The threads that pktgen has in each namespace; this one sends.
const thread = "kpktgend_0"

// loadPktgen loads the module, where it is one.
func loadPktgen() error {
	if out, err := exec.Command("modprobe", "pktgen").CombinedOutput(); err != nil {
		return fmt.Errorf("load pktgen: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// commands are what makes pktgen send a load from a port: each packet new, for a veth's receiver changes what it
// gets, and one at a time, for a veth refuses bursts.
func (l load) commands(from bench.Port, dst string, count int) []string {
	commands := []string{
		fmt.Sprintf("count %d", count), "clone_skb 0", "burst 1", "delay 0", fmt.Sprintf("pkt_size %d", l.bytes),
		"src_mac " + from.MAC.String(), "dst_mac " + from.Gateway.String(),
		"src_min " + from.Addr.String(), "src_max " + from.Addr.String(), "dst " + dst,
		fmt.Sprintf("udp_src_min %d", firstPort), fmt.Sprintf("udp_src_max %d", firstPort+l.flows-1),
		"udp_dst_min 9", "udp_dst_max 9",
	}
	if l.flows > 1 {
		commands = append(commands, "flag UDPSRC_RND")
	}
	return commands
}

// script is what a shell in the port's namespace does. Not this process: Go's runtime sends its threads signals, and
// one that waits for pktgen's end stops pktgen when it gets one.
func (l load) script(from bench.Port, dst string, count int) string {
	var text strings.Builder
	text.WriteString("set -e; cd /proc/net/pktgen\n")
	write := func(file string, commands ...string) {
		for _, c := range commands {
			fmt.Fprintf(&text, "echo '%s' >%s\n", c, file)
		}
	}
	// Once: on a busy machine a removal is not over when it returns.
	fmt.Fprintf(&text, "[ -e %s ] || ", from.Name)
	write(thread, "add_device "+from.Name)
	write(from.Name, l.commands(from, dst, count)...)
	write("pgctrl", "start")
	return text.String()
}

// send sends count packets, and returns what pktgen says that it took.
func (l load) send(ctx context.Context, from bench.Port, dst string, count int) (took time.Duration, err error) {
	if _, err := from.NS.Run(ctx, l.script(from, dst, count), "sh"); err != nil {
		return 0, err
	}
	// "start" returns at the end, but on a busy machine before the beginning.
	var text []byte
	err = topo.Poll(ctx, sendingWithin, "pktgen's end", func() (bool, error) {
		err := from.NS.Do(func() (err error) {
			text, err = os.ReadFile("/proc/thread-self/net/pktgen/" + from.Name)
			return err
		})
		return err == nil && resultLine.Match(text), err
	})
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, text)
	}
	return parseResult(string(text), count)
}

// sendingWithin bounds what takes about roundTime.
const sendingWithin = time.Minute

var resultLine = regexp.MustCompile(`(?m)^Result: OK: (\d+)\(c\d+\+d\d+\) usec, (\d+) `)

// parseResult finds how long the sending took: "Result: OK: 1234567(c1234000+d567) usec, 20000 (60byte,0frags)".
func parseResult(text string, count int) (time.Duration, error) {
	m := resultLine.FindStringSubmatch(text)
	if m == nil || m[2] != fmt.Sprint(count) {
		return 0, fmt.Errorf("pktgen did not send %d packets: %q", count, text)
	}
	us, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil || us == 0 {
		return 0, fmt.Errorf("pktgen's time %s µs: %w", m[1], err)
	}
	return time.Duration(us) * time.Microsecond, nil
}
