// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"

	"github.com/conenat/conenat/tests/build"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// ProbeImage has busybox and cnprobe, both static, and nothing else.
const ProbeImage = "cnprobe:latest"

// Import makes an image of files: absolute path in the image to path here. All are executable.
func (d *Daemon) Import(ctx context.Context, image string, files map[string]string) error {
	var archive bytes.Buffer
	out := tar.NewWriter(&archive)
	for name, source := range files {
		content, err := os.ReadFile(source)
		if err != nil {
			return fmt.Errorf("image %s: %w", image, err)
		}
		header := &tar.Header{Name: name[1:], Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}
		if err := errors.Join(out.WriteHeader(header), write(out, content)); err != nil {
			return fmt.Errorf("image %s: %w", image, err)
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	query := url.Values{"fromSrc": {"-"}, "repo": {image}}
	return d.api.call(ctx, "POST", "/images/create?"+query.Encode(), &archive, nil)
}

func write(out *tar.Writer, content []byte) error {
	_, err := out.Write(content)
	return err
}

// probeImage imports ProbeImage once.
func (d *Daemon) probeImage(ctx context.Context) error {
	if d.images[ProbeImage] {
		return nil
	}
	cnprobe, err := build.Binary("tests/cmd/cnprobe")
	if err != nil {
		return err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	files := map[string]string{"/bin/cnprobe": cnprobe, "/bin/busybox": busybox, "/bin/sh": busybox}
	if err := d.Import(ctx, ProbeImage, files); err != nil {
		return err
	}
	d.images[ProbeImage] = true
	return nil
}

// Spec is what `docker run` would be given.
type Spec struct {
	Name    string
	Network string            // empty: the default bridge
	Addr    string            // a fixed address, for networks made by a user; empty: Docker chooses
	Publish map[string]string // container's port ("80/tcp") to "ADDR:PORT" or ":PORT"
	Labels  map[string]string
}

// Container is a running container with a cnprobe in it, by which it is a probe.Host.
type Container struct {
	*probe.Client
	ID   string
	Name string
	PID  int // in this process's PID namespace
	Addr netip.Addr
	NS   *topo.NS
	d    *Daemon
}

type endpoint struct {
	IPAMConfig *ipam  `json:",omitempty"`
	IPAddress  string `json:",omitempty"`
}

type ipam struct{ IPv4Address string }

// Run starts a container of ProbeImage.
func (d *Daemon) Run(ctx context.Context, spec Spec) (*Container, error) {
	if err := d.probeImage(ctx); err != nil {
		return nil, fmt.Errorf("make image %s: %w", ProbeImage, err)
	}
	c := &Container{Name: spec.Name, d: d}
	if err := c.start(ctx, spec); err != nil {
		return nil, fmt.Errorf("run container %s: %w", spec.Name, err)
	}
	return c, nil
}

func (c *Container) start(ctx context.Context, spec Spec) error {
	var created struct{ ID string }
	query := ""
	if spec.Name != "" {
		query = "?" + url.Values{"name": {spec.Name}}.Encode()
	}
	if err := c.d.api.call(ctx, "POST", "/containers/create"+query, spec.body(), &created); err != nil {
		return err
	}
	c.ID = created.ID
	stream, err := c.d.api.attach(ctx, c.ID)
	if err != nil {
		return err
	}
	c.Client = probe.Remote(stream)
	c.d.topo.Defer("close probe of container "+c.Name, c.Client.Close)
	if err := c.d.api.call(ctx, "POST", "/containers/"+c.ID+"/start", nil, nil); err != nil {
		return err
	}
	return c.inspect(ctx, spec.Network)
}

func (s Spec) body() map[string]any {
	network := s.Network
	if network == "" {
		network = "bridge"
	}
	exposed, bindings := map[string]any{}, map[string]any{}
	for port, external := range s.Publish {
		host, hostPort := splitHostPort(external)
		exposed[port] = struct{}{}
		bindings[port] = []map[string]string{{"HostIp": host, "HostPort": hostPort}}
	}
	body := map[string]any{
		"Image": ProbeImage, "Cmd": []string{"/bin/cnprobe"}, "Labels": s.Labels,
		"OpenStdin": true, "StdinOnce": true, "AttachStdin": true, "AttachStdout": true, "AttachStderr": true,
		"ExposedPorts": exposed,
		"HostConfig":   map[string]any{"NetworkMode": network, "PortBindings": bindings},
	}
	if s.Addr != "" {
		body["NetworkingConfig"] = map[string]any{"EndpointsConfig": map[string]endpoint{network: {IPAMConfig: &ipam{s.Addr}}}}
	}
	return body
}

// splitHostPort also takes ":PORT", which means every address.
func splitHostPort(s string) (host, port string) {
	if a, err := netip.ParseAddrPort(s); err == nil {
		return a.Addr().String(), fmt.Sprint(a.Port())
	}
	return "", s[1:]
}

func (c *Container) inspect(ctx context.Context, network string) error {
	var state struct {
		Name            string
		State           struct{ Pid int }
		NetworkSettings struct{ Networks map[string]endpoint }
	}
	if err := c.d.api.call(ctx, "GET", "/containers/"+c.ID+"/json", nil, &state); err != nil {
		return err
	}
	if network == "" {
		network = "bridge"
	}
	var err error
	c.Name, c.PID = state.Name[1:], state.State.Pid
	if c.Addr, err = netip.ParseAddr(state.NetworkSettings.Networks[network].IPAddress); err != nil {
		return fmt.Errorf("address in network %s: %w", network, err)
	}
	c.NS, err = c.d.topo.OpenNS(c.Name, fmt.Sprintf("/proc/%d/ns/net", c.PID))
	return err
}

// Remove kills and removes the container.
func (c *Container) Remove(ctx context.Context) error { return c.d.remove(ctx, c.ID) }

// NewNetwork makes a bridge network as `docker network create` does; the bridge gets the given name. The
// subnet is a prefix.
func (d *Daemon) NewNetwork(ctx context.Context, name, bridge, subnet string) error {
	return d.api.call(ctx, "POST", "/networks/create", map[string]any{
		"Name": name, "Driver": "bridge", "CheckDuplicate": true,
		"Options": map[string]string{"com.docker.network.bridge.name": bridge},
		"IPAM":    map[string]any{"Config": []map[string]string{{"Subnet": subnet}}},
	}, nil)
}
