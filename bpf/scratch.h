/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Memory for what is too large for the stack, of which a whole chain of calls has 512
 * bytes: one of each CPU. A packet is not interrupted by another one on its CPU (the
 * hooks, the timer and BPF_PROG_RUN all run with bottom halves off), and none of
 * these is used twice in one chain of calls.
 */
#ifndef CONENAT_SCRATCH_H
#define CONENAT_SCRATCH_H

#include "maps.h"

/* name_new(): zeros; NULL never, but the verifier does not know. */
#define SCRATCH(type_, name_)                                        \
	struct {                                                     \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);             \
		__uint(max_entries, 1);                              \
		__type(key, __u32);                                  \
		__type(value, type_);                                \
	} name_##_scratch SEC(".maps");                              \
	static __always_inline type_ *name_##_get(void)              \
	{                                                            \
		__u32 zero = 0;                                      \
                                                                     \
		return bpf_map_lookup_elem(&name_##_scratch, &zero); \
	}                                                            \
	static __always_inline type_ *name_##_new(void)              \
	{                                                            \
		type_ *it = name_##_get();                           \
                                                                     \
		if (it)                                              \
			__builtin_memset(it, 0, sizeof(*it));        \
		return it;                                           \
	}

#endif /* CONENAT_SCRATCH_H */
