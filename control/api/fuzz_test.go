// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/conenat/conenat/control/api"
)

// FuzzRequest: whatever is asked gets an answer: what was asked for, or in JSON why not, and never the daemon's fault.
func FuzzRequest(f *testing.F) {
	for _, seed := range [][4]string{
		{"GET", "/v1/bindings", "", ""}, {"GET", "/v1/events", "since=5m&type=binding.created&follow=0", ""},
		{"POST", "/v1/forwards", "", `{"protocol":"udp","network":"net","external":"198.51.100.1:8080","internal":"172.17.0.2:80"}`},
		{"POST", "/v1/forwards", "", `{"external":"198.51.100.1:1"} {}`}, {"DELETE", "/v1/forwards/tcp/198.51.100.1:8080", "", ""},
		{"DELETE", "/v1/forwards/tcp%2f198.51.100.1:8080", "", ""}, {"HEAD", "/v1/status", "", ""}, {"PUT", "/v1/status", "x=%zz", ""},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3])
	}
	handler := api.Handler(newBackend())
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		if strings.Contains(query, "follow") { // would not end
			return
		}
		w := httptest.NewRecorder()
		r := &http.Request{Method: method, URL: &url.URL{Path: path, RawQuery: query}, Proto: "HTTP/1.1", Body: http.NoBody, Header: http.Header{}}
		if body != "" {
			r.Body = readCloser{strings.NewReader(body)}
		}
		handler.ServeHTTP(w, r)
		switch {
		case path == "/v1/networks" && w.Code == http.StatusInternalServerError: // this backend's is broken
		case w.Code >= 500:
			t.Errorf("status %d: %s", w.Code, w.Body)
		case w.Code >= 400 && method != http.MethodHead:
			var answer struct {
				Error string `json:"error"`
			}
			if json.Unmarshal(w.Body.Bytes(), &answer) != nil || answer.Error == "" {
				t.Errorf("status %d says nothing: %q", w.Code, w.Body)
			}
		}
	})
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }

// FuzzForwardID: an ID that is taken is that of one endpoint, and written in one way.
func FuzzForwardID(f *testing.F) {
	f.Add("tcp/198.51.100.1:8080")
	f.Add("udp/[2001:db8::1]:53")
	f.Fuzz(func(t *testing.T, id string) {
		p, external, err := api.ParseForwardID(id)
		if err != nil {
			return
		}
		again, same, err := api.ParseForwardID(p.String() + "/" + external.String())
		if err != nil || again != p || same != external {
			t.Errorf("%q is %s %s, and that is %s %s, %v", id, p, external, again, same, err)
		}
	})
}
