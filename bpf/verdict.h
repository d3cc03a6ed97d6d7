/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a reason to a verdict: counted here, and nowhere else. */
#ifndef CONENAT_VERDICT_H
#define CONENAT_VERDICT_H

#include "route.h"

/*
 * "Next program": TC_ACT_OK would end a TCX chain, and programs of others that
 * are attached behind ours would never run.
 */
#define VERDICT_NEXT TC_ACT_UNSPEC

/*
 * Marks a packet that the direct path has translated, for the outside egress
 * hook, which it meets again. tc_index is scratch space of traffic control.
 */
#define DIRECT_PATH_MARK 0xc07e

static __always_inline int verdict(const struct nat *n, int rc)
{
	__u32 reason = -rc;
	__u64 *counter = bpf_map_lookup_elem(&counters, &reason);

	if (counter)
		(*counter)++;
	if (reason <= REASON_LAST_TRANSLATED)
		return n->action;
	if (reason <= REASON_LAST_PASSED)
		return VERDICT_NEXT;
	return TC_ACT_SHOT;
}

#endif /* CONENAT_VERDICT_H */
