// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// layout is raised when what finish adds to a tree changes: cached trees of another layout are made anew.
const layout = "2"

// Tree is a kernel that is ready to boot.
type Tree struct {
	Release    string // `uname -r`
	Image      string // path of the uncompressed vmlinux
	ModulesDir string // path of lib/modules/RELEASE, with modules.dep
}

// Prepare returns the kernel out of the cache directory; where it is not there yet, it is downloaded with apt-get,
// checked, and unpacked. Progress gets a line before each step that takes time. Several processes may do this at
// once: one works and the others wait.
func Prepare(ctx context.Context, cache, mirror string, k Kernel, progress func(format string, args ...any)) (*Tree, error) {
	dir := filepath.Join(cache, "kernels")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()

	ready := filepath.Join(dir, k.Name+"_"+k.Version+"_"+layout)
	if _, err := os.Stat(ready); err == nil {
		return open(ready)
	}
	p := preparation{kernel: k, mirror: mirror, dir: filepath.Join(dir, "unfinished"), progress: progress}
	defer os.RemoveAll(p.dir)
	if err := p.run(ctx); err != nil {
		return nil, fmt.Errorf("prepare kernel %s: %w", k.Name, err)
	}
	if err := os.Rename(filepath.Join(p.dir, "tree"), ready); err != nil {
		return nil, fmt.Errorf("prepare kernel %s: %w", k.Name, err)
	}
	return open(ready)
}

// lock waits for its turn. The lock ends with the process.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select { // flock itself cannot be interrupted by a context
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func open(dir string) (*Tree, error) {
	found, _ := filepath.Glob(filepath.Join(dir, "lib/modules/*/modules.dep"))
	if len(found) != 1 {
		return nil, fmt.Errorf("open kernel %s: %d modules.dep files, not 1: remove the directory", dir, len(found))
	}
	modules := filepath.Dir(found[0])
	return &Tree{Release: filepath.Base(modules), Image: filepath.Join(dir, "vmlinux"), ModulesDir: modules}, nil
}

// preparation is the making of one kernel's tree, in a directory that is thrown away.
type preparation struct {
	kernel   Kernel
	mirror   string
	dir      string
	progress func(format string, args ...any)
}

func (p *preparation) run(ctx context.Context) error {
	if err := os.RemoveAll(p.dir); err != nil {
		return err
	}
	if err := p.configureApt(); err != nil {
		return err
	}
	p.progress("reading the package list of %s", p.kernel.Suite)
	if err := p.apt(ctx, "update"); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(p.kernel.Packages)) {
		if err := p.unpack(ctx, name); err != nil {
			return err
		}
	}
	return p.finish(ctx)
}

// configureApt writes a configuration that leaves the host's own, its package lists and what it has installed
// out of the matter. The declared checksum pins the package, so an expired index does no harm.
func (p *preparation) configureApt() error {
	for _, d := range []string{"state/lists/partial", "cache/archives/partial", "deb", "tree"} {
		if err := os.MkdirAll(filepath.Join(p.dir, d), 0o755); err != nil {
			return err
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		return fmt.Errorf("find Debian's keys: install debian-archive-keyring: %w", err)
	}
	archive, suite, _ := strings.Cut(p.kernel.Suite, " ")
	source := fmt.Sprintf("deb [arch=amd64 signed-by=%s] %s/%s %s main\n", keyring, p.mirror, archive, suite)
	settings := fmt.Sprintf(`Dir::State "%[1]s/state";
Dir::State::status "/dev/null";
Dir::Cache "%[1]s/cache";
Dir::Etc::sourcelist "%[1]s/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
APT::Architecture "amd64";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Acquire::Retries "3";
`, p.dir)
	if err := os.WriteFile(filepath.Join(p.dir, "sources.list"), []byte(source), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.dir, "apt.conf"), []byte(settings), 0o644)
}

func (p *preparation) apt(ctx context.Context, args ...string) error {
	return p.command(ctx, "apt-get", append([]string{"-q"}, args...)...)
}

func (p *preparation) command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = filepath.Join(p.dir, "deb")
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(p.dir, "apt.conf"), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("run %s %s: %w: %s", name, strings.Join(args, " "), err, lastLines(out, 5))
	}
	return nil
}

func lastLines(text []byte, n int) string {
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}

func (p *preparation) unpack(ctx context.Context, name string) error {
	p.progress("downloading %s %s", name, p.kernel.Version)
	if err := p.apt(ctx, "download", name+"="+p.kernel.Version); err != nil {
		return fmt.Errorf("%w\nif Debian has replaced this version, declare the newer one in kernels.yaml", err)
	}
	found, _ := filepath.Glob(filepath.Join(p.dir, "deb", name+"_*.deb"))
	if len(found) != 1 {
		return fmt.Errorf("download %s: %d files, not 1", name, len(found))
	}
	sum, err := checksum(found[0])
	if err != nil {
		return err
	}
	if want := p.kernel.Packages[name]; sum != want {
		return fmt.Errorf("check %s %s: its SHA-256 is %s, and kernels.yaml says %s", name, p.kernel.Version, sum, want)
	}
	p.progress("unpacking %s", name)
	return p.command(ctx, "dpkg-deb", "-x", found[0], filepath.Join(p.dir, "tree"))
}

func checksum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// finish adds to what the packages hold: vmlinux, and modules.dep, which Debian makes at installation. The kernel's
// configuration, boot/config-RELEASE of older packages, goes to lib/modules/RELEASE/config, where newer ones have it.
func (p *preparation) finish(ctx context.Context) error {
	tree := filepath.Join(p.dir, "tree")
	if err := mergeUsr(tree); err != nil {
		return err
	}
	image, release, err := findImage(tree)
	if err != nil {
		return err
	}
	if err := Extract(ctx, image, filepath.Join(tree, "vmlinux")); err != nil {
		return err
	}
	config := filepath.Join(tree, "lib/modules", release, "config")
	if _, err := os.Stat(config); err != nil {
		if err := os.Rename(filepath.Join(tree, "boot/config-"+release), config); err != nil {
			return fmt.Errorf("find the kernel's configuration: %w", err)
		}
	}
	return p.command(ctx, "depmod", "-b", tree, release)
}

// findImage returns the path of the compressed kernel and its release: boot/vmlinuz-RELEASE, and since Debian's 7.2
// lib/modules/RELEASE/vmlinuz.
func findImage(tree string) (path, release string, err error) {
	inBoot, _ := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	inModules, _ := filepath.Glob(filepath.Join(tree, "lib/modules/*/vmlinuz"))
	switch {
	case len(inBoot)+len(inModules) != 1:
		return "", "", fmt.Errorf("find the kernel's image: %d files boot/vmlinuz-* and lib/modules/*/vmlinuz, not 1", len(inBoot)+len(inModules))
	case len(inBoot) == 1:
		return inBoot[0], strings.TrimPrefix(filepath.Base(inBoot[0]), "vmlinuz-"), nil
	default:
		return inModules[0], filepath.Base(filepath.Dir(inModules[0])), nil
	}
}

// mergeUsr makes /usr/lib/modules of newer packages the /lib/modules of older ones.
func mergeUsr(tree string) error {
	usr := filepath.Join(tree, "usr/lib/modules")
	if _, err := os.Stat(usr); err != nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(tree, "lib"), 0o755); err != nil {
		return err
	}
	return os.Rename(usr, filepath.Join(tree, "lib/modules"))
}
