// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/control/api/client"
)

func eventsCommand(e env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened to bindings and sessions",
		Long: "Show what happened to bindings and sessions: the history that the daemon keeps, or with --follow what\n" +
			"happens from now on, or with both --since and --follow one after the other, without a gap.\n" +
			"Replaying the whole history gives the bindings and sessions that live.",
		Example: "  conenat events --since 5m\n" +
			"  conenat events --follow --type binding.created --type binding.expired\n" +
			"  conenat events --follow --since all -o json",
		Args: cobra.NoArgs,
	}
	socket := socketFlag(cmd)
	output := outputFlag(cmd, "text", "json")
	var q client.EventQuery
	f := cmd.Flags()
	f.BoolVarP(&q.Follow, "follow", "f", false, "go on with what happens, until Ctrl-C")
	f.StringVar(&q.Since, "since", "", "how far back: a `DURATION` such as 5m, an RFC 3339 time, or all")
	f.StringArrayVar(&q.Types, "type", nil, "only events of this `TYPE`, such as binding.created; repeatable")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkQuery(q); err != nil {
			return err
		}
		err := showEvents(cmd.Context(), e.stdout, client.New(*socket), q, output.value == "json")
		if errors.Is(err, context.Canceled) { // Ctrl-C is how one stops following
			return nil
		}
		if err != nil {
			return failure{err}
		}
		return nil
	}
	return cmd
}

func checkQuery(q client.EventQuery) error {
	if q.Since != "" {
		if err := api.CheckSince(q.Since); err != nil {
			return fmt.Errorf("--since: %w", err)
		}
	}
	for _, t := range q.Types {
		if _, err := api.ParseEventType(t); err != nil {
			return fmt.Errorf("--type: %w", err)
		}
	}
	return nil
}

func showEvents(ctx context.Context, stdout io.Writer, c *client.Client, q client.EventQuery, asJSON bool) error {
	w := bufio.NewWriter(stdout)
	defer w.Flush()
	return c.Events(ctx, q, func(line []byte, ev api.Event) error {
		if asJSON {
			fmt.Fprintf(w, "%s\n", line)
		} else {
			fmt.Fprintln(w, eventText(ev))
		}
		if q.Follow {
			return w.Flush()
		}
		return nil
	})
}

const eventTime = "2006-01-02T15:04:05.000000Z07:00"

// eventText is one line for people.
func eventText(ev api.Event) string {
	head := fmt.Sprintf("%s  %-16s", ev.Time.Local().Format(eventTime), ev.Type)
	if ev.Link != "" {
		return head + "  " + ev.Link
	}
	if ev.Ports != "" {
		return fmt.Sprintf("%s  %-4s  %-15s  %-21s -> %s:%s", head, "all", dash(ev.Network), dash(ev.Internal), ev.External, ev.Ports)
	}
	if ev.Protocol == "" {
		return head + "  " + countText(ev)
	}
	line := fmt.Sprintf("%s  %-4s  %-15s  %-21s -> %-21s", head, ev.Protocol, dash(ev.Network), dash(ev.Internal), dash(ev.External))
	if ev.Remote != "" {
		line += fmt.Sprintf("  remote %-21s", ev.Remote)
	}
	return strings.TrimRight(line+"  "+strings.Join(details(ev), ", "), " ")
}

func details(ev api.Event) (out []string) {
	if ev.Static != nil && *ev.Static {
		out = append(out, "static")
	}
	if ev.Sessions != nil {
		out = append(out, fmt.Sprintf("sessions %d", *ev.Sessions))
	}
	switch {
	case ev.OldState != "":
		out = append(out, ev.OldState+" to "+ev.State)
	case ev.State != "":
		out = append(out, ev.State)
	}
	if ev.Hairpin != nil && *ev.Hairpin {
		out = append(out, "hairpin")
	}
	if ev.Limit != "" {
		out = append(out, "limit "+ev.Limit)
	}
	if ev.ExpiresInS != nil {
		out = append(out, "expires in "+seconds(*ev.ExpiresInS))
	}
	if ev.Count != nil {
		out = append(out, countText(ev))
	}
	return out
}

func countText(ev api.Event) string {
	if ev.Count == nil {
		return ""
	}
	if ev.Type == "events.lost" {
		return fmt.Sprintf("%d events were lost", *ev.Count)
	}
	return fmt.Sprintf("%d packets", *ev.Count)
}
