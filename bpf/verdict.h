/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a reason to a verdict: counted here, and nowhere else. */
#ifndef CONENAT_VERDICT_H
#define CONENAT_VERDICT_H

#include "reply.h"

/*
 * "Next program": TC_ACT_OK would end a TCX chain, and programs of others that
 * are attached behind ours would never run.
 */
#define VERDICT_NEXT TC_ACT_UNSPEC

static __always_inline int verdict(const struct nat *n, int rc)
{
	__u32 reason = -rc;
	__u64 *counter = bpf_map_lookup_elem(&counters, &reason);

	if (counter)
		(*counter)++;
	if (reason <= REASON_LAST_DIVERTED)
		return n->action;
	if (reason <= REASON_LAST_PASSED)
		return VERDICT_NEXT;
	return reply(n->skb, &n->p, n->zone, reason, n->egress);
}

#endif /* CONENAT_VERDICT_H */
