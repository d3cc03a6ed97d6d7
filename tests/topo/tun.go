// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// TunLink joins two namespaces by a pair of TUN devices, which carry no Ethernet header: what is sent to one is
// received from the other, by goroutines of this process that end with the topology. MTU 0 is the kernel's (1500).
func (t *Topo) TunLink(a, b End, mtu int) error {
	near, err := a.openTun()
	if err != nil {
		return err
	}
	far, err := b.openTun()
	if err != nil {
		return errors.Join(err, near.Close())
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { pump(near, far) })
	pumps.Go(func() { pump(far, near) })
	t.Defer(fmt.Sprintf("close tun devices %s and %s", a.Name, b.Name), func() error {
		near.Close() // ends the pumps' reads; may be closed already, by a pump
		far.Close()
		pumps.Wait()
		return nil
	})
	for _, e := range []End{a, b} {
		if mtu != 0 {
			if err := e.NS.SetMTU(e.Name, mtu); err != nil {
				return err
			}
		}
		if err := e.configure(); err != nil {
			return err
		}
	}
	return nil
}

// openTun makes the device, which lives as long as the file.
func (e End) openTun() (file *os.File, err error) {
	err = e.NS.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(e.Name)
		if err == nil {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		file = os.NewFile(uintptr(fd), "/dev/net/tun") // only now: a file without a device cannot be polled
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("make tun device %s in namespace %s: %w", e.Name, e.NS.Name, err)
	}
	return file, nil
}

// pump carries packets until one of the devices is gone, and takes the other one away then, as with a veth pair. A
// device that is down refuses packets: they are lost.
func pump(from, to *os.File) {
	defer from.Close()
	defer to.Close()
	packet := make([]byte, 1<<16)
	for {
		n, err := from.Read(packet)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		if _, err := to.Write(packet[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}
