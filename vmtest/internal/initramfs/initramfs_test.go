// SPDX-License-Identifier: Apache-2.0

package initramfs

import (
	"bytes"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/vmtest/internal/kernel"
)

// TestArchive has busybox's cpio list and unpack what was written.
func TestArchive(t *testing.T) {
	var b bytes.Buffer
	a := NewArchive(&b)
	a.Dir("dir")
	a.File("dir/file", 0o640, []byte("content"))
	a.File("dir/empty", 0o755, nil)
	a.Symlink("dir/link", "file")
	for _, n := range []int{1, 2, 3, 4} { // each length of padding
		a.File("dir/"+strings.Repeat("n", n), 0o644, bytes.Repeat([]byte("x"), n))
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("busybox", "sh", "-c", "cpio -i -v -H newc && cd dir && stat -c '%A %s %N' * && cat file nnn")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(b.Bytes())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("busybox cpio: %v: %s", err, out)
	}
	want := `dir
dir/file
dir/empty
dir/link
dir/n
dir/nn
dir/nnn
dir/nnnn
3 blocks
-rwxr-xr-x 0 empty
-rw-r----- 7 file
lrwxrwxrwx 4 'link' -> 'file'
-rw-r--r-- 1 n
-rw-r--r-- 2 nn
-rw-r--r-- 3 nnn
-rw-r--r-- 4 nnnn
contentxxx`
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

type failing struct{ after int }

var errFull = errors.New("no space left")

func (f *failing) Write(b []byte) (int, error) {
	if f.after -= len(b); f.after < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestArchiveKeepsTheFirstError(t *testing.T) {
	for _, after := range []int{0, 117, 200, 300} {
		a := NewArchive(&failing{after})
		a.File("name", 0o644, make([]byte, 100))
		a.Dir("dir")
		if err := a.Close(); !errors.Is(err, errFull) {
			t.Errorf("after %d bytes: error %v", after, err)
		}
	}
}

// TestScript runs the script that becomes the command, with what a shell might take for its own.
func TestScript(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "with 'quotes' $HOME")
	if out, err := exec.Command("mkdir", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c := Command{
		Args: []string{"sh", "-c", `pwd; printf '<%s>' "$@" "$WORD"; exit 9`, "", "a b", "", `'"$x` + "`\n*"},
		Dir:  dir, Env: []string{"WORD=it's = $this"},
	}
	out, err := exec.Command("busybox", "sh", "-c", c.script()).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 9 {
		t.Errorf("error %v, want exit status 9", err)
	}
	want := dir + "\n" + `<a b><><'"$x` + "`\n*" + `><it's = $this>`
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestWrite has the scripts parsed by the shell that runs them, and looks for the modules in their order.
func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "initramfs")
	modules := []kernel.Module{{Name: "b", Data: []byte("B")}, {Name: "a", Data: []byte("A")}}
	err := Write(path, modules, Command{Args: []string{"true"}, Dir: "/", ModulesDir: "/m"})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("busybox", "sh", "-ec", `cd "${0%/*}" && mkdir x && cd x && cpio -i -H newc <"$0" 2>/dev/null
		for s in init vmtest/*.sh; do busybox sh -n $s; done; echo modules/* $(cat modules/*) $(cat vmtest/modules-dir)
		for a in bin/*; do [ -x $a ] || echo $a is no applet; done; rm -r ../x`, path).CombinedOutput()
	if err != nil || string(out) != "modules/000-b.ko modules/001-a.ko BA /m\n" {
		t.Errorf("%v: %s", err, out)
	}
}
