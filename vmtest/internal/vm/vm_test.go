// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/vmtest/internal/wire"
)

func TestOutcome(t *testing.T) {
	for name, test := range map[string]struct {
		seen seen
		code int
		want string
	}{
		"exited":              {seen{command: true, exited: true, status: 3}, 3, "exit status 3"},
		"passed":              {seen{command: true, exited: true}, 0, "exit status 0"},
		"hung_at_poweroff":    {seen{command: true, exited: true, status: 3, expired: "more than 1m"}, 3, "exit status 3"},
		"panic":               {seen{command: true, panic: "Kernel panic - not syncing: x"}, CodePanicked, "the kernel panicked: Kernel panic - not syncing: x"},
		"panic_at_boot":       {seen{panic: "P", qemu: "q"}, CodePanicked, "the kernel panicked: P"},
		"panic_after_exit":    {seen{command: true, exited: true, panic: "P"}, CodePanicked, "the kernel panicked: P"},
		"timeout":             {seen{command: true, expired: "more than 1m"}, CodeTimedOut, "the command took too long: more than 1m"},
		"boot_timeout":        {seen{userspace: true, expired: "nothing after 1m"}, CodeNeverReached, "the kernel never reached the command: nothing after 1m"},
		"guest_gave_up":       {seen{userspace: true, failed: "load module x"}, CodeNeverReached, "the kernel never reached the command: load module x"},
		"qemu_refused":        {seen{qemu: "bad option"}, CodeNeverReached, "the kernel never reached the command: bad option"},
		"vanished":            {seen{command: true, qemu: "killed"}, CodeVanished, "the machine ended before the command did: killed"},
		"vanished_in_silence": {seen{command: true}, CodeVanished, "the machine ended before the command did"},
		"console_full":        {seen{command: true, consoleFull: true, expired: "more than 5 bytes"}, CodeConsoleFull, "the console is full: more than 5 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			got := test.seen.outcome()
			if got.Code() != test.code || got.String() != test.want {
				t.Errorf("%d, %q, want %d, %q", got.Code(), got, test.code, test.want)
			}
		})
	}
}

type fullDisk struct{}

var errDisk = errors.New("no space left on device")

func (fullDisk) Write([]byte) (int, error) { return 0, errDisk }

func TestConsole(t *testing.T) {
	var file bytes.Buffer
	c := console{file: &file, limit: 200}
	write := func(text string, wantPanic, wantFull bool) {
		t.Helper()
		panicked, full, err := c.write([]byte(text))
		if panicked != wantPanic || full != wantFull || err != nil {
			t.Errorf("%q: panic %v, full %v, error %v", text, panicked, full, err)
		}
	}
	write("one\r\ntwo", false, false)
	write("\n[1.0] Kernel panic - not syn", false, false)
	write("cing: Fatal exception\nthree\n", true, false)
	write("Kernel panic - not syncing: again\nfour", false, false)
	want := []string{"one", "two", "[1.0] Kernel panic - not syncing: Fatal exception", "three", "Kernel panic - not syncing: again", "four"}
	if diff := cmp.Diff(want, c.lines()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	if want := "Kernel panic - not syncing: Fatal exception"; c.panic != want {
		t.Errorf("panic %q, want %q", c.panic, want)
	}
	write(strings.Repeat("x", 200), false, true)
	if strings.Contains(file.String(), "xx") {
		t.Error("more than the limit is in the file")
	}
	c = console{file: fullDisk{}, limit: 200}
	if _, _, err := c.write([]byte("x")); !errors.Is(err, errDisk) {
		t.Errorf("on a full disk: error %v", err)
	}
}

func TestConsoleKeepsTheLastLines(t *testing.T) {
	c := console{file: &bytes.Buffer{}, limit: 1 << 20}
	for i := range 100 {
		if _, _, err := c.write(fmt.Appendf(nil, "%d\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	got := c.lines()
	if len(got) != keptLines || got[0] != "60" || got[keptLines-1] != "99" {
		t.Errorf("%q", got)
	}
}

func TestArgs(t *testing.T) {
	args := Machine{Image: "i", Initramfs: "r", Accel: TCG, CPUs: 1, MemoryMB: 512, Append: "quiet",
		Wires: []wire.Spec{{Model: "igb", Queues: 1}}, QEMU: []string{"-s"}}.args()
	for _, want := range [][]string{
		{"-accel", "tcg,thread=multi"}, {"-smp", "1"}, {"-m", "512M"}, {"-kernel", "i"}, {"-initrd", "r"},
		{"-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"},
		{"-chardev", "file,id=console,path=/dev/fd/3,append=on"},
		{"-chardev", "file,id=stderr,path=/dev/fd/6,append=on"},
		{"-netdev", "tap,id=wire0a,fds=7"}, {"-netdev", "tap,id=wire0b,fds=8"},
		{"-append", "console=ttyS0 rdinit=/init panic=-1 oops=panic nokaslr mitigations=off quiet"},
	} {
		at := slices.IndexFunc(args, func(a string) bool { return a == want[1] })
		if at < 1 || args[at-1] != want[0] {
			t.Errorf("no %q in %q", want, args)
		}
	}
	if args[len(args)-1] != "-s" {
		t.Errorf("the last argument is %q, not the one that was added", args[len(args)-1])
	}
}

func TestArgsOfCountedInstructions(t *testing.T) {
	line := strings.Join(Machine{Accel: ICount, CPUs: 1, QEMU: []string{"-cpu", "max"}}.args(), " ")
	for _, want := range []string{"-accel tcg,thread=single -cpu Nehalem-v1", "clocksource=tsc tsc=reliable", "-icount shift=0,sleep=on -cpu max"} {
		if !strings.Contains(line, want) {
			t.Errorf("no %q in %q", want, line)
		}
	}
}
