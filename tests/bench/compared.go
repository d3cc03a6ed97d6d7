// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/conenat/conenat/tests/bench/load"
	"github.com/conenat/conenat/tests/topo"
)

// noEnd is longer than a run.
const noEnd = time.Hour

func (s Scale) timeout() time.Duration {
	if s.UDPTimeout == 0 {
		return noEnd
	}
	return s.UDPTimeout
}

// daemon is conenat with room for the scale, and further lines of configuration. A binding has as many sessions as its port has
// remotes. A power of two, as the default is: a hash has one of buckets, and what is more of them than entries is a session's memory, too.
func (s Scale) daemon(binary, path string, more ...string) daemon {
	more = append(more, "limits: {sessions_per_host: 0}")
	if s.Sessions > 0 {
		room := 1 << bits.Len(uint(max(64, s.Sessions)-1))
		more = append(more, fmt.Sprintf("capacity: {sessions: %d, bindings: 65536, sessions_per_binding: %d}", room, room))
	}
	return daemon{binary: binary, path: path, udpTimeout: s.timeout().String(), sweep: "1s", more: strings.Join(more, "\n") + "\n"}
}

// netfilter is a contender of netfilter's with room for the scale.
func (s Scale) netfilter(start func(context.Context, *Lab) error) func(context.Context, *Lab) error {
	return func(ctx context.Context, l *Lab) error {
		if err := s.raiseConntrack(l); err != nil {
			return err
		}
		seconds := int(s.timeout().Seconds())
		if err := l.Host.Sysctl(fmt.Sprintf("net.netfilter.nf_conntrack_udp_timeout=%d", seconds),
			fmt.Sprintf("net.netfilter.nf_conntrack_udp_timeout_stream=%d", seconds)); err != nil {
			return err
		}
		return start(ctx, l)
	}
}

// netfilterContenders is how many of a run have their sessions in netfilter's one table, at the most.
const netfilterContenders = 4

// raiseConntrack makes room for all of netfilter's sessions of a run. The limit and the table's size are the machine's, and
// as large as each other as it comes: so are they when they are raised, that no contender's sessions lengthen another's chains.
func (s Scale) raiseConntrack(l *Lab) error {
	for _, setting := range []string{"nf_conntrack_buckets", "nf_conntrack_max"} {
		if err := raise(l, "/proc/sys/net/netfilter/"+setting, netfilterContenders*s.Sessions); err != nil {
			return fmt.Errorf("make room for netfilter's sessions: %w", err)
		}
	}
	return nil
}

// raise sets a number in a file to at least what is wanted, until the lab is closed.
func raise(l *Lab, file string, want int) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	was, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if was >= want {
		return nil
	}
	l.Defer("put "+file+" back", func() error { return os.WriteFile(file, text, 0o644) })
	return os.WriteFile(file, []byte(strconv.Itoa(want)), 0o644)
}

// flush ends netfilter's sessions.
func flush(ctx context.Context, l *Lab) error {
	_, err := l.Host.Run(ctx, "", "conntrack", "-F")
	return err
}

// dockerPath is Docker's without published ports. What its bridge forwards passes netfilter as a bridge's frame, too.
func dockerPath(ctx context.Context, l *Lab) error {
	if err := l.Host.Sysctl("net.bridge.bridge-nf-call-iptables=1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return topo.DockerRules(ctx, l.Host)
}

// The rules that dockerd 20.10 adds for a port that it publishes.
const published = `*filter
-A DOCKER -d %[2]s/32 ! -i docker0 -o docker0 -p %[1]s -m %[1]s --dport %[3]d -j ACCEPT
COMMIT
*nat
-A POSTROUTING -s %[2]s/32 -d %[2]s/32 -p %[1]s -m %[1]s --dport %[3]d -j MASQUERADE
-A DOCKER ! -i docker0 -p %[1]s -m %[1]s --dport %[3]d -j DNAT --to-destination %[2]s:%[3]d
COMMIT
`

func docker(ctx context.Context, l *Lab) error {
	if err := dockerPath(ctx, l); err != nil {
		return err
	}
	for _, protocol := range []string{"udp", "tcp"} {
		rules := fmt.Sprintf(published, protocol, l.Inside.Addr, ForwardedPort)
		if _, err := l.Host.Run(ctx, rules, topo.Tables(l.Family)+"-restore", "--noflush"); err != nil {
			return err
		}
	}
	return nil
}

// dockerProxy starts what dockerd starts for each port that it publishes.
func dockerProxy(ctx context.Context, l *Lab) error {
	if err := dockerPath(ctx, l); err != nil {
		return err
	}
	for _, protocol := range []string{"udp", "tcp"} {
		if err := l.startProxy(protocol); err != nil {
			return fmt.Errorf("docker-proxy of %s: %w", protocol, err)
		}
	}
	return nil
}

// startProxy waits for what the proxy says by descriptor 3: "0", or "1" and why not.
func (l *Lab) startProxy(protocol string) error {
	port := strconv.Itoa(ForwardedPort)
	cmd := l.Host.Command(context.Background(), "docker-proxy", "-proto", protocol, "-host-ip", "0.0.0.0", "-host-port", port,
		"-container-ip", l.Inside.Addr.String(), "-container-port", port)
	told, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer told.Close()
	cmd.ExtraFiles = []*os.File{tell}
	_, err = l.Start("docker-proxy", cmd)
	tell.Close()
	if err != nil {
		return err
	}
	line, err := bufio.NewReader(told).ReadString('\n')
	if strings.TrimSpace(line) != "0" {
		return fmt.Errorf("it says %q: %w", line, err)
	}
	return nil
}

// xdpForward has an XDP program at each of the host's interfaces.
func xdpForward(_ context.Context, l *Lab) error {
	for _, way := range []struct {
		from, to    string
		destination Port
	}{{l.InsidePort, OutsideDevice, l.Outside}, {OutsideDevice, l.InsidePort, l.Inside}} {
		from, err := l.Host.IfIndex(way.from)
		if err != nil {
			return err
		}
		to, err := l.Host.IfIndex(way.to)
		if err != nil {
			return err
		}
		err = l.Host.Do(func() error {
			hook, err := load.Forward(from, to, way.destination.Gateway, way.destination.MAC)
			if err == nil {
				l.Defer("end the XDP forwarding of "+way.from, hook.Close)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("XDP from %s to %s: %w", way.from, way.to, err)
		}
	}
	return nil
}
