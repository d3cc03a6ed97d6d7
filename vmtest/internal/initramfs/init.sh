#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs as process 1 in the initramfs: loads the modules and makes the host's file system the root, read-only under
# a tmpfs. The first port takes the words of build.go.
export PATH=/bin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

fail() {
	echo "failed $*" >&7
	echo "vmtest: $*" >/dev/kmsg
	poweroff -f
}

load() { insmod "$1" || fail "load module ${1##*/}"; }

# virtio_console makes the ports, and comes among the first modules.
for m in /modules/*; do
	case $m in
	*-9p.ko) # what follows has the port to complain on
		load "$m"
		n=0
		until [ -c /dev/vport0p3 ]; do
			n=$((n + 1))
			[ $n -lt 1000 ] || { echo "vmtest: no virtio port" >/dev/kmsg && poweroff -f; }
			usleep 10000
		done
		exec 7>/dev/vport0p1
		echo userspace >&7
		case " $(cat /proc/cmdline) " in *" vmtest.probe "*) poweroff -f ;; esac
		;;
	*) load "$m" ;;
	esac
done

mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host /lower || fail "mount the host's root over 9p"
mount -t tmpfs -o size=75% tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /root || fail "mount the overlay"

mount --move /dev /root/dev
mount --move /sys /root/sys
mount -t tmpfs -o mode=755 tmpfs /root/run
mkdir -p /root/run/vmtest
cp /bin/busybox /vmtest/* /root/run/vmtest/
mount --move /proc /root/proc
exec switch_root /root /run/vmtest/busybox sh /run/vmtest/guest.sh
