// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/conenat/conenat/control/stunserver"
)

func stunServerCommand(e env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stun-server",
		Short: "Run a STUN server for NAT behaviour discovery (RFC 5780)",
		Long: "Run a STUN server that `conenat check` and every other RFC 5780 client can ask: two addresses of this host and two\n" +
			"ports, over UDP and TCP. It needs no privilege and keeps no state. SIGTERM and Ctrl-C end it.",
		Example: "  conenat stun-server --primary 203.0.113.1 --alternate 203.0.113.2\n" +
			"  conenat stun-server --primary 203.0.113.1 --alternate 203.0.113.2 --primary-port 13478 --alternate-port 13479",
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	primary := f.String("primary", "", "address `ADDR` that clients ask")
	alternate := f.String("alternate", "", "the other address `ADDR`")
	config := stunserver.Config{}
	f.Uint16Var(&config.PrimaryPort, "primary-port", stunserver.DefaultPort, "`PORT` that clients ask")
	f.Uint16Var(&config.AlternatePort, "alternate-port", stunserver.DefaultAlternatePort, "the other `PORT`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if config.Primary, err = addressFlag("primary", *primary); err != nil {
			return err
		}
		if config.Alternate, err = addressFlag("alternate", *alternate); err != nil {
			return err
		}
		if err := config.Check(); err != nil {
			return err
		}
		config.Logger = slog.New(slog.NewTextHandler(e.stderr, nil))
		return action(func(cmd *cobra.Command, _ []string) error {
			server, err := stunserver.Listen(config)
			if err != nil {
				return err
			}
			return server.Serve(cmd.Context())
		})(cmd, nil)
	}
	return cmd
}

func addressFlag(name, text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, fmt.Errorf("no --%s: name an address of this host", name)
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return addr, fmt.Errorf("--%s: %q is no IP address", name, text)
	}
	return addr, nil
}
