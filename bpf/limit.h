/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "allow.h"
#include "gcra.h"
#include "guess.h"
#include "source.h"
#include "tab.h"

/* The number of the one limit that a packet falls under: source prefix, then service, then 0. */
static __always_inline __u32 limit_number(const struct control *control, const struct pkt *pkt)
{
	if (control->source_limits) {
		struct prefix_key key;
		__u32 *number;

		source_key(pkt, &key);
		number = bpf_map_lookup_elem(&source_limits, &key);
		if (number && *number)
			return *number;
	}
	if (control->service_limits) {
		__u64 *word;
		__u32 number;

		if (pkt->flags & PKT_PORTS &&
		    (pkt->protocol == PROTO_TCP || pkt->protocol == PROTO_UDP)) {
			word = lookup(service_limits,
				      (pkt->protocol == PROTO_UDP ? 8192 : 0) + pkt->dport / 8);
			number = word ? READ_ONCE(*word) >> pkt->dport % 8 * 8 & 0xFF : 0;
			if (number)
				return number;
		}
		word = lookup(protocol_limits, pkt->protocol / 8);
		number = word ? READ_ONCE(*word) >> pkt->protocol % 8 * 8 & 0xFF : 0;
		if (number)
			return number;
	}
	return 0;
}

/* Which thresholds a packet is measured by, as a bit each. */
static __always_inline __u32 thresholds_of(const struct pkt *pkt)
{
	__u32 set = 1 << THRESHOLD_PACKETS | 1 << THRESHOLD_BITS;

	if (pkt->flags & PKT_SYN)
		set |= 1 << THRESHOLD_SYN;
	if (pkt->protocol == PROTO_UDP || pkt->protocol == PROTO_UDPLITE)
		set |= 1 << THRESHOLD_UDP;
	if (pkt->protocol == PROTO_ICMP || pkt->protocol == PROTO_ICMPV6)
		set |= 1 << THRESHOLD_ICMP;
	if (pkt->flags & PKT_FRAGMENT)
		set |= 1 << THRESHOLD_FRAGMENTS;
	if (pkt->protocol == PROTO_UNKNOWN) /* behind too many headers: it may be any of them */
		set |= 1 << THRESHOLD_SYN | 1 << THRESHOLD_UDP | 1 << THRESHOLD_ICMP;
	return set;
}

static __always_inline void mask_source(const struct pkt *pkt, __u32 len4, __u32 len6,
					struct source *src)
{
	if (pkt->family == FAMILY_IPV4) {
		src->hi = 0;
		src->lo = pkt->src_lo & 0xFFFFFFFFULL << (len4 < 32 ? 32 - len4 : 0);
		return;
	}
	src->hi = len6 < 64 ? pkt->src_hi & ~0ULL << (64 - (len6 & 63)) : pkt->src_hi;
	src->lo = len6 <= 64 ? 0 :
		  len6 < 128 ? pkt->src_lo & ~0ULL << (128 - len6 & 63) :
			       pkt->src_lo;
}

/*
 * Charges a packet to its prefix's aggregate. A cell whose TAT has passed says nothing that a new
 * one would not, so taking it over loses nothing, and no prefix is charged for another.
 */
static __always_inline enum reason aggregate_charge(const struct limit *limit, __u32 number,
						    struct pkt *pkt, __u64 now)
{
	const struct rate *rate = &limit->aggregate;
	struct aggregate_bucket *bucket;
	struct source prefix;
	__u32 length = pkt->family == FAMILY_IPV4 ? limit->aggregate4 : limit->aggregate6;
	__u32 units = 1, set = thresholds_of(pkt), free = AGGREGATE_WAYS;
	__u64 key, burst = READ_ONCE(rate->burst);

	/* Without a rate of its own, what one source may send is what its untracked ones may. */
	for (__u32 i = 0; i < THRESHOLD_MAX; i++) {
		if (burst || !(set & 1 << i))
			continue;
		rate = &limit->threshold[i];
		burst = READ_ONCE(rate->burst);
		units = i == THRESHOLD_BITS ? pkt->length : 1;
	}
	if (!burst)
		return REASON_CONTINUE;

	mask_source(pkt, length, length, &prefix);
	key = pkt->family == FAMILY_IPV4 ? prefix.lo << 32 : prefix.hi & ~0ULL << 16;
	bucket = lookup(aggregates, aggregate_index(key));
	key |= (number & 0xFF) << 8 | (length & 0x7F) << 1 | (pkt->family == FAMILY_IPV6);
	if (!bucket)
		return REASON_CONTINUE;

	for (int i = 0; i < AGGREGATE_WAYS; i++) {
		if (READ_ONCE(bucket->key[i]) == key) {
			gcra_settle(&bucket->tat[i], burst, now);
			switch (gcra_charge(&bucket->tat[i], rate_cost(rate, units), burst, now)) {
			case GCRA_OVER:
				pkt->threshold = COUNT_AGGREGATE;
				return REASON_LIMIT_AGGREGATE;
			case GCRA_CONTENDED:
				stat_add(STAT_CONTENDED);
			}
			return REASON_CONTINUE;
		}
		if (READ_ONCE(bucket->tat[i]) <= now)
			free = i;
	}
	if (free < AGGREGATE_WAYS) {
		/*
		 * Plain stores: who loses the cell to another CPU in between goes free this once. A
		 * locked one would wait for the cell, and make all that follows wait, too.
		 */
		WRITE_ONCE(bucket->key[free], key);
		WRITE_ONCE(bucket->tat[free], now + rate_cost(rate, units));
		return REASON_CONTINUE;
	}
	stat_add(STAT_AGGREGATE_FULL);
	return REASON_CONTINUE;
}

/*
 * A penalty stands in the packets' TAT, as the time when it ends, marked by TAT_PENALTY: it needs
 * no field of its own and ends by itself.
 */
static __always_inline void penalize(const struct control *control, const struct limit *limit,
				     const struct source *src, struct source_state *state,
				     __u64 now)
{
	struct source_tags *tags = lookup(source_tags, src->index / SOURCE_WAYS);
	__u64 until = now + READ_ONCE(limit->penalty);
	__u64 old = READ_ONCE(state->tat[THRESHOLD_PACKETS]);

	if (!tags)
		return;
	/* seen at the penalty's end: until then no newcomer may take the slot */
	if (tag_touch(&tags->tag[src->index % SOURCE_WAYS], src->tag, until, seen_lag(control)))
		__sync_val_compare_and_swap(&state->tat[THRESHOLD_PACKETS], old,
					    until | TAT_PENALTY);
}

/*
 * Whether the source serves a penalty. One that is over becomes a TAT again, as if the whole burst
 * had been owed when it began: time has paid for that since, so the source is not punished anew for
 * its first packets, nor does it get a burst that it is not due. One that is longer than the
 * setting now says is over at once.
 */
static __always_inline bool penalized(const struct limit *limit, struct source_state *state,
				      __u64 now)
{
	__u64 tat = READ_ONCE(state->tat[THRESHOLD_PACKETS]);
	__u64 until = tat & ~TAT_PENALTY;
	__u64 penalty = READ_ONCE(limit->penalty);
	__u64 owed = READ_ONCE(limit->threshold[THRESHOLD_PACKETS].burst);

	if (likely(tat == until))
		return false;
	if (until > now && until - now <= penalty)
		return true;
	if (until > now)
		owed += now;
	else
		owed = until + owed > penalty ? until + owed - penalty : 0;
	__sync_val_compare_and_swap(&state->tat[THRESHOLD_PACKETS], tat, owed);
	return false;
}

/* Measures a tracked packet: by which threshold is it over, if by any? */
static __always_inline __u32 measure(const struct limit *limit, struct source_state *state,
				     __u32 set, const struct pkt *pkt, __u64 now)
{
	for (__u32 i = 0; i < THRESHOLD_MAX; i++) {
		const struct rate *rate = &limit->threshold[i];
		__u64 burst = READ_ONCE(rate->burst);

		if (!(set & 1 << i) || !burst)
			continue;
		gcra_settle(&state->tat[i], burst, now);
		if (!gcra_conforms(READ_ONCE(state->tat[i]),
				   rate_cost(rate, i == THRESHOLD_BITS ? pkt->length : 1), burst,
				   now))
			return i;
	}
	return THRESHOLD_MAX;
}

/* Charges it. Another CPU may have been faster, so that it is over after all. */
static __always_inline __u32 charge(const struct limit *limit, struct source_state *state,
				    __u32 set, const struct pkt *pkt, __u64 now)
{
	for (__u32 i = 0; i < THRESHOLD_MAX; i++) {
		const struct rate *rate = &limit->threshold[i];
		__u64 burst = READ_ONCE(rate->burst);

		if (!(set & 1 << i) || !burst)
			continue;
		switch (gcra_charge(&state->tat[i],
				    rate_cost(rate, i == THRESHOLD_BITS ? pkt->length : 1), burst,
				    now)) {
		case GCRA_OVER:
			return i;
		case GCRA_CONTENDED:
			stat_add(STAT_CONTENDED);
		}
	}
	return THRESHOLD_MAX;
}

/* How many packets of a source may pass on credit, by the least generous of these thresholds. */
static __always_inline __u32 credit_of(const struct limit *limit, __u32 set)
{
	__u32 all = limit->credit[0] | limit->credit[1] << 8 | limit->credit[2] << 16;
	__u32 least = CREDIT_MAX;

	for (__u32 i = 0; i < THRESHOLD_MAX; i++) {
		__u32 mine = all >> i * 4 & 15;

		if (set & 1 << i && READ_ONCE(limit->threshold[i].burst) && mine < least)
			least = mine;
	}
	return 1U << least >> 1;
}

/*
 * Holds a tracked packet to its limit: every threshold is asked before any is charged. One that comes
 * again within a tick of the coarse clock gets credit, if the limit gives any.
 */
static __always_inline enum reason limit_charge(const struct control *control,
						const struct limit *limit, const struct source *src,
						struct pkt *pkt, struct tab *tab, __u32 set,
						bool again, __u64 now)
{
	struct source_state *state = lookup(source_states, src->index);
	__u32 over;

	if (!state)
		return REASON_CONTINUE;
	if (penalized(limit, state, now)) {
		pkt->threshold = COUNT_PENALTY;
		return REASON_PENALTY;
	}
	over = measure(limit, state, set, pkt, now);
	if (over == THRESHOLD_MAX && again) {
		__u32 credit = credit_of(limit, set);

		if (credit >= room_of(pkt)) {
			tab->room = credit;
			return REASON_CONTINUE;
		}
	}
	if (over == THRESHOLD_MAX)
		over = charge(limit, state, set, pkt, now);
	if (over == THRESHOLD_MAX) {
		source_owes(control, src->index, src->tag, state, set, now);
		return REASON_CONTINUE;
	}
	pkt->threshold = over;
	return REASON_LIMIT_PACKETS + over;
}

/* Holds a packet's source to one limit. */
__noinline enum reason limit_source(struct pkt *pkt, __u32 number)
{
	const struct control *control = lookup(controls, 0);
	struct limit *limit;
	struct source_state *state;
	struct source src = {};
	struct tabs *mine = lookup(tabs, 0);
	struct tab *tab;
	enum reason reason = REASON_CONTINUE;
	enum tracked tracked;
	bool again = false;
	__u64 now, tick = 0;
	__u32 set;

	if (!pkt || !control || !mine)
		return REASON_CONTINUE;
	limit = lookup(limits, number);
	if (!limit || !(limit->flags & LIMIT_ENABLED))
		return REASON_CONTINUE;
	pkt->limit = number;
	pkt->monitor = limit->flags & LIMIT_MONITOR;
	set = thresholds_of(pkt);
	mask_source(pkt, limit->group4, limit->group6, &src);
	src.hash = pkt->hash;
	if (src.lo != usual_lo(pkt) || src.hi != pkt->src_hi)
		src.hash = source_hash(src.hi, src.lo); /* not grouped by the usual length */
	src.tag = (__u64)(number & 0xFF) << TAG_LIMIT_SHIFT |
		  (__u64)(pkt->family == FAMILY_IPV6) << TAG_FAMILY_SHIFT | TAG_LIVE;
	tab = tab_of(mine, &src);

	if (limit->flags & LIMIT_COARSE) {
		now = tick = bpf_ktime_get_coarse_ns();
		if (tab->tick == tick && tab_is(tab, &src)) {
			/* This tick's last answer is this packet's, if that is about as much. */
			if (tab->set == set && tab->room >= room_of(pkt)) {
				tab->room -= room_of(pkt);
				tab_owe(tab, pkt);
				return REASON_CONTINUE;
			}
			if (tab->set == set && tab->refusal && pkt->length >= tab->length) {
				tab->dropped++;
				pkt->threshold = tab->threshold;
				return tab->refusal;
			}
			again = !(limit->flags & LIMIT_AGGREGATE);
		}
	} else {
		now = bpf_ktime_get_ns();
	}
	if (tab->owed)
		tab_bill(tab);

	tracked = source_track(control, &src, now);
	mine->guess = tracked == TRACKED ? GUESS_KNOWN : GUESS_STRANGER;
	if (tracked == RACED) {
		stat_add(STAT_CONTENDED);
		return REASON_CONTENDED;
	}
	if (tracked == TRACKED) {
		tab_open(tab, &src, tick, set);
		reason = limit_charge(control, limit, &src, pkt, tab, set, again, now);
	} else {
		stat_add(STAT_UNTRACKED);
	}
	if (reason == REASON_CONTINUE && (tracked == UNTRACKED || limit->flags & LIMIT_AGGREGATE))
		reason = aggregate_charge(limit, number, pkt, now);

	if (reason != REASON_CONTINUE && stage_allow(pkt, ALLOW_NO_LIMIT))
		reason = REASON_EXEMPT;
	if (tracked == UNTRACKED)
		return reason == REASON_CONTINUE ? REASON_UNTRACKED : reason;
	if (tab->room) {
		tab->room -= room_of(pkt);
		tab_owe(tab, pkt);
		return reason;
	}
	if (reason == REASON_CONTINUE || reason == REASON_EXEMPT) {
		tab_pass(tab, pkt);
		return reason;
	}
	tab->dropped++;
	if (reason == REASON_LIMIT_AGGREGATE)
		return reason;
	if (limit->penalty && reason != REASON_PENALTY) {
		state = lookup(source_states, src.index);
		if (state)
			penalize(control, limit, &src, state, now);
		return reason;
	}
	/* What does not conform now does not until the clock moves. */
	tab->refusal = tick ? reason : 0;
	tab->threshold = pkt->threshold;
	tab->length = reason != REASON_LIMIT_BITS ? 0 : pkt->length < 0xFFFF ? pkt->length : 0xFFFF;
	return reason;
}

/*
 * Holds each source to its limit. One that only monitors must not exempt from the default: it is
 * measured for its counters, and the way goes on to the default.
 */
static __always_inline enum reason stage_limit(const struct control *control, struct pkt *pkt)
{
	__u32 number = limit_number(control, pkt);
	struct limit *limit = lookup(limits, number);
	enum reason reason;

	if (number && limit && limit->flags & LIMIT_MONITOR && !control->monitor) {
		reason = limit_source(pkt, number);
		if (reason >= REASON_FIRST_DROP && pkt->shadow < REASON_FIRST_DROP) {
			pkt->shadow = reason;
			pkt->shadow_limit = number;
			pkt->shadow_threshold = pkt->threshold;
		}
		number = 0;
	}
	return limit_source(pkt, number);
}
