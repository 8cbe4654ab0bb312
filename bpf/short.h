/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "ban.h"
#include "limit.h"
#include "sanity.h"
#include "verdict.h"

/*
 * The short way: what most packets are, answered in a fraction of the instructions. A plain packet is
 * TCP or UDP right behind an IP header without options, in a frame without tags; no ban is near its
 * source, and the source's tab has the answer. What is not plain in any respect takes the long way,
 * which begins anew: here nothing is decided that it would decide otherwise.
 *
 * Nothing that is called takes the address of a local variable, so all of them stay in registers.
 */
struct plain {
	__u64 hi; /* the source, as in struct pkt */
	__u64 lo;
	__u32 length;  /* of the frame */
	__u32 set;     /* the thresholds that it is measured by */
	__u32 service; /* see service_of */
	__u8 family;
};

/* A transport header with so many bytes of the packet from there on. */
static __always_inline bool plain_l4(const void *l4, const void *end, __u32 room, __u8 protocol,
				     struct plain *plain)
{
	const struct udphdr *udp = l4;
	const struct tcphdr *tcp = l4;
	__u32 length;

	plain->set = 1 << THRESHOLD_PACKETS | 1 << THRESHOLD_BITS;
	if ((void *)(udp + 1) > end)
		return false;
	plain->service = service_of(protocol, be16_to_cpu(udp->dport), true);
	if (protocol == PROTO_UDP) {
		plain->set |= 1 << THRESHOLD_UDP;
		length = be16_to_cpu(udp->len);
		return length >= sizeof(*udp) && length <= room;
	}
	if (protocol != PROTO_TCP || (void *)(tcp + 1) > end)
		return false;
	if ((tcp->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		plain->set |= 1 << THRESHOLD_SYN;
	length = (tcp->doff >> 4) * 4;
	return length >= sizeof(*tcp) && length <= room;
}

static __always_inline bool plain_ipv4(const struct ethhdr *eth, const void *end,
				       struct plain *plain)
{
	const struct iphdr *ip = (void *)(eth + 1);
	__u32 length;

	if ((void *)(ip + 1) > end || ip->ver_ihl != 0x45 ||
	    ip->frag_off & (cpu_to_be16(IP_MF) | cpu_to_be16(IP_OFFSET)))
		return false;
	length = be16_to_cpu(ip->tot_len);
	if (length < sizeof(*ip) || sizeof(*eth) + length > plain->length)
		return false;
	plain->family = FAMILY_IPV4;
	plain->hi = 0;
	plain->lo = be32_to_cpu(ip->saddr);
	return plain_l4(ip + 1, end, length - sizeof(*ip), ip->protocol, plain);
}

static __always_inline bool plain_ipv6(const struct ethhdr *eth, const void *end,
				       struct plain *plain)
{
	const struct ipv6hdr *ip = (void *)(eth + 1);
	__u32 length;

	if ((void *)(ip + 1) > end || *(__u8 *)ip >> 4 != 6)
		return false;
	length = be16_to_cpu(ip->payload_len);
	if (sizeof(*eth) + sizeof(*ip) + length > plain->length)
		return false;
	plain->family = FAMILY_IPV6;
	plain->hi = be64_to_cpu(ip->saddr[0]);
	plain->lo = be64_to_cpu(ip->saddr[1]);
	return plain_l4(ip + 1, end, length, ip->nexthdr, plain);
}

/*
 * What becomes of a plain packet that no ban is near: its tab answers, or else its limit does.
 * REASON_MAX if only the long way knows.
 */
static __always_inline enum reason plain_limit(const struct control *control,
					       const struct plain *plain, struct pkt *pkt)
{
	struct ask ask = {
		.hi = plain->hi,
		.lo = plain->lo,
		.length = plain->length,
		.set = plain->set,
		.family = plain->family,
	};
	struct ask asked; /* what is called sees; the other one stays in registers */
	struct tabs *mine = lookup(tabs, 0);
	enum reason reason = REASON_MAX;
	struct limit *limit;
	struct source src;
	struct tab *tab;

	if (limits_bound(control))
		ask.number = limit_number(plain->hi, plain->lo, plain->family, plain->service);
	limit = lookup(limits, ask.number);
	if (!mine || !limit || limit_shadows(control, limit, ask.number))
		return REASON_MAX;
	if (!(limit->flags & LIMIT_ENABLED))
		return REASON_CONTINUE;
	source_of(&ask, limit, &src);
	pkt->limit = ask.number;
	pkt->monitor = limit->flags & LIMIT_MONITOR;

	if (mine->guess != GUESS_TAB)
		guess(mine, source_hash(src.hi, src.lo), aggregate_key(&ask, limit));
	tab = tab_of(mine, &src);
	if (limit->flags & LIMIT_COARSE && tab_is(tab, &src))
		reason = tab_answers(tab, &ask, bpf_jiffies64());
	if (reason != REASON_MAX) {
		if (mine->guess != GUESS_TAB)
			mine->guess = GUESS_TAB;
		pkt->threshold = ask.threshold;
		return reason;
	}
	asked = ask;
	reason = limit_source(&asked);
	pkt->threshold = asked.threshold;
	return reason;
}

/* The way of a packet of one family: two copies, in which what the other one needs is not there. */
static __always_inline int plain_way(struct xdp_md *ctx, const struct control *control,
				     struct plain *plain)
{
	struct pkt pkt = { .family = plain->family, .length = plain->length };
	enum reason reason = REASON_CONTINUE;
	__u64 found = 0;

	if (cfg_bans && !ban_far(control, plain->family, plain->hi, plain->lo))
		found = ban_find(plain->hi, plain->lo, plain->family);
	if (found) {
		if (found & BAN_MONITOR || allowed(plain->hi, plain->lo, plain->family, 0))
			return -1;
		pkt.list = found >> BAN_LIST_SHIFT & (MAX_LISTS - 1);
		reason = REASON_BANNED;
	} else {
		if (cfg_sanity && cfg_martians && martian(plain->family, plain->hi, plain->lo))
			return -1;
		if (cfg_limits)
			reason = plain_limit(control, plain, &pkt);
		if (reason == REASON_MAX)
			return -1;
	}
	return verdict(ctx, control, &pkt, reason);
}

/* The action, or -1 if the long way must be taken. */
static __always_inline int short_way(struct xdp_md *ctx, const struct control *control)
{
	const void *end = (void *)(long)ctx->data_end;
	const struct ethhdr *eth = (void *)(long)ctx->data;
	struct plain plain;

	plain.length = ctx->data_end - ctx->data;
	if (cfg_frags)
		plain.length = bpf_xdp_get_buff_len(ctx);
	if (stage_switch(control) != REASON_CONTINUE || (void *)(eth + 1) > end)
		return -1;
	if (eth->proto == cpu_to_be16(ETH_P_IP))
		return plain_ipv4(eth, end, &plain) ? plain_way(ctx, control, &plain) : -1;
	if (eth->proto == cpu_to_be16(ETH_P_IPV6))
		return plain_ipv6(eth, end, &plain) ? plain_way(ctx, control, &plain) : -1;
	return -1;
}
