/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "gcra.h"
#include "maps.h"
#include "parse.h"
#include "stat.h"

/*
 * What keeps the link and the path alive (ARP, neighbour discovery, ICMP errors) is no one's to
 * limit by source: it passes, each kind together under a generous cap. Neighbour discovery has a
 * cap of its own, since anybody can send ICMP errors from afar, but only the link sends this.
 */
static __always_inline enum reason stage_control(const struct control *control,
						 const struct pkt *pkt)
{
	struct control_cap *cap;

	if (likely(!(pkt->flags & PKT_CONTROL)))
		return REASON_CONTINUE;
	cap = lookup(control_caps, pkt->flags & PKT_NEIGHBOUR ? CAP_NEIGHBOUR : pkt->family);
	if (!cap || !control->control_burst)
		return REASON_CONTROL;
	switch (gcra_charge(&cap->tat, control->control_cost, control->control_burst,
			    bpf_ktime_get_ns())) {
	case GCRA_OVER:
		return REASON_CONTROL_CAP;
	case GCRA_CONTENDED:
		stat_add(STAT_CONTENDED);
	}
	return REASON_CONTROL;
}
