// SPDX-License-Identifier: Apache-2.0

package dockerfake

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/go-connections/nat"
)

var versioned = regexp.MustCompile(`^/v([0-9]+\.[0-9]+)(/.*)$`)

// ServeHTTP answers one request.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	e.mu.Lock()
	oldest, newest := e.minAPI, e.maxAPI
	e.mu.Unlock()
	if m := versioned.FindStringSubmatch(path); m != nil {
		path = m[2]
		if versions.LessThan(m[1], oldest) {
			refuse(w, http.StatusBadRequest, fmt.Sprintf("client version %s is too old. Minimum supported API version is %s, "+
				"please upgrade your client to a newer version", m[1], oldest))
			return
		}
		if newest != "" && versions.GreaterThan(m[1], newest) {
			refuse(w, http.StatusBadRequest, fmt.Sprintf("client version %s is too new. Maximum supported API version is %s", m[1], newest))
			return
		}
	}
	status := e.count(path)
	if path != "/events" && !e.wait(r, path) {
		return
	}
	if newest != "" {
		w.Header().Set("Api-Version", newest)
	}
	if status != 0 {
		refuse(w, status, "fake: told to fail")
		return
	}
	e.answer(w, r, path)
}

func (e *Engine) count(path string) (failing int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.requests[path]++
	return e.failing[path]
}

// wait is false if the client went away first.
func (e *Engine) wait(r *http.Request, path string) bool {
	e.mu.Lock()
	held := e.held[path]
	e.mu.Unlock()
	if held == nil {
		return true
	}
	select {
	case <-held:
		return true
	case <-r.Context().Done():
		return false
	}
}

func refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": message})
}

func (e *Engine) answer(w http.ResponseWriter, r *http.Request, path string) {
	var body any
	id, isContainer := strings.CutPrefix(strings.TrimSuffix(path, "/json"), "/containers/")
	switch {
	case path == "/_ping":
		_, _ = w.Write([]byte("OK"))
		return
	case path == "/events":
		e.events(w, r)
		return
	case path == "/version":
		e.mu.Lock()
		body = types.Version{Version: "20.10.24", APIVersion: e.maxAPI, MinAPIVersion: e.minAPI, Os: "linux"}
		e.mu.Unlock()
	case path == "/networks":
		body = e.listNetworks("")
	case strings.HasPrefix(path, "/networks/"):
		if found := e.listNetworks(strings.TrimPrefix(path, "/networks/")); len(found) == 1 {
			body = found[0]
		}
	case path == "/containers/json":
		body = e.listContainers()
	case isContainer:
		body = e.inspect(id)
	}
	if body == nil {
		refuse(w, http.StatusNotFound, "no such object: "+path)
		return
	}
	if !e.wait(r, path+answered) {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body)
}

// events streams, as Docker 20.10: the answer begins before the subscription.
func (e *Engine) events(w http.ResponseWriter, r *http.Request) {
	wanted, err := filters.FromJSON(r.URL.Query().Get("filters"))
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	flusher := w.(http.Flusher)
	flusher.Flush()
	if !e.wait(r, "/events") {
		return
	}
	next := e.firstEvent(r.URL.Query().Get("since"))
	out := json.NewEncoder(w)
	for {
		e.mu.Lock()
		news, wake := e.log[next:], e.wake
		e.mu.Unlock()
		next += len(news)
		for _, m := range news {
			if wanted.ExactMatch("type", string(m.Type)) && wanted.ExactMatch("event", string(m.Action)) {
				_ = out.Encode(m)
			}
		}
		flusher.Flush()
		select {
		case <-wake:
		case <-r.Context().Done():
			return
		}
	}
}

// firstEvent is the index in the log from which a subscription starts.
func (e *Engine) firstEvent(since string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	seconds, fraction, _ := strings.Cut(since, ".")
	s, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return len(e.log)
	}
	nanos, _ := strconv.ParseInt(fraction, 10, 64)
	for i, m := range e.log {
		if m.TimeNano >= s*1e9+nanos {
			return i
		}
	}
	return len(e.log)
}

// listNetworks lists all, or the one with an ID or name.
func (e *Engine) listNetworks(which string) []network.Summary {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := []network.Summary{}
	for _, n := range e.networks {
		if which != "" && n.ID != which && n.Name != which {
			continue
		}
		s := network.Summary{
			ID: n.ID, Name: n.Name, Driver: n.Driver, Scope: "local", Internal: n.Internal, Ingress: n.Ingress,
			ConfigOnly: n.ConfigOnly, Options: n.Options, Labels: n.Labels, IPAM: network.IPAM{Driver: "default"},
		}
		if n.Subnet != "" {
			s.IPAM.Config = []network.IPAMConfig{{Subnet: n.Subnet, Gateway: n.Gateway}}
		}
		if n.Subnet6 != "" {
			s.EnableIPv6 = true
			s.IPAM.Config = append(s.IPAM.Config, network.IPAMConfig{Subnet: n.Subnet6, Gateway: n.Gateway6})
		}
		out = append(out, s)
	}
	return out
}

// settings are the container's places; a stopped one has no endpoints.
func (e *Engine) settings(c *Container) map[string]*network.EndpointSettings {
	out := map[string]*network.EndpointSettings{}
	for _, p := range c.Places {
		n := e.network(p.Network)
		s := &network.EndpointSettings{NetworkID: n.ID}
		if !c.stopped {
			s.EndpointID, s.IPAddress, s.Gateway = p.endpoint, p.Address, p.Gateway
			if s.Gateway == "" {
				s.Gateway = n.Gateway
			}
			if p.Address6 != "" {
				s.GlobalIPv6Address, s.IPv6Gateway = p.Address6, n.Gateway6
			}
		}
		out[p.Network] = s
	}
	return out
}

func (e *Engine) listContainers() []container.Summary {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := []container.Summary{}
	for _, c := range e.containers {
		if !c.stopped {
			out = append(out, container.Summary{
				ID: c.ID, Names: []string{"/" + c.Name}, Labels: c.Labels, State: container.StateRunning,
				NetworkSettings: &container.NetworkSettingsSummary{Networks: e.settings(c)},
			})
		}
	}
	return out
}

// inspect gives nil if there is no such container.
func (e *Engine) inspect(id string) any {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.ID != id && c.Name != id {
			continue
		}
		answer := container.InspectResponse{
			ContainerJSONBase: &container.ContainerJSONBase{
				ID: c.ID, Name: "/" + c.Name,
				State: &container.State{Status: container.StateRunning, Running: true, Pid: c.PID},
			},
			Config:          &container.Config{Labels: c.Labels},
			NetworkSettings: &container.NetworkSettings{Networks: e.settings(c)},
		}
		if c.stopped {
			answer.State = &container.State{Status: container.StateExited}
			return answer
		}
		answer.NetworkSettings.Ports = nat.PortMap{}
		for _, p := range c.Ports {
			port := nat.Port(p.Container)
			bound := nat.PortBinding{HostIP: p.Host, HostPort: strconv.Itoa(int(p.HostPort))}
			answer.NetworkSettings.Ports[port] = append(answer.NetworkSettings.Ports[port], bound)
		}
		return answer
	}
	return nil
}
