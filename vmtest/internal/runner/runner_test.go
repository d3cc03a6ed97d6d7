// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/vmtest/internal/kernel"
	"github.com/conenat/conenat/vmtest/internal/vm"
)

func TestTestFlags(t *testing.T) {
	for _, test := range []struct{ flags, want string }{
		{"-v -run TestX/sub -count=1", "-test.v -test.run TestX/sub -test.count=1"},
		{"--short -test.v", "-test.short -test.v"},
		{"", ""},
	} {
		got := strings.Join(testFlags(strings.Fields(test.flags)), " ")
		if got != test.want {
			t.Errorf("%q becomes %q, want %q", test.flags, got, test.want)
		}
	}
}

// TestBuildTests runs, on the host, the script that a guest would.
func TestBuildTests(t *testing.T) {
	var said bytes.Buffer
	r := &Runner{Stderr: &said}
	dir := t.TempDir()
	script, err := r.buildTests(t.Context(), dir, []string{"../vm", "../kernel"}, []string{"-test.run", "^$"})
	if err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	out, err := shell(script)
	for _, pkg := range []string{"vm", "kernel"} {
		if want := "ok  \tgithub.com/conenat/conenat/vmtest/internal/" + pkg + "\t"; err != nil || !strings.Contains(out, want) {
			t.Errorf("error %v, no %q in %q", err, want, out)
		}
	}
	script, err = r.buildTests(t.Context(), dir, []string{"../vm", "../kernel"}, []string{"-test.nonsense"})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := shell(script); err == nil || strings.Count(out, "FAIL\t") != 2 {
		t.Errorf("two packages that fail: error %v, %q", err, out)
	}
	if _, err := r.buildTests(t.Context(), dir, []string{"../.."}, nil); err == nil {
		t.Error("a package without tests was taken")
	}
}

// TestNoKernel has a download fail, and looks at what was said and what is left.
func TestNoKernel(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("VMTEST_CACHE", cache)
	var said bytes.Buffer
	r := &Runner{Kernels: &kernel.File{Mirror: "file:///nonexistent"}, Cache: cache, Stderr: &said}
	k := kernel.Kernel{Name: "0.1", Suite: "a b", Version: "1", Packages: map[string]string{"p": ""}}
	code := r.Run(t.Context(), []kernel.Kernel{k}, Command{Args: []string{"true"}, Dir: "/"})
	if code != vm.CodePrepare || !strings.Contains(said.String(), "prepare kernel 0.1: run apt-get -q update: ") {
		t.Errorf("code %d: %s", code, said.String())
	}
	var left []string
	_ = filepath.WalkDir(cache, func(p string, d fs.DirEntry, err error) error {
		left = append(left, strings.TrimPrefix(p, cache))
		return err
	})
	if diff := cmp.Diff([]string{"", "/kernels", "/kernels/lock"}, left); diff != "" {
		t.Errorf("in the cache (-want +got):\n%s", diff)
	}
}

// TestRunDir has what killed processes left removed, and nothing else.
func TestRunDir(t *testing.T) {
	cache := t.TempDir()
	runs := filepath.Join(cache, "runs")
	const gone, alive = "2147483647", "1" // more than a PID can be
	for _, name := range []string{gone, gone + "-tests", alive, alive + "-tests", "other"} {
		if err := os.MkdirAll(filepath.Join(runs, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := session{Runner: &Runner{Cache: cache}}
	own, err := s.runDir()
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(runs, strconv.Itoa(os.Getpid())); own != want {
		t.Errorf("%s, want %s", own, want)
	}
	entries, err := os.ReadDir(runs)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, e := range entries {
		got[e.Name()] = true
	}
	if diff := cmp.Diff(map[string]bool{alive: true, alive + "-tests": true, "other": true, filepath.Base(own): true}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func shell(script string) (string, error) {
	out, err := exec.Command("busybox", "sh", script).CombinedOutput()
	return string(out), err
}
