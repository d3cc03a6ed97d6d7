// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/conenat/conenat/control/watch"
	"github.com/conenat/conenat/dataplane"
)

// Backend answers what the API is asked.
type Backend interface {
	Status() (Status, error)
	Networks() ([]Network, error)
	Bindings() ([]dataplane.Binding, error)
	Sessions() ([]dataplane.Session, error)
	Forwards() ([]Forward, error)
	AddForward(dataplane.Forward) (Forward, error)
	RemoveForward(dataplane.Protocol, netip.AddrPort) error
	History(since time.Time) []dataplane.Event
	Subscribe(since time.Time) ([]dataplane.Event, *watch.Subscription)
}

const (
	maxBody       = 64 << 10
	headerTimeout = 10 * time.Second
	shutdownTime  = 2 * time.Second
)

// Serve answers on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, b Backend, log *slog.Logger) error {
	server := &http.Server{
		Handler:           Handler(b),
		ReadHeaderTimeout: headerTimeout,
		BaseContext:       func(net.Listener) context.Context { return ctx }, // event streams end with it
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve the API: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	if server.Shutdown(stop) != nil {
		server.Close() // a client that does not read
	}
	return ctx.Err()
}

// handler answers a request, or says what is wrong with it.
type handler func(w http.ResponseWriter, r *http.Request) error

type server struct{ Backend }

// Handler is the API on a backend.
func Handler(b Backend) http.Handler {
	s := server{b}
	mux := http.NewServeMux()
	route := func(pattern string, methods map[string]handler) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { dispatch(w, r, methods) })
	}
	get := func(h handler) map[string]handler { return map[string]handler{http.MethodGet: h} }
	route("/v1/status", get(s.status))
	route("/v1/networks", get(list(s.Networks)))
	route("/v1/bindings", get(list(func() ([]Binding, error) { v, err := s.Bindings(); return BindingsOf(v), err })))
	route("/v1/sessions", get(list(func() ([]Session, error) { v, err := s.Sessions(); return SessionsOf(v), err })))
	route("/v1/events", get(s.events))
	route("/v1/forwards", map[string]handler{http.MethodGet: list(s.Forwards), http.MethodPost: s.addForward})
	route("/v1/forwards/{id...}", map[string]handler{http.MethodDelete: s.removeForward})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, &httpError{http.StatusNotFound, fmt.Errorf("no such path: %s", r.URL.Path)})
	})
	return mux
}

func dispatch(w http.ResponseWriter, r *http.Request, methods map[string]handler) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	h, ok := methods[method]
	if !ok {
		var allowed []string
		for m := range methods {
			allowed = append(allowed, m)
		}
		slices.Sort(allowed)
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		writeError(w, &httpError{http.StatusMethodNotAllowed, fmt.Errorf("%s is not possible on %s", r.Method, r.URL.Path)})
		return
	}
	if err := h(w, r); err != nil {
		writeError(w, err)
	}
}

// httpError is an error with a status code of its own.
type httpError struct {
	status int
	err    error
}

func (e *httpError) Error() string { return e.err.Error() }
func (e *httpError) Unwrap() error { return e.err }

func badRequest(format string, args ...any) error {
	return &httpError{http.StatusBadRequest, fmt.Errorf(format, args...)}
}

func statusOf(err error) int {
	var own *httpError
	switch {
	case errors.As(err, &own):
		return own.status
	case errors.Is(err, dataplane.ErrPortTaken), errors.Is(err, dataplane.ErrHostSocket):
		return http.StatusConflict
	case errors.Is(err, dataplane.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, dataplane.ErrFull):
		return http.StatusInsufficientStorage
	}
	return http.StatusInternalServerError
}

func writeError(w http.ResponseWriter, err error) {
	writeJSON(w, statusOf(err), map[string]string{"error": err.Error()})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // an error: the client is gone
}

// list answers with an array, an empty one too.
func list[T any](get func() ([]T, error)) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := parameters(r); err != nil {
			return err
		}
		v, err := get()
		if err != nil {
			return err
		}
		if v == nil {
			v = []T{}
		}
		writeJSON(w, http.StatusOK, v)
		return nil
	}
}

// parameters refuses those that are not known.
func parameters(r *http.Request, known ...string) error {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest("parameters: %w", err)
	}
	for name := range q {
		if !slices.Contains(known, name) {
			return badRequest("unknown parameter %q", name)
		}
	}
	return nil
}

func (s server) status(w http.ResponseWriter, r *http.Request) error {
	return list(func() ([]Status, error) {
		st, err := s.Status()
		return []Status{st}, err
	})(w, r)
}

func (s server) addForward(w http.ResponseWriter, r *http.Request) error {
	var req ForwardRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	f, err := req.Forward()
	if err != nil {
		return badRequest("%w", err)
	}
	added, err := s.AddForward(f)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, added)
	return nil
}

// decode takes one JSON object of known fields, and nothing behind it.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something stands behind the JSON object")
		}
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return &httpError{http.StatusRequestEntityTooLarge, fmt.Errorf("body is larger than %d bytes", maxBody)}
	case err != nil:
		return badRequest("read the body: %w", err)
	}
	return nil
}

func (s server) removeForward(w http.ResponseWriter, r *http.Request) error {
	protocol, external, err := ParseForwardID(r.PathValue("id"))
	if err != nil {
		return badRequest("%w", err)
	}
	if err := s.RemoveForward(protocol, external); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// query is what GET /v1/events was asked.
type query struct {
	follow bool
	since  time.Time
	types  []dataplane.EventType
}

func parseQuery(r *http.Request) (q query, err error) {
	if err := parameters(r, "follow", "since", "type"); err != nil {
		return q, err
	}
	values := r.URL.Query()
	switch f := values.Get("follow"); f {
	case "", "0", "false":
	case "1", "true":
		q.follow = true
	default:
		return q, badRequest("follow %q: want 1 or 0", f)
	}
	if q.follow {
		q.since = time.Now()
	}
	if values.Has("since") {
		if q.since, err = parseSince(values.Get("since"), time.Now()); err != nil {
			return q, badRequest("%w", err)
		}
	}
	for _, name := range values["type"] {
		t, err := ParseEventType(name)
		if err != nil {
			return q, badRequest("%w", err)
		}
		q.types = append(q.types, t)
	}
	return q, nil
}

// wants: a loss concerns every filter.
func (q query) wants(ev dataplane.Event) bool {
	return len(q.types) == 0 || ev.Type == dataplane.EventsLost || slices.Contains(q.types, ev.Type)
}

func (s server) events(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := stream{buffer: bufio.NewWriter(w), response: http.NewResponseController(w), query: q}
	if !q.follow {
		_ = out.write(s.History(q.since))
		return nil
	}
	past, sub := s.Subscribe(q.since)
	defer sub.Close()
	for evs := past; out.write(evs) == nil; {
		if evs, err = sub.Next(r.Context()); err != nil {
			break
		}
	}
	return nil
}

// stream writes events, one JSON object a line.
type stream struct {
	buffer   *bufio.Writer
	response *http.ResponseController
	query    query
}

func (s stream) write(evs []dataplane.Event) error {
	enc := json.NewEncoder(s.buffer)
	for _, ev := range evs {
		if !s.query.wants(ev) {
			continue
		}
		if err := enc.Encode(EventOf(ev)); err != nil {
			return err
		}
	}
	if err := s.buffer.Flush(); err != nil {
		return err
	}
	return s.response.Flush()
}
