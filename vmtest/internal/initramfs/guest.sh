#!/run/vmtest/busybox sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs as process 1 in the guest's root: what a distribution's start-up would have done, then the command.
# Descriptor 7 is the first port. The command writes into pipes, for a port can be opened only once, and
# /dev/stdout opens it again.
b=/run/vmtest/busybox

fail() {
	echo "failed $*" >&7
	$b poweroff -f
}

$b mount --make-rshared /
[ -d /sys/fs/bpf ] && $b mount -t bpf bpf /sys/fs/bpf
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup || fail "mount the cgroups"
$b mount -t debugfs debugfs /sys/kernel/debug
$b mount -t tracefs tracefs /sys/kernel/tracing
$b mkdir -p /dev/pts /dev/shm /run/tmp /run/lock
$b mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
$b mount -t tmpfs -o mode=1777 tmpfs /dev/shm
$b ln -s /proc/self/fd /dev/fd
$b ln -s /proc/self/fd/0 /dev/stdin
$b ln -s /proc/self/fd/1 /dev/stdout
$b ln -s /proc/self/fd/2 /dev/stderr
$b chmod 1777 /run/tmp
# An overlay cannot lie on an overlay, and dockerd makes its own here.
for d in /var/lib/docker /var/lib/containerd; do
	$b mkdir -p $d && $b mount -t tmpfs tmpfs $d
done
modules=$($b cat /run/vmtest/modules-dir)
$b mkdir -p "/lib/modules/${modules##*/}" && $b mount --bind "$modules" "/lib/modules/${modules##*/}" ||
	fail "find the modules, $modules: is the cache on the host's root?"
$b hostname vmtest
$b ip link set lo up
# A CPU in software emulation may not come to its softirqs for seconds: 1000 packets of all interfaces together are few then.
echo 100000 >/proc/sys/net/core/netdev_max_backlog
ulimit -n 65536

$b mkfifo /run/vmtest/stdout /run/vmtest/stderr
$b cat /run/vmtest/stdout >/dev/vport0p2 7>&- &
out=$!
$b cat /run/vmtest/stderr >/dev/vport0p3 7>&- &
err=$!

echo command >&7
$b sh /run/vmtest/command.sh </dev/null >/run/vmtest/stdout 2>/run/vmtest/stderr 7>&-
status=$?

# What the command left running may hold the pipes open for ever.
n=0
while [ $n -lt 200 ] && { $b kill -0 $out || $b kill -0 $err; } 2>/dev/null; do
	$b usleep 10000
	n=$((n + 1))
done
echo "exit $status" >&7
$b poweroff -f
