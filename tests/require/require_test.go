// SPDX-License-Identifier: Apache-2.0

package require

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// recorder is a test that would be skipped or fail.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Skipf(format string, args ...any)  { r.skipped = fmt.Sprintf(format, args...) }
func (r *recorder) Fatalf(format string, args ...any) { r.failed = fmt.Sprintf(format, args...) }

func TestMissing(t *testing.T) {
	for name, tt := range map[string]struct {
		set  string // the environment's variable
		want recorder
	}{
		"AnywhereElse": {"", recorder{skipped: "needs root"}},
		"CI":           {"CI", recorder{failed: "needs root, and CI is set: here it must not be missing"}},
		"VM":           {"VMTEST_KERNEL", recorder{failed: "needs root, and VMTEST_KERNEL is set: here it must not be missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := recorder{TB: t}
			missing(&got, func(name string) string {
				if name == tt.set {
					return "yes"
				}
				return ""
			}, "needs root")
			if got.skipped != tt.want.skipped || got.failed != tt.want.failed {
				t.Errorf("skipped %q, failed %q", got.skipped, got.failed)
			}
		})
	}
}

func TestInstalled(t *testing.T) {
	got := recorder{TB: t}
	Installed(&got, "a program that nobody has")
	if got.skipped != "" || got.failed != "needs the program a program that nobody has: run .ci/install-packages test" {
		t.Errorf("skipped %q, failed %q", got.skipped, got.failed)
	}
	got = recorder{TB: t}
	Installed(&got, "go")
	if got.skipped+got.failed != "" {
		t.Errorf("skipped %q, failed %q", got.skipped, got.failed)
	}
}

func TestJudge(t *testing.T) {
	feature := Feature{Name: "bonds", Since: Version{6, 6}, Config: []string{"CONFIG_BONDING", "CONFIG_NET"}}
	const answer = `needs bonds, which Linux 6.12.1 answers with "not supported"`
	for name, tt := range map[string]struct {
		kernel kernel
		skip   bool
		why    string
	}{
		"TooOld": {kernel{version: Version{6, 1}, configFile: "/c", config: map[string]string{"CONFIG_BONDING": "y", "CONFIG_NET": "y"}},
			true, answer + ": it came with 6.6"},
		"NotBuilt": {kernel{version: Version{6, 12}, configFile: "/c", config: map[string]string{"CONFIG_NET": "y"}, complete: "CI is set"},
			true, answer + ": /c says that CONFIG_BONDING is not set"},
		"OneOfTwoNotBuilt": {kernel{version: Version{6, 12}, configFile: "/c", config: map[string]string{"CONFIG_BONDING": "m"}},
			true, answer + ": /c says that CONFIG_NET is not set"},
		"Broken": {kernel{version: Version{6, 6}, configFile: "/c", config: map[string]string{"CONFIG_BONDING": "m", "CONFIG_NET": "y"}},
			false, answer + ", but it should have it: /c says CONFIG_BONDING=m, CONFIG_NET=y"},
		"Unknown": {kernel{version: Version{6, 12}},
			true, answer + "; it tells no configuration that could say whether it should have it"},
		"UnknownInCI": {kernel{version: Version{6, 12}, complete: "CI is set"},
			false, answer + "; it tells no configuration, and CI is set: here it must not be missing"},
		"TooOldInCI": {kernel{version: Version{5, 10}, complete: "CI is set"}, true, answer + ": it came with 6.6"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.kernel.release = "6.12.1"
			skip, why := tt.kernel.judge(feature, errors.New("not supported"))
			if skip != tt.skip || why != tt.why {
				t.Errorf("skip %v: %s\nwant %v: %s", skip, why, tt.skip, tt.why)
			}
		})
	}
}

func TestParseVersion(t *testing.T) {
	for release, want := range map[string]Version{
		"6.1.0-56-amd64": {6, 1}, "6.12.117+deb12-amd64": {6, 12}, "7.2-rc1": {7, 2}, "linux": {}, "6": {6, 0},
	} {
		got, err := parseVersion(release)
		if got != want || (err != nil) != (want.Minor == 0) {
			t.Errorf("%s: %v, %v", release, got, err)
		}
	}
	if v := (Version{6, 1}); !v.Before(Version{6, 6}) || !v.Before(Version{7, 0}) || v.Before(v) || v.Before(Version{5, 10}) {
		t.Error("versions are not in order")
	}
}

func TestFindConfig(t *testing.T) {
	plain := []byte("# Linux 6.1\nCONFIG_BONDING=m\n# CONFIG_VLAN_8021Q is not set\nCONFIG_LOCALVERSION=\"-a=b\"\nCONFIG_NET=y\n")
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	if _, err := w.Write(plain); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	config := map[string]string{"CONFIG_BONDING": "m", "CONFIG_LOCALVERSION": `"-a=b"`, "CONFIG_NET": "y"}
	for name, tt := range map[string]struct {
		root   fstest.MapFS
		file   string
		config map[string]string
		err    bool
	}{
		"Nowhere":      {fstest.MapFS{"boot/config-6.2": {Data: plain}}, "", nil, false},
		"Modules":      {fstest.MapFS{"lib/modules/6.1/config": {Data: plain}, "boot/config-6.1": {}}, "/lib/modules/6.1/config", config, false},
		"Boot":         {fstest.MapFS{"boot/config-6.1": {Data: plain}, "proc/config.gz": {}}, "/boot/config-6.1", config, false},
		"Proc":         {fstest.MapFS{"proc/config.gz": {Data: zipped.Bytes()}}, "/proc/config.gz", config, false},
		"Truncated":    {fstest.MapFS{"proc/config.gz": {Data: zipped.Bytes()[:zipped.Len()-10]}}, "", nil, true},
		"SetsNothing":  {fstest.MapFS{"boot/config-6.1": {Data: []byte("# CONFIG_NET is not set\n")}}, "", nil, true},
		"IsADirectory": {fstest.MapFS{"boot/config-6.1/a": {}}, "", nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			file, got, err := findConfig(tt.root, "6.1")
			if file != tt.file || (err != nil) != tt.err {
				t.Errorf("file %q, %v", file, err)
			}
			if diff := cmp.Diff(tt.config, got); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
}

// TestProbes: each feature's probe says what this kernel's configuration says.
func TestProbes(t *testing.T) {
	Root(t)
	k, err := thisKernel()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []Feature{Bonding, VLAN} {
		err := f.Probe()
		if err == nil {
			continue
		}
		if skip, why := k.judge(f, err); !skip {
			t.Error(why)
		}
	}
}

func TestKernel(t *testing.T) {
	Root(t)
	there := Feature{Name: "that is there", Probe: func() error { return nil }}
	future := Feature{Name: "of the future", Since: Version{99, 0}, Probe: func() error { return errors.New("no") }}
	broken := Feature{Name: "that is broken", Probe: func() error { return errors.New("no") }}
	got := recorder{TB: t}
	if Kernel(&got, there); got.skipped+got.failed != "" {
		t.Errorf("skipped %q, failed %q", got.skipped, got.failed)
	}
	if Kernel(&got, there, future); got.skipped == "" || got.failed != "" {
		t.Errorf("skipped %q, failed %q", got.skipped, got.failed)
	}
	got = recorder{TB: t}
	k, err := thisKernel()
	if err != nil {
		t.Fatal(err)
	}
	if k.configFile == "" {
		t.Logf("no configuration, so nothing says that a feature must be there")
		return
	}
	if Kernel(&got, broken); got.failed == "" {
		t.Errorf("not failed, but skipped: %q", got.skipped)
	}
}
