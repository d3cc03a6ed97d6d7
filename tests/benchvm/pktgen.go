// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/conenat/conenat/tests/bench"
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

// pktgenDir is the calling thread's namespace's.
const pktgenDir = "/proc/thread-self/net/pktgen"

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

// send sends count packets, and returns what pktgen says that it took.
func (l load) send(from bench.Port, dst string, count int) (took time.Duration, err error) {
	err = from.NS.Do(func() error {
		write := func(file string, commands ...string) error {
			for _, c := range commands {
				if err := os.WriteFile(path.Join(pktgenDir, file), []byte(c+"\n"), 0); err != nil {
					return fmt.Errorf("tell pktgen %q: %w", c, err)
				}
			}
			return nil
		}
		if err := write(thread, "rem_device_all", "add_device "+from.Name); err != nil {
			return err
		}
		if err := write(from.Name, l.commands(from, dst, count)...); err != nil {
			return err
		}
		if err := write("pgctrl", "start"); err != nil { // returns when all are sent
			return err
		}
		result, err := os.ReadFile(path.Join(pktgenDir, from.Name))
		if err != nil {
			return fmt.Errorf("read pktgen's result: %w", err)
		}
		took, err = parseResult(string(result))
		return errors.Join(err, write(thread, "rem_device_all"))
	})
	return took, err
}

var resultLine = regexp.MustCompile(`(?m)^Result: OK: (\d+)\(`)

// parseResult finds how long the sending took: "Result: OK: 1234567(c1234000+d567) usec, …".
func parseResult(text string) (time.Duration, error) {
	m := resultLine.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("pktgen did not end well: %q", text)
	}
	us, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil || us == 0 {
		return 0, fmt.Errorf("pktgen's time %s µs: %w", m[1], err)
	}
	return time.Duration(us) * time.Microsecond, nil
}
