// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/conenat/conenat/control/api/client"
	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/dataplane"
)

func detachCommand(e env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "detach",
		Short: "Take the dataplane away: every hook, pin, map and table",
		Long: "Take the dataplane away: every hook, pin and map, and conenat's nftables table. Packets go as they went\n" +
			"before conenat; connections that the host's NAT can go on with are handed back to it, with the same external\n" +
			"endpoints. The daemon must be stopped first.",
		Example: "  conenat detach\n  conenat detach --state-dir /sys/fs/bpf/other",
		Args:    cobra.NoArgs,
	}
	socket := socketFlag(cmd)
	stateDir := cmd.Flags().String("state-dir", config.DefaultStateDir, "`DIR` where the dataplane is pinned")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !filepath.IsAbs(*stateDir) {
			return fmt.Errorf("--state-dir %q: want an absolute path", *stateDir)
		}
		return action(func(cmd *cobra.Command, _ []string) error {
			return detach(cmd.Context(), e, *stateDir, *socket)
		})(cmd, nil)
	}
	return cmd
}

func detach(ctx context.Context, e env, stateDir, socket string) error {
	// The table goes before the hooks: a flow that began in between would leave by the table's identity mapping
	// with nobody to translate it.
	hadTable := false
	removeTable := func() (err error) {
		hadTable, err = e.table(stateDir).Remove()
		return err
	}
	var handed handover
	handBack := func() error {
		handed = e.handBack(stateDir)
		return nil // what fails ends connections, and is told: the rest of detach is wanted all the same
	}
	report, err := e.purge(stateDir, handBack, removeTable)
	if errors.Is(err, dataplane.ErrInUse) {
		return fmt.Errorf("detach %s: %w: stop the daemon%s first", stateDir, dataplane.ErrInUse, daemonPID(ctx, stateDir, socket))
	}
	found := !errors.Is(err, dataplane.ErrNotFound)
	if err != nil && found {
		return err
	}
	if !found {
		if err := removeTable(); err != nil {
			return err
		}
	}
	switch {
	case found:
		fmt.Fprintf(e.stdout, "detached: %d interfaces and %d pins\n", report.Links, report.Pins)
		if text := handed.String(); text != "" {
			fmt.Fprintln(e.stdout, text)
		}
	case hadTable:
		fmt.Fprintln(e.stdout, "detached: a left-over nftables table")
	default:
		fmt.Fprintln(e.stdout, "nothing to detach")
	}
	return nil
}

// daemonPID is " (pid 42)", if the daemon behind the socket is the one of the state directory.
func daemonPID(ctx context.Context, stateDir, socket string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	list, err := client.New(socket).Status(ctx)
	if err != nil || len(list) != 1 || list[0].StateDir != filepath.Clean(stateDir) {
		return ""
	}
	return fmt.Sprintf(" (pid %d)", list[0].PID)
}
