// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the build: -ldflags "-X main.version=…".
var version string

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

func versionCommand(e env) *cobra.Command {
	cmd := &cobra.Command{Use: "version", Short: "Print the version", Example: "  conenat version", Args: cobra.NoArgs}
	output := outputFlag(cmd, "text", "json")
	cmd.RunE = action(func(*cobra.Command, []string) error {
		if output.value == "json" {
			return printJSON(e.stdout, []map[string]string{{"version": buildVersion(), "go": runtime.Version()}})
		}
		_, err := fmt.Fprintf(e.stdout, "conenat %s (%s, %s/%s)\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	})
	return cmd
}

// laterCommands are in the contract and not in this version.
func laterCommands() (out []*cobra.Command) {
	for name, short := range map[string]string{
		"lab": "NAT laboratory in network namespaces (arrives with a later version)",
	} {
		out = append(out, &cobra.Command{
			Use: name, Short: short, DisableFlagParsing: true,
			RunE: func(*cobra.Command, []string) error {
				return fmt.Errorf("conenat %s arrives with a later version", name)
			},
		})
	}
	return out
}
