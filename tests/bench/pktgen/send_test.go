// SPDX-License-Identifier: Apache-2.0

package pktgen

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// run runs send with files in place of pktgen's, which keep what they are told.
func run(t *testing.T, env []string, args ...string) (dir, out string, err error) {
	t.Helper()
	dir = t.TempDir()
	for _, device := range []string{"eth1@0", "eth1@1"} {
		if err := os.WriteFile(filepath.Join(dir, device), []byte("Result: OK: 10(c10+d0) usec, 9 (60byte,0frags)\n  900pps 0Mb/sec\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("./send", args...)
	cmd.Env = append(append(os.Environ(), "PKTGEN_DIR="+dir, "SECONDS_LONG=0"), env...)
	text, err := cmd.CombinedOutput()
	return dir, string(text), err
}

func told(t *testing.T, dir, file string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

func TestSend(t *testing.T) {
	dir, out, err := run(t, []string{"THREADS=2", "SIZE=1514", "RATE=5000"}, "eth1", "02:00:00:00:00:01", "172.17.0.2", "10.0.0.1", "10.0.0.98")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if strings.Count(out, "900pps") != 2 {
		t.Errorf("the results of both threads are not in:\n%s", out)
	}
	if diff := cmp.Diff([]string{"rem_device_all", "add_device eth1@1"}, told(t, dir, "kpktgend_1")); diff != "" {
		t.Errorf("thread 1 (-want +got):\n%s", diff)
	}
	want := []string{"queue_map_min 1", "queue_map_max 1", "count 0", "clone_skb 0", "burst 1", "pkt_size 1514", "delay 0", "ratep 5000",
		"dst_mac 02:00:00:00:00:01", "flag UDPCSUM", "src_min 172.17.0.2", "src_max 172.17.0.2", "dst_min 10.0.0.1", "dst_max 10.0.0.98",
		"flag IPDST_RND", "udp_src_min 20000", "udp_src_max 21000", "flag UDPSRC_RND", "udp_dst_min 3478", "udp_dst_max 3478"}
	if diff := cmp.Diff(want, told(t, dir, "eth1@1")[2:]); diff != "" {
		t.Errorf("device (-want +got):\n%s", diff)
	}
	if got := told(t, dir, "pgctrl"); got[0] != "reset" || len(got) != 3 {
		t.Errorf("pgctrl is told %q", got)
	}
}

// TestInbound: the local end, with many ports, is the destination then.
func TestInbound(t *testing.T) {
	dir, out, err := run(t, []string{"INBOUND=1", "PORTS=1"}, "eth1", "02:00:00:00:00:01", "198.51.100.1", "10.0.0.1")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := strings.Join(told(t, dir, "eth1@0"), "\n")
	for _, want := range []string{"dst 198.51.100.1", "src_min 10.0.0.1", "src_max 10.0.0.1", "udp_dst_min 20000\nudp_dst_max 20000", "udp_src_min 3478"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "RND") {
		t.Errorf("one session, and something is random:\n%s", got)
	}
}

func TestRefused(t *testing.T) {
	for what, env := range map[string]string{"SIZE 59": "SIZE=59", "PORTS 0": "PORTS=0"} {
		if _, out, err := run(t, []string{env}, "eth1", "02:00:00:00:00:01", "172.17.0.2", "10.0.0.1"); err == nil || !strings.Contains(out, what) {
			t.Errorf("%s: %v, %s", env, err, out)
		}
	}
	if _, out, err := run(t, nil, "eth1"); err == nil || !strings.Contains(out, "usage") {
		t.Errorf("%v, %s", err, out)
	}
}
