// SPDX-License-Identifier: Apache-2.0

// Command vmtest runs a command, or this repository's tests, in a virtual machine on another Linux kernel.
//
//	vmtest list
//	vmtest run  --kernel 6.12 -- COMMAND
//	vmtest test --kernel all ./bpf ./tests/prog -- -run TestLoads -v
//
// Kernels are declared in kernels.yaml; README.md says how a machine is made and what the exit codes mean.
package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/conenat/conenat/vmtest/internal/kernel"
	"github.com/conenat/conenat/vmtest/internal/runner"
	"github.com/conenat/conenat/vmtest/internal/vm"
	"github.com/conenat/conenat/vmtest/internal/wire"
)

//go:embed kernels.yaml
var kernelsFile []byte

const codeUsage = 2

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := codeUsage
	err := root(&code).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "vmtest: %v\n", err)
		code = codeUsage
	}
	os.Exit(code)
}

// root is the command line. An error is wrong usage; what a run comes to is the code.
func root(code *int) *cobra.Command {
	r := &runner.Runner{Stdout: os.Stdout, Stderr: os.Stderr}
	var name string
	var wires []string
	cmd := &cobra.Command{
		Use: "vmtest", Short: "run commands and tests in virtual machines, on other Linux kernels",
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) (err error) {
			if r.Kernels, err = kernel.Parse(kernelsFile); err != nil {
				return err
			}
			if r.Wires, err = wire.ParseAll(wires); err != nil {
				return err
			}
			r.Cache, err = runner.DefaultCache()
			return err
		},
	}
	f := cmd.PersistentFlags()
	f.StringVar(&name, "kernel", "", "the kernel's name, as `vmtest list` has it, or all")
	f.StringVar((*string)(&r.Accel), "accel", string(vm.Auto), "kvm, tcg, auto: kvm where it boots in a few seconds, or icount: tcg, 1 CPU, a nanosecond is an instruction")
	f.IntVar(&r.CPUs, "cpus", 2, "virtual CPUs")
	f.IntVar(&r.MemoryMB, "memory", 3072, "memory, in MB")
	f.DurationVar(&r.BootTimeout, "boot-timeout", 3*time.Minute, "time until the command runs")
	f.DurationVar(&r.Timeout, "timeout", 30*time.Minute, "time that the command may take")
	f.Int64Var(&r.ConsoleLimit, "console-limit", 64<<20, "bytes that the kernel may write to its console")
	f.StringArrayVar(&wires, "wire", nil, "two network cards that see each other, of this `MODEL[,queues=N]`: virtio-net-pci, e1000e, igb (repeat)")
	f.StringVar(&r.Append, "append", "", "more of the kernel's command line")
	f.StringArrayVar(&r.QEMU, "qemu", nil, "one more argument for QEMU (repeat)")
	f.StringArrayVar(&r.Env, "env", nil, "NAME=value for the command's environment (repeat)")
	cmd.AddCommand(listCommand(r, code), runCommand(r, &name, code), testCommand(r, &name, code))
	return cmd
}

func listCommand(r *runner.Runner, code *int) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "print the kernels that are declared", Args: cobra.NoArgs,
		Run: func(*cobra.Command, []string) {
			for _, k := range r.Kernels.Kernels {
				support := "supported"
				if k.Unsupported {
					support = "unsupported"
				}
				fmt.Fprintf(r.Stdout, "%s\t%s\t%s\t%s\n", k.Name, support, k.Version, k.Suite)
			}
			*code = 0
		},
	}
}

func runCommand(r *runner.Runner, name *string, code *int) *cobra.Command {
	return &cobra.Command{
		Use: "run --kernel NAME -- COMMAND [ARG]...", Short: "run a command; its exit status is vmtest's", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kernels, err := r.Kernels.Find(*name)
			if err != nil {
				return err
			}
			dir, err := os.Getwd()
			if err != nil {
				return err
			}
			*code = r.Run(cmd.Context(), kernels, runner.Command{Args: args, Dir: dir})
			return nil
		},
	}
}

func testCommand(r *runner.Runner, name *string, code *int) *cobra.Command {
	return &cobra.Command{
		Use: "test --kernel NAME PACKAGE... [-- TESTFLAG...]", Short: "build the tests of Go packages here, and run them there",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kernels, err := r.Kernels.Find(*name)
			if err != nil {
				return err
			}
			packages, flags := args, []string(nil)
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				packages, flags = args[:dash], args[dash:]
			}
			*code = r.Test(cmd.Context(), kernels, packages, flags)
			return nil
		},
	}
}
