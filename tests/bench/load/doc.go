// SPDX-License-Identifier: Apache-2.0

// Package load makes packets as fast as one CPU can, and counts them where they arrive: what a benchmark without the
// kernel's pktgen needs. It knows addresses and interfaces, and nothing of what is between them.
//
// A Generator runs an XDP program by BPF_PROG_RUN with BPF_F_TEST_XDP_LIVE_FRAMES (Linux 5.18), and each run is a packet that
// leaves by the interface. On a veth the other end gets them, if its GRO is on or it has an XDP program; else all of them are
// dropped, in silence. A Sink ends them at tc or at XDP: where packets come as frames of XDP, a sink at tc would measure how
// they become an sk_buff, and the other way round.
//
// A Burst is one frame of any kind, many times, and its end: where instructions are counted, not packets per second.
package load

//go:generate go tool bpf2go -go-package load -tags linux -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-sign-compare -I/usr/include/x86_64-linux-gnu" load load.bpf.c
//go:generate go tool bpf2go -go-package load -tags linux -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-sign-compare -I/usr/include/x86_64-linux-gnu" burst burst.bpf.c
