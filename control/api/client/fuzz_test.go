// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/conenat/conenat/control/api"
)

// answers is a daemon that answers everything with the same.
type answers struct {
	status int
	body   string
}

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: a.status, Status: http.StatusText(a.status), Header: http.Header{}, Request: r,
		Body: io.NopCloser(strings.NewReader(a.body))}, nil
}

// FuzzAnswer: whatever answers on the socket is understood or an error; a refusal is one that says something.
func FuzzAnswer(f *testing.F) {
	f.Add(200, `[{"protocol":"udp","internal":"172.17.0.2:1","external":"198.51.100.1:1","expires_in_s":1.5,"created":"2026-01-02T03:04:05Z"}]`)
	f.Add(200, `{"time":"2026-01-02T03:04:05Z","type":"session.created","hairpin":true,"sessions":3}`+"\n")
	f.Add(409, `{"error":"port taken"}`)
	f.Add(500, `<html>`)
	f.Fuzz(func(t *testing.T, status int, body string) {
		if status < 200 || status > 599 || status/100 == 3 { // HTTP has no others; the transport follows redirections
			return
		}
		c := &Client{socket: "/x", http: &http.Client{Transport: answers{status, body}}}
		_, err1 := c.Status(t.Context())
		_, err2 := c.Bindings(t.Context())
		_, err3 := c.AddForward(t.Context(), api.ForwardRequest{})
		err4 := c.Events(t.Context(), EventQuery{}, func([]byte, api.Event) error { return nil })
		for _, err := range []error{err1, err2, err3, err4} {
			var refused *Error
			if status >= 300 && (!errors.As(err, &refused) || refused.Message == "") {
				t.Errorf("status %d: error %v", status, err)
			}
		}
	})
}
