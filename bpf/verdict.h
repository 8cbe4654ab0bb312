/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "source.h"

static __always_inline void count(struct counter *counter, const struct pkt *pkt)
{
	if (!counter)
		return;
	counter->packets++;
	counter->bytes += pkt->length;
}

/* The counter of this interface for a reason; `monitored`: of what would be dropped, and passed. */
static __always_inline struct counter *counter_of(enum reason reason, __u32 family, bool monitored)
{
	__u32 row = cfg_interface_slot * REASON_MAX + reason;

	return lookup(counters, (row * FAMILY_MAX + family) * 2 + monitored);
}

/* Copies what is there of the frame, at most EVENT_BYTES. */
static __always_inline __u8 capture(struct xdp_md *ctx, __u8 *to)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	__u8 n = 0;

#pragma unroll
	for (int i = 0; i < EVENT_BYTES; i += 2) {
		if (data + i + 2 > data_end)
			break;
		*(__u16 *)(to + i) = *(__u16 *)(data + i);
		n = i + 2;
	}
	/* the last byte of a frame of odd length */
	if (n < EVENT_BYTES && data + n + 1 <= data_end) {
		to[n] = *(__u8 *)(data + n);
		n++;
	}
	return n;
}

/* Reads where the packet goes to, which nothing but an event asks for. */
static __always_inline void destination(struct xdp_md *ctx, const struct pkt *pkt, __u64 dst[2])
{
	if (pkt->family == FAMILY_IPV4) {
		struct iphdr *ip = at(ctx, pkt->l3, sizeof(*ip));

		if (ip)
			dst[1] = be32_to_cpu(ip->daddr);
	} else if (pkt->family == FAMILY_IPV6) {
		struct ipv6hdr *ip = at(ctx, pkt->l3, sizeof(*ip));

		if (ip) {
			dst[0] = be64_to_cpu(ip->daddr[0]);
			dst[1] = be64_to_cpu(ip->daddr[1]);
		}
	}
}

/*
 * Writes an event; `spoke` is the list and the limit that did. A global function that reads the packet
 * again: it runs for few, and so the others' struct pkt need not stand in memory for it.
 */
__noinline int event_write(struct xdp_md *ctx, __u32 reason, __u32 spoke, bool monitored, __u64 now)
{
	struct event *event;
	struct pkt pkt = {};

	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		stat_add(STAT_EVENTS_LOST);
		return 0;
	}
	if (parse_l3(ctx, &pkt) == REASON_CONTINUE)
		parse_l4(ctx, &pkt);
	__builtin_memset(event, 0, sizeof(*event));
	event->time = now;
	event->src[0] = pkt.src_hi;
	event->src[1] = pkt.src_lo;
	destination(ctx, &pkt, event->dst);
	event->ifindex = ctx->ingress_ifindex;
	event->length = pkt.length;
	event->list = spoke >> 8;
	event->sport = pkt.sport;
	event->dport = pkt.dport;
	event->reason = reason;
	event->family = pkt.family;
	event->protocol = pkt.protocol;
	event->limit = spoke & 0xFF;
	event->monitored = monitored;
	event->captured = capture(ctx, event->packet);
	bpf_ringbuf_submit(event, 0);
	stat_add(STAT_EVENTS);
	return 0;
}

/*
 * Samples a dropped packet: the first of each CPU and second, up to the budget. A reader that
 * stops costs a compare, not a wait.
 */
static __always_inline void sample(struct xdp_md *ctx, const struct control *control,
				   const struct pkt *pkt, enum reason reason, bool monitored)
{
	struct event_window *window = lookup(event_windows, 0);
	__u64 now = bpf_ktime_get_coarse_ns();

	if (!window)
		return;
	if (window->second != now >> 30) {
		window->second = now >> 30;
		window->used = 0;
	}
	if (likely(window->used >= control->event_budget))
		return stat_add(STAT_EVENTS_OVER_BUDGET);
	window->used++;
	event_write(ctx, reason, (__u32)pkt->list << 8 | pkt->limit, monitored, now);
}

/* The only place that counts, samples, and turns a reason into an action. */
static __always_inline enum xdp_action verdict(struct xdp_md *ctx, const struct control *control,
					       struct pkt *pkt, enum reason reason)
{
	bool monitored = control->monitor || pkt->monitor;

	if (reason == REASON_CONTINUE)
		reason = REASON_CLEAN;
	/* Most packets: the compiler knows the counter, where it knows the family. */
	if (likely(reason == REASON_CLEAN && !pkt->shadow)) {
		count(counter_of(REASON_CLEAN, pkt->family, false), pkt);
		return XDP_PASS;
	}
	if (reason < REASON_FIRST_DROP && pkt->shadow) {
		reason = pkt->shadow;
		monitored = true;
		if (reason >= REASON_PENALTY) {
			pkt->limit = pkt->shadow_limit;
			pkt->threshold = pkt->shadow_threshold;
		}
	}
	monitored &= reason >= REASON_FIRST_DROP;

	count(counter_of(reason, pkt->family, monitored), pkt);
	if (reason < REASON_FIRST_DROP)
		return XDP_PASS;

	if (reason == REASON_BANNED)
		count(lookup(list_counters, pkt->list * 2 + monitored), pkt);
	else if (reason >= REASON_PENALTY)
		count(lookup(limit_counters,
			     (pkt->limit * LIMIT_COUNTERS + pkt->threshold) * 2 + monitored),
		      pkt);
	if (cfg_events && control->event_budget)
		sample(ctx, control, pkt, reason, monitored);
	return monitored ? XDP_PASS : XDP_DROP;
}
