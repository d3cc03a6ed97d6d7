// SPDX-License-Identifier: Apache-2.0

package dockerfake

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/events"
)

// Engine is a fake dockerd.
type Engine struct {
	Socket string

	mu             sync.Mutex
	server         *http.Server // nil: it does not listen
	served         chan struct{}
	minAPI, maxAPI string
	nextID         int
	networks       []*Network
	containers     []*Container
	log            []events.Message
	wake           chan struct{} // closed at the next event
	quiet          bool          // changes make no event
	requests       map[string]int
	held           map[string]chan struct{} // by path
	failing        map[string]int           // HTTP status, by path
}

// New is an Engine on DIR/docker.sock, with the networks bridge (172.17.0.0/16), host and none, that speaks the API
// 1.41 of Docker 20.10.
func New(dir string) (*Engine, error) {
	e := &Engine{
		Socket: filepath.Join(dir, "docker.sock"), minAPI: "1.12", maxAPI: "1.41", wake: make(chan struct{}),
		requests: map[string]int{}, held: map[string]chan struct{}{}, failing: map[string]int{},
	}
	e.AddNetwork(Network{Name: "bridge", Subnet: "172.17.0.0/16", Gateway: "172.17.0.1", Options: map[string]string{
		"com.docker.network.bridge.default_bridge": "true", "com.docker.network.bridge.enable_icc": "true",
		"com.docker.network.bridge.enable_ip_masquerade": "true", "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
		"com.docker.network.bridge.name": "docker0", "com.docker.network.driver.mtu": "1500",
	}})
	e.AddNetwork(Network{Name: "host", Driver: "host"})
	e.AddNetwork(Network{Name: "none", Driver: "null"})
	return e, e.Listen()
}

// ForTest is New in a directory of the test's, closed at its end.
func ForTest(t testing.TB) *Engine {
	t.Helper()
	e, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// Host is what DOCKER_HOST has to be.
func (e *Engine) Host() string { return "unix://" + e.Socket }

// Listen answers again after Close.
func (e *Engine) Listen() error {
	l, err := net.Listen("unix", e.Socket)
	if err != nil {
		return err
	}
	server, served := &http.Server{Handler: e, ReadHeaderTimeout: time.Minute}, make(chan struct{})
	e.mu.Lock()
	e.server, e.served = server, served
	e.mu.Unlock()
	go func() {
		defer close(served)
		_ = server.Serve(l) // until Close
	}()
	return nil
}

// Close ends every connection and removes the socket, as dockerd does when it ends. State stays.
func (e *Engine) Close() error { return e.stop() }

// Refuse ends every connection and leaves a socket that nobody listens on, as a dockerd does that was killed.
func (e *Engine) Refuse() error {
	if err := e.stop(); err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: e.Socket, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return l.Close()
}

// Restart is Close and Listen, also after Refuse.
func (e *Engine) Restart() error {
	if err := e.stop(); err != nil {
		return err
	}
	return e.Listen()
}

func (e *Engine) stop() error {
	e.mu.Lock()
	server, served := e.server, e.served
	e.server = nil
	for path, held := range e.held { // a handler that waits would outlive the server
		close(held)
		delete(e.held, path)
	}
	e.mu.Unlock()
	if server != nil {
		if err := server.Close(); err != nil {
			return err
		}
		<-served
	}
	if err := os.Remove(e.Socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// SetAPI gives the oldest and newest version of the API that is spoken. An empty newest is not told to anybody.
func (e *Engine) SetAPI(oldest, newest string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.minAPI, e.maxAPI = oldest, newest
}

// Fail answers requests for a path ("/networks", "/containers/ID/json") with a status; 0 ends that.
func (e *Engine) Fail(path string, status int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failing[path] = status
}

// Hold lets requests for a path wait until release is called (once). The answer to "/events" begins at once and the
// subscription waits, as in Docker 20.10.
func (e *Engine) Hold(path string) (release func()) {
	held := make(chan struct{})
	e.mu.Lock()
	e.held[path] = held
	e.mu.Unlock()
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.held[path] == held {
			close(held)
			delete(e.held, path)
		}
	}
}

// Delay lets answers for a path wait after they are made, so that they are old when release is called.
func (e *Engine) Delay(path string) (release func()) { return e.Hold(path + answered) }

const answered = " answered"

// Requests counts the requests for a path since the start, and those for all paths that begin so if it ends in *.
func (e *Engine) Requests(path string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	prefix, wildcard := strings.CutSuffix(path, "*")
	for p, count := range e.requests {
		if p == path || (wildcard && strings.HasPrefix(p, prefix)) {
			n += count
		}
	}
	return n
}

// Quietly makes the changes of do without events, as an Engine that drops them.
func (e *Engine) Quietly(do func()) {
	e.setQuiet(true)
	defer e.setQuiet(false)
	do()
}

func (e *Engine) setQuiet(quiet bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.quiet = quiet
}

// id makes one as Docker's: 64 hexadecimal digits. The caller holds the lock, as of emit.
func (e *Engine) id() string {
	e.nextID++
	return fmt.Sprintf("%012x%052x", 0xabc000000000+e.nextID, e.nextID)
}

func (e *Engine) emit(kind events.Type, action events.Action, id string, attributes map[string]string) {
	if e.quiet {
		return
	}
	now := time.Now()
	e.log = append(e.log, events.Message{
		Type: kind, Action: action, Actor: events.Actor{ID: id, Attributes: attributes},
		Scope: "local", Time: now.Unix(), TimeNano: now.UnixNano(),
	})
	close(e.wake)
	e.wake = make(chan struct{})
}
