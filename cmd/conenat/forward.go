// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/control/api/client"
)

func forwardCommand(e env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forward",
		Short: "Add, list and remove port forwards (static bindings)",
		Example: "  conenat forward add 198.51.100.1:8080 172.17.0.2:80\n" +
			"  conenat forward list\n" +
			"  conenat forward remove tcp/198.51.100.1:8080",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("forward needs a command: add, list or remove")
		},
	}
	socket := socketFlag(cmd)
	cmd.AddCommand(forwardAdd(e, socket), forwardList(e, socket), forwardRemove(e, socket))
	return cmd
}

func forwardAdd(e env, socket *string) *cobra.Command {
	var r api.ForwardRequest
	cmd := &cobra.Command{
		Use:   "add EXTERNAL:PORT INTERNAL:PORT",
		Short: "Forward an external endpoint to an internal one",
		Example: "  conenat forward add 198.51.100.1:8080 172.17.0.2:80\n" +
			"  conenat forward add --protocol udp --network docker0 198.51.100.1:53 172.17.0.3:5353\n" +
			"  conenat forward add '[2001:db8::1]:8080' '[fd00::2]:80'",
		Args: cobra.ExactArgs(2),
	}
	cmd.Flags().StringVar(&r.Protocol, "protocol", "tcp", "`tcp|udp`")
	cmd.Flags().StringVar(&r.Network, "network", "", "inside network `NET` (default: the one whose prefix holds INTERNAL)")
	cmd.Flags().BoolVar(&r.OverHostSocket, "over-host-socket", false, "forward although a socket of the host listens on EXTERNAL:PORT")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r.External, r.Internal = args[0], args[1]
		if _, err := r.Forward(); err != nil {
			return err
		}
		f, err := client.New(*socket).AddForward(cmd.Context(), r)
		if err != nil {
			return failure{err}
		}
		fmt.Fprintf(e.stdout, "%s\n", f.ID)
		return nil
	}
	return cmd
}

func forwardList(e env, socket *string) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the forwards", Example: "  conenat forward list\n  conenat forward list -o json", Args: cobra.NoArgs}
	listing[api.Forward]{get: (*client.Client).Forwards, table: forwardsTable}.run(e, cmd, socket)
	return cmd
}

func forwardsTable(w io.Writer, list []api.Forward) {
	fmt.Fprintln(w, "ID\tNETWORK\tINTERNAL\tSTATE")
	for _, f := range list {
		state := "active"
		if f.Published {
			state = "active, published by Docker"
		}
		if !f.Active {
			state = "waiting: " + f.Problem
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.ID, dash(f.Network), f.Internal, state)
	}
}

func forwardRemove(e env, socket *string) *cobra.Command {
	return &cobra.Command{
		Use:     "remove ID",
		Short:   "Remove a forward, and end its sessions",
		Example: "  conenat forward remove tcp/198.51.100.1:8080",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, _, err := api.ParseForwardID(args[0]); err != nil {
				return err
			}
			if err := client.New(*socket).RemoveForward(cmd.Context(), args[0]); err != nil {
				return failure{err}
			}
			return nil
		},
	}
}
