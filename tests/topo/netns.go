// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/family"
)

const netnsDir = "/run/netns"

// NS is a network namespace. Its methods may be called from any goroutine.
type NS struct {
	Name string // as `ip netns` lists it; a container's is the container's
	Path string // for nsenter --net=PATH
	topo *Topo
	fd   netns.NsHandle
	nl   *netlink.Handle
	ipv6 bool // as Topo.EnableIPv6 says
}

// NewNS makes a namespace cn-PID-N-name with a loopback that is up, and without IPv6 unless the topology has it.
func (t *Topo) NewNS(name string) (*NS, error) {
	full := t.name + "-" + name
	path := filepath.Join(netnsDir, full)
	if err := createNetns(path); err != nil {
		return nil, errors.Join(fmt.Errorf("make network namespace %s: %w", full, err), removeNetns(path))
	}
	t.Defer("remove network namespace "+full, func() error { return removeNetns(path) })
	ns, err := t.OpenNS(full, path)
	if err != nil {
		return nil, err
	}
	if ns.ipv6 = t.ipv6; ns.ipv6 {
		return ns, errors.Join(ns.quietIPv6(), ns.Up("lo"))
	}
	return ns, errors.Join(ns.Up("lo"), ns.DisableIPv6())
}

// OpenNS takes up a namespace that something else made, such as a container's /proc/PID/ns/net.
func (t *Topo) OpenNS(name, path string) (*NS, error) {
	fd, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	ns := &NS{Name: name, Path: path, topo: t, fd: fd}
	t.Defer("close network namespace "+name, func() error {
		if ns.nl != nil {
			ns.nl.Close()
		}
		return ns.fd.Close()
	})
	err = ns.Do(func() (err error) {
		ns.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink in namespace %s: %w", name, err)
	}
	return ns, nil
}

// createNetns makes a namespace and holds it by a mount at path, as `ip netns add` does.
func createNetns(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		return os.NewSyscallError("mount", unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""))
	})
}

func removeNetns(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err == nil {
		defer removeFragmentNetns(st.Ino)
	}
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// removeFragmentNetns takes away what a conenat that nobody detached has left of a namespace outside of it: another one, where
// fragments were put in order.
func removeFragmentNetns(host uint64) {
	left, _ := filepath.Glob(fmt.Sprintf("/run/conenat/fragments-%d-*", host)) // the error is for a bad pattern
	for _, path := range left {
		_ = unix.Unmount(path, unix.MNT_DETACH)
		_ = os.Remove(path)
	}
}

// onThread runs fn on an OS thread that no other goroutine uses and puts the thread back into the network
// namespace it came from. A thread that cannot be put back dies with its goroutine.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("function ended its goroutine (t.FailNow in a namespace?)")
		defer func() { done <- err }()
		runtime.LockOSThread()
		home, homeErr := netns.Get()
		if homeErr != nil {
			err = fmt.Errorf("open the thread's network namespace: %w", homeErr)
			return
		}
		defer func() {
			if netns.Set(home) == nil {
				runtime.UnlockOSThread()
			}
			home.Close()
		}()
		err = fn()
	}()
	return <-done
}

// Do runs fn on a thread inside the namespace. Sockets that fn opens stay in the namespace whoever uses
// them later; goroutines that it starts do not run there. fn must not call t.FailNow.
func (ns *NS) Do(fn func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns.fd); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.Name, err)
		}
		return fn()
	})
}

// Sysctl sets net.… sysctls of the namespace, each "key=value" with slashes or dots in the key.
func (ns *NS) Sysctl(settings ...string) error {
	return ns.Do(func() error {
		for _, s := range settings {
			key, value, _ := strings.Cut(s, "=")
			path := sysctlPath(key)
			if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
				return fmt.Errorf("set %s in namespace %s: %w", s, ns.Name, err)
			}
		}
		return nil
	})
}

func sysctlPath(key string) string {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	return "/proc/sys/" + key
}

// DisableIPv6 keeps neighbour discovery and router solicitations out of captures and counters.
func (ns *NS) DisableIPv6() error {
	err := ns.Sysctl("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
	if errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
		return nil
	}
	return err
}

// EnableIPv6 is for a dockerd that is to have it; NewNS switches it off. It gives nothing an address.
func (ns *NS) EnableIPv6() error {
	return ns.Sysctl("net.ipv6.conf.all.disable_ipv6=0", "net.ipv6.conf.default.disable_ipv6=0")
}

// quietIPv6 makes IPv6 as quick and as silent as IPv4: an address is there at once and stays when its interface goes down, and
// nothing is asked of routers.
func (ns *NS) quietIPv6() error {
	var settings []string
	for _, which := range []string{"all", "default"} {
		for _, s := range []string{"accept_ra=0", "accept_dad=0", "dad_transmits=0", "router_solicitations=0", "keep_addr_on_down=1"} {
			settings = append(settings, "net.ipv6.conf."+which+"."+s)
		}
	}
	return ns.Sysctl(settings...)
}

// Families are those that the namespace has addresses of.
func (ns *NS) Families() []family.Family {
	if ns.ipv6 {
		return []family.Family{family.V4, family.V6}
	}
	return []family.Family{family.V4}
}

// Forward makes a router of the namespace, in each of its families.
func (ns *NS) Forward() error {
	for _, f := range ns.Families() {
		if err := ns.Sysctl(f.Forwarding()); err != nil {
			return err
		}
	}
	return nil
}

// ListenUDP opens a UDP socket in the namespace; the zero local is any address and a free port.
func (ns *NS) ListenUDP(local netip.AddrPort) (conn *net.UDPConn, err error) {
	err = ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", udpAddr(local))
		return err
	})
	return conn, err
}

// DialUDP opens a connected UDP socket in the namespace.
func (ns *NS) DialUDP(local, remote netip.AddrPort) (conn *net.UDPConn, err error) {
	err = ns.Do(func() (err error) {
		conn, err = net.DialUDP("udp", udpAddr(local), udpAddr(remote))
		return err
	})
	return conn, err
}

// ListenTCP opens a listening TCP socket in the namespace.
func (ns *NS) ListenTCP(local netip.AddrPort) (l *net.TCPListener, err error) {
	err = ns.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", tcpAddr(local))
		return err
	})
	return l, err
}

// DialTCP connects from the namespace; the zero local is any address and a free port.
func (ns *NS) DialTCP(local, remote netip.AddrPort) (conn *net.TCPConn, err error) {
	err = ns.Do(func() (err error) {
		conn, err = net.DialTCP("tcp", tcpAddr(local), tcpAddr(remote))
		return err
	})
	return conn, err
}

func udpAddr(a netip.AddrPort) *net.UDPAddr {
	if a == (netip.AddrPort{}) {
		return nil
	}
	return net.UDPAddrFromAddrPort(a)
}

func tcpAddr(a netip.AddrPort) *net.TCPAddr {
	if a == (netip.AddrPort{}) {
		return nil
	}
	return net.TCPAddrFromAddrPort(a)
}
