/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The address family that an object is made for: nat.bpf.c is compiled once for each,
 * with maps of its own. Every header after these is written in the plain names
 * (struct session_key, sessions, nat_addr, addr_equal), to which family4.h and
 * family6.h give their meaning: no second copy of any logic.
 */
#ifndef CONENAT_FAMILY_H
#define CONENAT_FAMILY_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define AF_INET 2
#define AF_INET6 10

/*
 * A function that the verifier checks once and on its own, whoever calls it:
 * what keeps programs of this size below its limits, on 6.1 too. Its pointers
 * are to plain memory and may be NULL as far as the verifier knows.
 */
#define NAT_GLOBAL __attribute__((noinline))

#ifdef NAT_IPV6
#include "family6.h"
#else
#include "family4.h"
#endif

#endif /* CONENAT_FAMILY_H */
