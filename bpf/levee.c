//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Levee's data plane. A packet's way is one pass: parse, switch, ban (and allow), sanity, control,
 * limit, verdict. Each stage is a header of its own; it decides, or hands on with
 * REASON_CONTINUE. Source-address checks stand before anything that depends on the transport.
 */
#include "kernel.h"
#include "types.h"
#include "config.h"
#include "maps.h"
#include "parse.h"
#include "switch.h"
#include "ban.h"
#include "guess.h"
#include "sanity.h"
#include "control.h"
#include "limit.h"
#include "verdict.h"
#include "short.h"

static __always_inline enum reason way(struct xdp_md *ctx, const struct control *control,
				       struct pkt *pkt)
{
	enum reason parsed = parse_l3(ctx, pkt);
	enum reason reason = stage_switch(control);

	if (reason != REASON_CONTINUE)
		return reason;
	if (parsed == REASON_NON_IP) {
		reason = stage_control(control, pkt);
		return reason == REASON_CONTINUE ? parsed : reason;
	}
	if (parsed != REASON_CONTINUE)
		return cfg_sanity ? parsed : REASON_CONTINUE;

	if (cfg_bans) {
		reason = stage_ban(control, pkt);
		if (reason != REASON_CONTINUE)
			return reason;
	}
	parse_l4(ctx, pkt);
	if (cfg_sanity) {
		reason = stage_sanity(pkt);
		if (reason != REASON_CONTINUE)
			return reason;
	}
	reason = stage_control(control, pkt);
	if (reason != REASON_CONTINUE)
		return reason;
	return cfg_limits ? stage_limit(control, pkt) : REASON_CONTINUE;
}

/* The way of what the short one does not answer. A global function, so that each is walked by itself. */
__noinline int long_way(struct xdp_md *ctx)
{
	struct control *control = lookup(controls, 0);
	struct pkt pkt = {};

	if (!control)
		return XDP_PASS;
	return verdict(ctx, control, &pkt, way(ctx, control, &pkt));
}

SEC("xdp")
int levee(struct xdp_md *ctx)
{
	struct control *control = lookup(controls, 0);
	int action;

	if (!control)
		return XDP_PASS;
	action = short_way(ctx, control);
	return likely(action >= 0) ? action : long_way(ctx);
}

char license_text[] SEC("license") = "Dual BSD/GPL";
