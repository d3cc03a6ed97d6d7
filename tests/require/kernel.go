// SPDX-License-Identifier: Apache-2.0

package require

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Feature is something that a kernel may be without.
type Feature struct {
	Name   string
	Since  Version      // the first kernel that has it; zero: every one that tests may meet
	Config []string     // what it must be built with, "CONFIG_BONDING"; all of them
	Probe  func() error // tries the feature, as root, and leaves nothing behind; nil if the kernel has it
}

// Version is a kernel's, major and minor.
type Version struct{ Major, Minor int }

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Before says whether v is older than w.
func (v Version) Before(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

// Kernel skips a test that needs features which this kernel says it has not. It fails without them where the kernel says
// that it has them.
func Kernel(t TB, features ...Feature) {
	t.Helper()
	Root(t)
	for _, f := range features {
		err := f.Probe()
		if err == nil {
			continue
		}
		k, kernelErr := thisKernel()
		if kernelErr != nil {
			t.Fatalf("%v", kernelErr)
		}
		if skip, why := k.judge(f, err); skip {
			t.Skipf("%s", why)
		} else {
			t.Fatalf("%s", why)
		}
	}
}

// Running is the kernel's version, for a test that expects something else of an old one.
func Running(t TB) Version {
	t.Helper()
	k, err := thisKernel()
	if err != nil {
		t.Fatalf("%v", err)
	}
	return k.version
}

// kernel is what it says of itself.
type kernel struct {
	release    string
	version    Version
	configFile string            // empty: none can be read
	config     map[string]string // "y", "m" or a value by name; those that are not set are missing
	complete   string            // why this machine must have everything, if it must
}

// judge decides what becomes of a test whose feature a probe did not find.
func (k kernel) judge(f Feature, probe error) (skip bool, why string) {
	what := fmt.Sprintf("needs %s, which Linux %s answers with %q", f.Name, k.release, probe)
	if k.version.Before(f.Since) {
		return true, fmt.Sprintf("%s: it came with %s", what, f.Since)
	}
	if k.configFile == "" && k.complete != "" {
		return false, fmt.Sprintf("%s; it tells no configuration, and %s: here it must not be missing", what, k.complete)
	}
	if k.configFile == "" {
		return true, what + "; it tells no configuration that could say whether it should have it"
	}
	var built []string
	for _, symbol := range f.Config {
		value := k.config[symbol]
		if value != "y" && value != "m" {
			return true, fmt.Sprintf("%s: %s says that %s is not set", what, k.configFile, symbol)
		}
		built = append(built, symbol+"="+value)
	}
	if len(built) == 0 {
		return false, what + ", but it should have it: no configuration leaves it out"
	}
	return false, fmt.Sprintf("%s, but it should have it: %s says %s", what, k.configFile, strings.Join(built, ", "))
}

func thisKernel() (k kernel, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return k, fmt.Errorf("read the kernel's release: %w", err)
	}
	k.release, k.complete = unix.ByteSliceToString(u.Release[:]), complete(os.Getenv)
	if k.version, err = parseVersion(k.release); err != nil {
		return k, err
	}
	k.configFile, k.config, err = findConfig(os.DirFS("/"), k.release)
	return k, err
}

func parseVersion(release string) (v Version, err error) {
	if _, err := fmt.Sscanf(release, "%d.%d", &v.Major, &v.Minor); err != nil {
		return v, fmt.Errorf("kernel release %q has no version: %w", release, err)
	}
	return v, nil
}

// findConfig reads a kernel's configuration from the first file that has it. No file is no error.
func findConfig(root fs.FS, release string) (file string, config map[string]string, err error) {
	for _, name := range []string{"lib/modules/" + release + "/config", "boot/config-" + release, "proc/config.gz"} {
		content, err := fs.ReadFile(root, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			config, err = parseConfig(content)
		}
		if err != nil {
			return "", nil, fmt.Errorf("read the kernel's configuration /%s: %w", name, err)
		}
		return "/" + name, config, nil
	}
	return "", nil, nil
}

// parseConfig reads the lines CONFIG_NAME=value, compressed or not.
func parseConfig(content []byte) (map[string]string, error) {
	var text io.Reader = bytes.NewReader(content)
	if bytes.HasPrefix(content, []byte{0x1f, 0x8b}) { // RFC 1952, 2.3.1
		unzipped, err := gzip.NewReader(text)
		if err != nil {
			return nil, err
		}
		text = unzipped
	}
	config := map[string]string{}
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), "=")
		if ok && strings.HasPrefix(name, "CONFIG_") {
			config[name] = value
		}
	}
	if lines.Err() == nil && len(config) == 0 {
		return nil, errors.New("it sets nothing")
	}
	return config, lines.Err()
}
