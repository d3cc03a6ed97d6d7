// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"net"
	"os"
	"reflect"
	"sync"
	"time"

	"github.com/docker/docker/client"

	"github.com/conenat/conenat/dataplane"
)

// Source is the Engine as one follows it.
type Source struct {
	host      string // "unix:///var/run/docker.sock"
	namespace func(pid int) (Namespace, error)
	mapping   [3]dataplane.Behavior // the daemon's
	filtering [3]dataplane.Behavior // the same
	times     times
	changes   chan struct{}

	mu        sync.Mutex
	last      Snapshot
	dialError error // why the Engine could not be reached; the client keeps only its own words
}

// times are the periods that tests shorten.
type times struct {
	debounce   time.Duration // after the first event of a burst
	answer     time.Duration // how long a list may take before the Engine counts as hung
	inspect    time.Duration // how long one container's state may take
	slow       time.Duration // an inspection that takes longer gives its turn to another
	settle     time.Duration // how long a picture waits for inspections that the same burst caused
	first      time.Duration // how long the first picture does
	retry      time.Duration // after an inspection that failed
	resync     time.Duration // everything is listed anew, against events that the Engine dropped
	backoff    time.Duration // before the first attempt to connect again; doubles
	maxBackoff time.Duration
}

var defaultTimes = times{
	debounce: 5 * time.Millisecond, answer: 5 * time.Second, inspect: 10 * time.Second, slow: 200 * time.Millisecond,
	settle: 50 * time.Millisecond, first: 2 * time.Second, retry: time.Second, resync: 30 * time.Second,
	backoff: 20 * time.Millisecond, maxBackoff: time.Second,
}

// Option is a choice for New.
type Option func(*Source)

// WithHost is used in place of DOCKER_HOST: "unix:///PATH" or "tcp://ADDRESS:PORT".
func WithHost(host string) Option { return func(s *Source) { s.host = host } }

// WithMapping gives the daemon's mapping behaviours, which hold for the protocols that a label does not name. Without
// it they are endpoint-independent.
func WithMapping(m [3]dataplane.Behavior) Option { return func(s *Source) { s.mapping = m } }

// WithFiltering gives the daemon's filtering behaviours, which hold for the protocols that a label does not
// name. Without it they are address-dependent.
func WithFiltering(f [3]dataplane.Behavior) Option { return func(s *Source) { s.filtering = f } }

// WithNamespaces is used in place of ReadNamespace.
func WithNamespaces(read func(pid int) (Namespace, error)) Option {
	return func(s *Source) { s.namespace = read }
}

// New is a Source that nobody watches yet. Where the Engine is, and by what it trusts it, say DOCKER_HOST,
// DOCKER_TLS_VERIFY, DOCKER_CERT_PATH and DOCKER_API_VERSION as for the docker command; without them it is
// unix:///var/run/docker.sock. An error says what is wrong with these.
func New(opts ...Option) (*Source, error) {
	s := &Source{
		host: os.Getenv(client.EnvOverrideHost), namespace: ReadNamespace, times: defaultTimes,
		changes: make(chan struct{}, 1),
	}
	for i := range s.filtering {
		s.filtering[i] = dataplane.AddressDependent
	}
	for _, opt := range opts {
		opt(s)
	}
	if s.host == "" {
		s.host = client.DefaultDockerHost
	}
	cli, err := s.client()
	if err != nil {
		return nil, err
	}
	s.last.Problem = fmt.Sprintf("docker at %s has not been asked yet", s.host)
	return s, cli.Close()
}

// client makes a client, which has not spoken yet.
func (s *Source) client() (*client.Client, error) {
	url, err := client.ParseHostURL(s.host)
	if err == nil && url.Scheme != "unix" && url.Scheme != "tcp" {
		err = fmt.Errorf("scheme %q", url.Scheme)
	}
	if err != nil {
		return nil, fmt.Errorf("use DOCKER_HOST %q: %w: want unix:///PATH or tcp://ADDRESS:PORT of the dockerd on this host", s.host, err)
	}
	cli, err := client.NewClientWithOpts(client.WithTLSClientConfigFromEnv(), client.WithHost(s.host),
		client.WithDialContext(s.dialer(url.Scheme, url.Host)), client.WithVersionFromEnv(), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("make a client for docker at %s: %w: see DOCKER_TLS_VERIFY, DOCKER_CERT_PATH and DOCKER_API_VERSION", s.host, err)
	}
	return cli, nil
}

// dialer remembers the error of the last attempt.
func (s *Source) dialer(network, address string) func(ctx context.Context, _, _ string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, address)
		s.mu.Lock()
		s.dialError = err
		s.mu.Unlock()
		return conn, err
	}
}

// Snapshot is the last picture. It never waits for the Engine.
func (s *Source) Snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// Changes is sent to when Snapshot has another answer than before.
func (s *Source) Changes() <-chan struct{} { return s.changes }

func (s *Source) publish(next Snapshot) {
	s.mu.Lock()
	same := reflect.DeepEqual(s.last, next)
	s.last = next
	s.mu.Unlock()
	if same {
		return
	}
	select {
	case s.changes <- struct{}{}:
	default:
	}
}

// disconnected keeps the picture and says that it may be old.
func (s *Source) disconnected(problem string) {
	next := s.Snapshot()
	next.Connected, next.Problem = false, problem
	s.publish(next)
}
