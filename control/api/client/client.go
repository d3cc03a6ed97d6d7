// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/conenat/conenat/control/api"
)

// ErrUnreachable means that nobody answers on the socket.
var ErrUnreachable = errors.New("cannot reach conenat")

// Client asks the daemon behind one socket.
type Client struct {
	socket string
	http   *http.Client
}

// New is a client of the daemon at a socket path.
func New(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Error is the daemon's answer that it did not do something.
type Error struct {
	Status  int // HTTP's
	Message string
}

func (e *Error) Error() string { return e.Message }

// do asks; the caller closes the answer's body.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://conenat"+path, content)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	resp, err := c.http.Do(req)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, fmt.Errorf("%w at %s: %w: is `conenat run` active?", ErrUnreachable, c.socket, err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}

func readError(resp *http.Response) error {
	var answer struct {
		Error string `json:"error"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&answer); err != nil || answer.Error == "" {
		answer.Error = "the daemon answers " + resp.Status
	}
	return &Error{Status: resp.StatusCode, Message: answer.Error}
}

func get[T any](ctx context.Context, c *Client, path string) (v T, err error) {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("read the daemon's answer to %s: %w", path, err)
	}
	return v, nil
}

// Status is the daemon's state; always one.
func (c *Client) Status(ctx context.Context) ([]api.Status, error) {
	return get[[]api.Status](ctx, c, "/v1/status")
}

// Networks are the inside networks.
func (c *Client) Networks(ctx context.Context) ([]api.Network, error) {
	return get[[]api.Network](ctx, c, "/v1/networks")
}

// Bindings are the bindings, in order.
func (c *Client) Bindings(ctx context.Context) ([]api.Binding, error) {
	return get[[]api.Binding](ctx, c, "/v1/bindings")
}

// Sessions are the sessions, in order.
func (c *Client) Sessions(ctx context.Context) ([]api.Session, error) {
	return get[[]api.Session](ctx, c, "/v1/sessions")
}

// Forwards are the static bindings that are wanted.
func (c *Client) Forwards(ctx context.Context) ([]api.Forward, error) {
	return get[[]api.Forward](ctx, c, "/v1/forwards")
}

// AddForward makes a static binding.
func (c *Client) AddForward(ctx context.Context, r api.ForwardRequest) (f api.Forward, err error) {
	resp, err := c.do(ctx, http.MethodPost, "/v1/forwards", r)
	if err != nil {
		return f, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&f); err != nil {
		return f, fmt.Errorf("read the daemon's answer: %w", err)
	}
	return f, nil
}

// RemoveForward ends a static binding; an id is "tcp/198.51.100.1:8080".
func (c *Client) RemoveForward(ctx context.Context, id string) error {
	resp, err := c.do(ctx, http.MethodDelete, "/v1/forwards/"+url.PathEscape(id), nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// EventQuery says which events.
type EventQuery struct {
	Follow bool
	Since  string // "5m", an RFC 3339 time, "all"; empty: all, or with Follow those from now on
	Types  []string
}

// Events calls visit with each line (a JSON object) and the event in it, until there is no more, ctx ends,
// or visit returns an error, which is returned.
func (c *Client) Events(ctx context.Context, q EventQuery, visit func(line []byte, ev api.Event) error) error {
	values := url.Values{"type": q.Types}
	if q.Follow {
		values.Set("follow", "1")
	}
	if q.Since != "" {
		values.Set("since", q.Since)
	}
	resp, err := c.do(ctx, http.MethodGet, "/v1/events?"+values.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		var ev api.Event
		if err := json.Unmarshal(lines.Bytes(), &ev); err != nil {
			return fmt.Errorf("read an event: %w", err)
		}
		if err := visit(lines.Bytes(), ev); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("the event stream broke off: %w", err)
	}
	if q.Follow {
		return errors.New("the event stream ended: the daemon stopped")
	}
	return nil
}
