// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/topo"
)

// Daemon is a running dockerd.
type Daemon struct {
	Socket  string // the API's unix socket
	Host    *topo.NS
	topo    *topo.Topo
	dir     string
	api     *api
	process *topo.Process
	args    []string // dockerd and its flags
	family  family.Family
	mounts  *os.File // its mount namespace, which holds the sockets of the containers' shims
	images  map[string]bool
}

// Config says how dockerd is started. The zero value is Docker as it comes.
type Config struct {
	Args []string // further flags of dockerd
	// IPv6 gives docker0 the network that is 172.17.0.0/16's twin (tests/family), with Docker's own NAT for it.
	IPv6 bool
	// Family is that of the containers' probes and of Addr, and what is asked for by an address of IPv4 (subnets, fixed addresses,
	// where ports are published) has its twin. IPv6 stands beside IPv4 then, and IPv6 is meant above, too.
	Family family.Family
}

func (c Config) args() []string {
	if !c.IPv6 && c.Family != family.V6 {
		return c.Args
	}
	prefix := family.V6.Text("172.17.0.0/16")
	return append([]string{"--experimental", "--ipv6", "--fixed-cidr-v6", prefix, "--ip6tables"}, c.Args...)
}

// In the daemon's private mounts, /run is empty but for its own directory, should TMPDIR be there (as vmtest has it), and what
// it writes to /etc is kept apart. The script then becomes the daemon. mount's -c keeps it from making a path of the
// descriptor, which leads to the directory that /run hides now.
const privateMounts = `set -e
exec 3<"$0"
mount -t tmpfs tmpfs /run
[ -d "$0" ] || { mkdir -p "$0" && mount -c --bind /proc/self/fd/3 "$0"; }
exec 3<&-
mkdir "$0/etc"
mount -t tmpfs tmpfs "$0/etc"
mkdir "$0/etc/upper" "$0/etc/work"
mount -t overlay -o lowerdir=/etc,upperdir="$0/etc/upper",workdir="$0/etc/work" overlay /etc
exec "$@"`

// Start starts dockerd in a namespace and waits until its API answers: with docker0 on 172.17.0.1/16, on
// overlay2 or, where the filesystem refuses that, on vfs. Close of the topology stops it.
func Start(ctx context.Context, t *topo.Topo, host *topo.NS, cfg Config) (*Daemon, error) {
	d, err := start(ctx, t, host, cfg, "overlay2")
	if err != nil && strings.Contains(err.Error(), "graphdriver") {
		d, err = start(ctx, t, host, cfg, "vfs")
	}
	return d, err
}

func start(ctx context.Context, t *topo.Topo, host *topo.NS, cfg Config, storage string) (*Daemon, error) {
	dir, err := os.MkdirTemp(t.Dir(), "docker-")
	if err != nil {
		return nil, err
	}
	d := &Daemon{Socket: filepath.Join(dir, "docker.sock"), Host: host, topo: t, dir: dir, images: map[string]bool{}, family: cfg.Family}
	d.api = newAPI(d.Socket)
	t.Defer("close the Docker API", d.api.close)
	config := filepath.Join(dir, "daemon.json") // not the machine's
	if err := os.WriteFile(config, []byte("{}\n"), 0o600); err != nil {
		return nil, err
	}
	t.Defer("remove docker's cgroups", d.removeCgroups)
	t.Defer("end what a dockerd that was stopped left running", d.removeProcesses)
	d.args = append([]string{"dockerd",
		"--config-file", config,
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "-H", "unix://" + d.Socket,
		"--storage-driver", storage, "--cgroup-parent", "/" + t.Name(), "--bip", "172.17.0.1/16"}, cfg.args()...)
	unshare := append([]string{"--mount", "sh", "-c", privateMounts, dir}, d.args...)
	if err := d.run(ctx, host.Command(context.Background(), "unshare", unshare...)); err != nil {
		return nil, fmt.Errorf("dockerd in namespace %s: %w", host.Name, err)
	}
	if d.mounts, err = os.Open(fmt.Sprintf("/proc/%d/ns/mnt", d.PID())); err != nil {
		return nil, err
	}
	t.Defer("close the mount namespace of dockerd", d.mounts.Close)
	return d, nil
}

// Stop ends dockerd by SIGTERM. Its containers end with it unless it has --live-restore.
func (d *Daemon) Stop() error { return d.process.Stop(30 * time.Second) }

// Kill is kill -9. Containers live on, and the next dockerd ends them or, with --live-restore, takes them over.
// It returns when containerd, which dies of it, has been reaped: a dockerd that finds its PID waits for it in vain.
func (d *Daemon) Kill() error {
	content, err := os.ReadFile(filepath.Join(d.dir, "exec", "containerd", "containerd.pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return fmt.Errorf("read containerd.pid: %w", err)
	}
	if err := d.process.Kill(); err != nil {
		return err
	}
	return topo.Poll(context.Background(), 10*time.Second, "wait for the end of containerd", func() (bool, error) {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH), nil
	})
}

// StartAgain starts dockerd after Stop or Kill, with the same flags, data and mounts, and waits until its API
// answers. By then containers with a restart policy run again.
func (d *Daemon) StartAgain(ctx context.Context) error {
	mounts := fmt.Sprintf("--mount=/proc/%d/fd/%d", os.Getpid(), d.mounts.Fd())
	args := append([]string{mounts, "--"}, d.args...)
	if err := d.run(ctx, d.Host.Command(context.Background(), "nsenter", args...)); err != nil {
		return fmt.Errorf("start dockerd again in namespace %s: %w", d.Host.Name, err)
	}
	return nil
}

// run starts the daemon and waits until it is ready.
func (d *Daemon) run(ctx context.Context, cmd *exec.Cmd) error {
	logPath := filepath.Join(d.dir, "log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if d.process, err = d.topo.Start("dockerd", cmd); err != nil {
		return err
	}
	d.topo.Defer("remove containers", d.removeContainers)
	err = topo.Poll(ctx, 30*time.Second, "wait for the API", func() (bool, error) {
		select {
		case <-d.process.Done():
			return true, nil
		default:
			err := d.api.ping(ctx)
			return err == nil, err
		}
	})
	select {
	case <-d.process.Done():
		err = errors.New("ended at once")
	default:
	}
	if err != nil {
		return fmt.Errorf("%w; its log ends with:\n%s", err, tail(logPath, 15))
	}
	return nil
}

// PID is the daemon's.
func (d *Daemon) PID() int { return d.process.PID() }

// Log is the end of what the daemon logged so far.
func (d *Daemon) Log() string { return tail(filepath.Join(d.dir, "log"), 20) }

func tail(path string, lines int) string {
	content, _ := os.ReadFile(path)
	all := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// CLI runs the docker command line against this daemon and returns what it printed. Neither contexts nor
// credentials of the user are used.
func (d *Daemon) CLI(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"-H", "unix://" + d.Socket}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+filepath.Join(d.dir, "cli"), "DOCKER_CONTEXT=", "DOCKER_HOST=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return "", fmt.Errorf("docker %s: %w", strings.Join(args, " "), err)
	}
	return string(out), nil
}

// removeContainers leaves no shim behind, which would outlive the daemon.
func (d *Daemon) removeContainers() error {
	select {
	case <-d.process.Done():
		return nil // removeProcesses and removeCgroups kill what is left
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience.For(20*time.Second))
	defer cancel()
	var containers []struct{ ID string }
	if err := d.api.call(ctx, "GET", "/containers/json?all=1", nil, &containers); err != nil {
		return err
	}
	var errs []error
	for _, c := range containers {
		errs = append(errs, d.remove(ctx, c.ID))
	}
	return errors.Join(errs...)
}

func (d *Daemon) remove(ctx context.Context, id string) error {
	err := d.api.call(ctx, "DELETE", "/containers/"+id+"?force=1&v=1", nil, nil)
	if errors.Is(err, errNoSuch) {
		return nil
	}
	return err
}

// removeProcesses ends the containers' shims, which outlive their dockerd, and are known by its directory.
func (d *Daemon) removeProcesses() error {
	entries, err := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range entries {
		cmdline, readErr := os.ReadFile(path)
		pid, notPID := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if readErr == nil && notPID == nil && bytes.Contains(cmdline, []byte(d.dir+"/exec/")) {
			err = errors.Join(err, killAndWait(pid))
		}
	}
	return err
}

func killAndWait(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return topo.Poll(context.Background(), 5*time.Second, fmt.Sprintf("wait for the end of process %d", pid), func() (bool, error) {
		return !topo.Alive(pid), nil
	})
}

// removeCgroups removes what dockerd leaves: its parent cgroup in every hierarchy.
func (d *Daemon) removeCgroups() error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		found, _ := filepath.Glob(pattern + d.topo.Name())
		for _, dir := range found {
			errs = append(errs, topo.RemoveCgroup(dir))
		}
	}
	return errors.Join(errs...)
}
