// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/conenat/conenat/tests/build"
	"github.com/conenat/conenat/tests/family"
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
	Network string // empty: the default bridge
	Addr    string // a fixed address, for networks made by a user; empty: Docker chooses
	// Publish has the container's port or ports ("80/tcp", "8000-8009/udp") and where on the host, separated by
	// commas: "ADDR:PORT", ":PORT" (every address), ":9000-9009" (as many), ":" (Docker chooses).
	Publish map[string]string
	Labels  map[string]string
	Restart string // restart policy: "always", "unless-stopped", …; empty: none
	// Idle: without a cnprobe, which would end with dockerd. Container.Client is nil; probe.In(Container.NS) acts
	// in its place.
	Idle bool
}

// Container is a running container with a cnprobe in it, by which it is a probe.Host.
type Container struct {
	*probe.Client
	ID    string
	Name  string
	PID   int        // in this process's PID namespace
	Addr  netip.Addr // of Config.Family, in the network that it was started in; the zero Addr: it has none there
	Addr6 netip.Addr // likewise, of IPv6 whatever the family
	NS    *topo.NS
	spec  Spec
	d     *Daemon
}

type endpoint struct {
	IPAMConfig        *ipam  `json:",omitempty"`
	IPAddress         string `json:",omitempty"`
	GlobalIPv6Address string `json:",omitempty"`
}

type ipam struct {
	IPv4Address string
	IPv6Address string `json:",omitempty"`
}

// fixed is an address that a container is to have.
func (d *Daemon) fixed(addr string) *ipam {
	if d.family == family.V4 {
		return &ipam{IPv4Address: addr}
	}
	return &ipam{addr, d.family.Text(addr)}
}

// Run starts a container of ProbeImage.
func (d *Daemon) Run(ctx context.Context, spec Spec) (*Container, error) {
	if err := d.probeImage(ctx); err != nil {
		return nil, fmt.Errorf("make image %s: %w", ProbeImage, err)
	}
	if spec.Network == "" {
		spec.Network = "bridge"
	}
	c := &Container{Name: spec.Name, spec: spec, d: d}
	err := c.create(ctx)
	if err == nil {
		err = c.Start(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("run container %s: %w", spec.Name, err)
	}
	return c, nil
}

func (c *Container) create(ctx context.Context) error {
	body, err := c.spec.body(c.d)
	if err != nil {
		return err
	}
	var created struct{ ID string }
	query := ""
	if c.spec.Name != "" {
		query = "?" + url.Values{"name": {c.spec.Name}}.Encode()
	}
	err = c.d.api.call(ctx, "POST", "/containers/create"+query, body, &created)
	c.ID = created.ID
	return err
}

// Start starts the container after Stop, with a new probe.
func (c *Container) Start(ctx context.Context) error {
	if err := c.attach(ctx); err != nil {
		return err
	}
	if err := c.post(ctx, "/start", nil); err != nil {
		return err
	}
	return c.Inspect(ctx)
}

// Stop is `docker stop`.
func (c *Container) Stop(ctx context.Context) error { return c.post(ctx, "/stop", nil) }

// Restart is `docker restart`, with a new probe.
func (c *Container) Restart(ctx context.Context) error {
	if err := c.post(ctx, "/restart", nil); err != nil {
		return err
	}
	if err := c.attach(ctx); err != nil {
		return err
	}
	return c.Inspect(ctx)
}

// Connect is `docker network connect`; an empty address leaves the choice to Docker.
func (c *Container) Connect(ctx context.Context, network, addr string) error {
	body := map[string]any{"Container": c.ID}
	if addr != "" {
		body["EndpointConfig"] = endpoint{IPAMConfig: c.d.fixed(addr)}
	}
	return c.d.api.call(ctx, "POST", "/networks/"+network+"/connect", body, nil)
}

// Disconnect is `docker network disconnect`.
func (c *Container) Disconnect(ctx context.Context, network string) error {
	return c.d.api.call(ctx, "POST", "/networks/"+network+"/disconnect", map[string]any{"Container": c.ID}, nil)
}

func (c *Container) post(ctx context.Context, what string, body any) error {
	return c.d.api.call(ctx, "POST", "/containers/"+c.ID+what, body, nil)
}

// attach connects the container's probe.
func (c *Container) attach(ctx context.Context) error {
	if c.spec.Idle {
		return nil
	}
	stream, err := c.d.api.attach(ctx, c.ID)
	if err != nil {
		return err
	}
	c.Client = probe.Remote(stream).In(c.d.family)
	c.d.topo.Defer("close probe of container "+c.Name, c.Client.Close)
	return nil
}

func (s Spec) body(d *Daemon) (map[string]any, error) {
	exposed, bindings := map[string]any{}, map[string][]binding{}
	for ports, external := range s.Publish {
		for _, to := range strings.Split(external, ",") {
			if err := publish(bindings, ports, d.family.Text(to)); err != nil {
				return nil, fmt.Errorf("publish %s to %q: %w", ports, to, err)
			}
		}
	}
	for port := range bindings {
		exposed[port] = struct{}{}
	}
	body := map[string]any{
		"Image": ProbeImage, "Cmd": []string{"/bin/cnprobe"}, "Labels": s.Labels, "ExposedPorts": exposed,
		"HostConfig": map[string]any{
			"NetworkMode": s.Network, "PortBindings": bindings, "RestartPolicy": map[string]any{"Name": s.Restart},
		},
	}
	if s.Idle {
		body["Cmd"] = []string{"/bin/busybox", "sleep", "1000000"}
		body["StopSignal"] = "SIGKILL" // as process 1 of its namespace it has no other
	} else {
		for _, key := range []string{"OpenStdin", "StdinOnce", "AttachStdin", "AttachStdout", "AttachStderr"} {
			body[key] = true
		}
	}
	if s.Addr != "" {
		body["NetworkingConfig"] = map[string]any{"EndpointsConfig": map[string]endpoint{s.Network: {IPAMConfig: d.fixed(s.Addr)}}}
	}
	return body, nil
}

type binding struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

// publish adds the bindings of a port or range.
func publish(bindings map[string][]binding, ports, to string) error {
	ports, protocol, _ := strings.Cut(ports, "/")
	first, count, err := portRange(ports)
	if err != nil {
		return err
	}
	i := strings.LastIndexByte(to, ':')
	if i < 0 {
		return errors.New("want ADDR:PORT")
	}
	host, hostCount := 0, count
	if to[i+1:] != "" {
		if host, hostCount, err = portRange(to[i+1:]); err != nil {
			return err
		}
	}
	if hostCount != count {
		return fmt.Errorf("%d ports on %d", count, hostCount)
	}
	for n := range count {
		key, b := fmt.Sprintf("%d/%s", first+n, protocol), binding{HostIP: strings.Trim(to[:i], "[]")}
		if host != 0 {
			b.HostPort = strconv.Itoa(host + n)
		}
		bindings[key] = append(bindings[key], b)
	}
	return nil
}

// portRange reads "80" or "8000-8009".
func portRange(s string) (first, count int, err error) {
	low, high, ranged := strings.Cut(s, "-")
	if !ranged {
		high = low
	}
	first, err = strconv.Atoi(low)
	if err != nil {
		return 0, 0, err
	}
	last, err := strconv.Atoi(high)
	return first, last - first + 1, err
}

// Inspect reads PID, NS and Addr anew, as after a restart that a policy made. The address is that of another
// network if the first has none.
func (c *Container) Inspect(ctx context.Context) error {
	var state struct {
		Name            string
		State           struct{ Pid int }
		NetworkSettings struct{ Networks map[string]endpoint }
	}
	if err := c.d.api.call(ctx, "GET", "/containers/"+c.ID+"/json", nil, &state); err != nil {
		return err
	}
	c.Name, c.PID = state.Name[1:], state.State.Pid
	if c.PID == 0 {
		return fmt.Errorf("container %s does not run", c.Name)
	}
	own := state.NetworkSettings.Networks[c.spec.Network]
	var err, err6 error
	c.Addr, err = addrOrNone(own.IPAddress)
	c.Addr6, err6 = addrOrNone(own.GlobalIPv6Address)
	if err = errors.Join(err, err6); err != nil {
		return fmt.Errorf("address in network %s: %w", c.spec.Network, err)
	}
	if c.d.family == family.V6 {
		c.Addr = c.Addr6
	}
	c.NS, err = c.d.topo.OpenNS(c.Name, fmt.Sprintf("/proc/%d/ns/net", c.PID))
	return err
}

// addrOrNone is the zero Addr for "".
func addrOrNone(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	return netip.ParseAddr(s)
}

// Remove kills and removes the container.
func (c *Container) Remove(ctx context.Context) error { return c.d.remove(ctx, c.ID) }

// NewNetwork makes a bridge network as `docker network create` does; the bridge gets the given name. The
// subnet is a prefix.
func (d *Daemon) NewNetwork(ctx context.Context, name, bridge, subnet string) error {
	return d.CreateNetwork(ctx, NetworkSpec{Name: name, Bridge: bridge, Subnet: subnet})
}

// NetworkSpec is what `docker network create` would be given.
type NetworkSpec struct {
	Name     string
	Driver   string // empty: bridge
	Bridge   string // the bridge's name; empty: Docker's choice
	Subnet   string // a prefix; empty: Docker's choice
	IPv6     string // a prefix; empty: none
	Internal bool
	Options  map[string]string // the driver's: "com.docker.network.bridge.enable_icc": "false", "parent": "eth0"
	Labels   map[string]string
}

// CreateNetwork is `docker network create`.
func (d *Daemon) CreateNetwork(ctx context.Context, spec NetworkSpec) error {
	options := map[string]string{}
	maps.Copy(options, spec.Options)
	if spec.Bridge != "" {
		options["com.docker.network.bridge.name"] = spec.Bridge
	}
	if spec.IPv6 == "" && d.family == family.V6 {
		spec.IPv6 = d.family.Text(spec.Subnet)
	}
	var subnets []map[string]string
	for _, prefix := range []string{spec.Subnet, spec.IPv6} {
		if prefix != "" {
			subnets = append(subnets, map[string]string{"Subnet": prefix})
		}
	}
	driver := spec.Driver
	if driver == "" {
		driver = "bridge"
	}
	return d.api.call(ctx, "POST", "/networks/create", map[string]any{
		"Name": spec.Name, "Driver": driver, "CheckDuplicate": true, "Internal": spec.Internal, "EnableIPv6": spec.IPv6 != "",
		"Options": options, "Labels": spec.Labels, "IPAM": map[string]any{"Config": subnets},
	}, nil)
}

// RemoveNetwork is `docker network rm`.
func (d *Daemon) RemoveNetwork(ctx context.Context, name string) error {
	return d.api.call(ctx, "DELETE", "/networks/"+name, nil, nil)
}
