// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/control/changes"
	"github.com/conenat/conenat/tests/patience"
)

// Each kind of change that a snapshot, or the hooks, depend on is heard of.
func TestWatchHears(t *testing.T) {
	tests := []struct{ name, before, change, program string }{
		{"new_link", "", "link add d0 type bridge", "ip"},
		{"address", "", "addr add 192.0.2.1/24 dev lo", "ip"},
		{"route", "link set lo up\n", "route add 198.51.100.0/24 dev lo", "ip"},
		{"rule", "", "rule add from 172.18.0.0/16 lookup 100", "ip"},
		{"IPv6_address", "link set lo up\n", "addr add 2001:db8::1/64 dev lo", "ip"},
		{"IPv6_route", "link set lo up\n", "route add 2001:db8::/64 dev lo", "ip"},
		{"IPv6_rule", "", "rule add from fd00::/64 lookup 100", "ip -6"},
		{"forwarding", "", "-w net.ipv4.ip_forward=1", "sysctl"},
		{"IPv6_forwarding", "", "-w net.ipv6.conf.all.forwarding=1", "sysctl"},
		{"qdisc_deleted", "link add eth0 type veth peer name x0\n", "qdisc del dev eth0 clsact", "tc"},
		{"filter_deleted", "link add eth0 type veth peer name x0\n", "filter del dev eth0 ingress", "tc"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			ip(t, tt.before)
			if tt.program == "tc" {
				run(t, "tc qdisc add dev eth0 clsact")
				run(t, "tc filter add dev eth0 ingress protocol ip u32 match u32 0 0")
			}
			raw := subscribed(t, listen)
			run(t, tt.program+" "+tt.change)
			select {
			case <-raw:
			case <-time.After(patience.For(5 * time.Second)):
				t.Error("no change heard")
			}
		})
	}
}

// subscribed is a subscription in the namespace of the test's thread, which nothing has been heard of yet.
func subscribed(t *testing.T, listen changes.Listener) <-chan struct{} {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	raw, ready, ended := make(chan struct{}, 1), make(chan struct{}), make(chan error, 1)
	namespace, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer namespace.Close()
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			ended <- err
			return
		}
		ended <- listen(ctx, raw, ready)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatal(err)
	}
	return raw
}

// run runs a program in the namespace of the test's thread.
func run(t *testing.T, command string) {
	t.Helper()
	words := strings.Fields(command)
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}
