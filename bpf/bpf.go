// SPDX-License-Identifier: Apache-2.0

// Package bpf owns layout: the per-packet half in C and what bpf2go makes of it. It gives the compiled
// object and the Go twins of every struct and enum in abi.h, and nothing that means anything: package
// dataplane, the only production importer, does that.
package bpf

//go:generate go tool bpf2go -go-package bpf -tags linux -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare -I/usr/include/x86_64-linux-gnu" -type nat_reason -type nat_event_type -type nat_state -type nat_timeout -type nat_link_kind -type nat_behavior -type nat_l4 -type nat_program -type nat_xdp_program -type nat_command -type nat_answer -type nat_pool_id -type nat_fragment_way -type session_target -type nat_request4 -type nat_event nat nat.bpf.c
//go:generate go tool bpf2go -go-package bpf -tags linux -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare -DNAT_IPV6 -I/usr/include/x86_64-linux-gnu" -type nat_request6 nat6 nat.bpf.c
