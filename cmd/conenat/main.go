// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/conntrack"
	"github.com/conenat/conenat/control/daemon"
	"github.com/conenat/conenat/control/docker"
	"github.com/conenat/conenat/control/exceptions"
	"github.com/conenat/conenat/control/firewall"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/control/reconcile"
	"github.com/conenat/conenat/dataplane"
)

// env is the world that a command runs in, so that a test can give it another one.
type env struct {
	args           []string
	stdout, stderr io.Writer

	open  func(dataplane.Options) (daemon.Dataplane, error)
	purge func(stateDir string, before ...func() error) (dataplane.RemoveReport, error)
	table func(stateDir string) daemon.Exceptions
	host  func() daemon.Host

	docker    func(mapping, filtering [3]dataplane.Behavior) (daemon.Docker, error)
	firewall  func() daemon.Firewall
	conntrack reconcile.Conntrack // nil: none
	pinned    func(stateDir string) (pinned, error)
}

// netfilter is conntrack of the network namespace that the process runs in.
type netfilter struct{}

func (netfilter) List() ([]conntrack.Flow, error)     { return conntrack.List() }
func (netfilter) Forget(flows []conntrack.Flow) error { return conntrack.Forget(flows) }
func (netfilter) Replace(flows []conntrack.Flow) (int, error) {
	return conntrack.Replace(flows)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, env{
		args: os.Args[1:], stdout: os.Stdout, stderr: os.Stderr,
		open: func(o dataplane.Options) (daemon.Dataplane, error) {
			dp, err := dataplane.Open(o)
			if err != nil {
				return nil, err // not dp: a nil pointer in an interface is not nil
			}
			return dp, nil
		},
		purge: dataplane.Remove,
		table: func(stateDir string) daemon.Exceptions { return exceptions.New(stateDir) },
		host:  func() daemon.Host { return hostnet.New() },
		docker: func(mapping, filtering [3]dataplane.Behavior) (daemon.Docker, error) {
			return docker.New(docker.WithMapping(mapping), docker.WithFiltering(filtering))
		},
		firewall:  func() daemon.Firewall { return firewall.New() },
		conntrack: netfilter{},
		pinned: func(stateDir string) (pinned, error) {
			p, err := dataplane.OpenPinned(stateDir)
			if err != nil {
				return nil, err
			}
			return p, nil
		},
	})
	stop()
	os.Exit(code)
}

// The exit codes of the contract.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// failure marks an error of a command that was used rightly. All others, cobra's among them, are wrong usage.
type failure struct{ err error }

func (f failure) Error() string { return f.err.Error() }
func (f failure) Unwrap() error { return f.err }

func execute(ctx context.Context, e env) int {
	root := rootCommand(e)
	root.SetArgs(e.args)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	command, err := root.ExecuteContextC(ctx)
	var failed failure
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &failed):
		fmt.Fprintf(e.stderr, "conenat: %v\n", err)
		return exitFailed
	}
	fmt.Fprintf(e.stderr, "conenat: %v\nSee '%s --help'.\n", err, command.CommandPath())
	return exitUsage
}

// action makes a command's error a failure.
func action(run func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := run(cmd, args); err != nil {
			return failure{err}
		}
		return nil
	}
}

func rootCommand(e env) *cobra.Command {
	root := &cobra.Command{
		Use:   "conenat",
		Short: "NAT of container networks in eBPF: one external endpoint for every peer",
		Example: "  conenat run --inside docker0\n" +
			"  conenat bindings\n" +
			"  conenat events --follow",
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddCommand(runCommand(e), statusCommand(e), bindingsCommand(e), sessionsCommand(e), networksCommand(e),
		eventsCommand(e), forwardCommand(e), detachCommand(e), versionCommand(e),
		checkCommand(e), stunServerCommand(e))
	root.AddCommand(laterCommands()...)
	return root
}

func socketFlag(cmd *cobra.Command) *string {
	return cmd.PersistentFlags().String("socket", config.DefaultSocket, "the daemon's unix socket")
}
