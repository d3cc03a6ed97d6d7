// SPDX-License-Identifier: Apache-2.0

package initramfs

import (
	"bufio"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/conenat/conenat/vmtest/internal/kernel"
)

// What the guest writes to its first port: a word on a line, and what belongs to it. PortShare and the order of the
// ports are init.sh's and guest.sh's too.
const (
	SaysUserspace = "userspace" // init.sh runs
	SaysCommand   = "command"   // the command is about to run
	SaysFailed    = "failed"    // and why: the command will not be reached
	SaysExit      = "exit"      // and the command's exit status, 0-255

	Share = "host" // mount tag of the host's root
)

// ProbeOption makes init.sh switch off as soon as it runs, when the kernel command line has it.
const ProbeOption = "vmtest.probe"

//go:embed init.sh
var initScript []byte

//go:embed guest.sh
var guestScript []byte

// Command is what the guest runs.
type Command struct {
	Args       []string
	Dir        string   // of the host
	Env        []string // "NAME=value"
	ModulesDir string   // lib/modules/RELEASE, a path of the host
}

// Applets that init.sh calls, by busybox.
var applets = strings.Fields("sh mount mkdir insmod cat cp ls switch_root usleep poweroff echo")

// Write makes the archive in a file.
func Write(path string, modules []kernel.Module, c Command) (err error) {
	busybox, err := readBusybox()
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	a := NewArchive(w)
	for _, d := range []string{"bin", "dev", "proc", "sys", "lower", "rw", "root", "modules", "vmtest"} {
		a.Dir(d)
	}
	a.File("bin/busybox", 0o755, busybox)
	for _, name := range applets {
		a.Symlink("bin/"+name, "busybox")
	}
	for i, m := range modules {
		a.File(fmt.Sprintf("modules/%03d-%s.ko", i, m.Name), 0o644, m.Data)
	}
	a.File("init", 0o755, initScript)
	a.File("vmtest/guest.sh", 0o755, guestScript)
	a.File("vmtest/command.sh", 0o755, []byte(c.script()))
	a.File("vmtest/modules-dir", 0o644, []byte(c.ModulesDir+"\n"))
	if err := a.Close(); err != nil {
		return fmt.Errorf("write the initramfs: %w", err)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the initramfs: %w", err)
	}
	return f.Close()
}

func readBusybox() ([]byte, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("find busybox: install busybox-static: %w", err)
	}
	return os.ReadFile(path)
}

// script is a shell script that becomes the command.
func (c Command) script() string {
	var s strings.Builder
	for _, e := range c.Env {
		name, value, _ := strings.Cut(e, "=")
		fmt.Fprintf(&s, "export %s=%s\n", name, quote(value))
	}
	fmt.Fprintf(&s, "cd %s || exit 127\nexec", quote(c.Dir))
	for _, arg := range c.Args {
		s.WriteString(" " + quote(arg))
	}
	return s.String() + "\n"
}

// quote makes the text one word of a shell's.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
