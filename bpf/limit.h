/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "allow.h"
#include "gcra.h"
#include "guess.h"
#include "source.h"
#include "tab.h"

/* What a packet is for: its protocol, and its destination port if it has one. */
#define SERVICE_PORT (1U << 24)

static __always_inline __u32 service_of(__u8 protocol, __u16 port, bool known)
{
	return protocol << 16 | (known ? SERVICE_PORT | port : 0);
}

/*
 * The number of the one limit that a packet falls under: source prefix, then service, then 0. A global
 * function, to be called only if anything but the default may be found.
 */
__noinline int limit_number(__u64 hi, __u64 lo, __u32 family, __u32 service)
{
	const struct control *control = lookup(controls, 0);
	__u32 protocol = service >> 16 & 0xFF, port = service & 0xFFFF;

	if (control && control->source_limits) {
		struct prefix_key key;
		__u32 *number;

		source_key(hi, lo, family, &key);
		number = bpf_map_lookup_elem(&source_limits, &key);
		if (number && *number)
			return *number;
	}
	if (control && control->service_limits) {
		__u64 *word;
		__u32 number;

		if (service & SERVICE_PORT && (protocol == PROTO_TCP || protocol == PROTO_UDP)) {
			word = lookup(service_limits,
				      (protocol == PROTO_UDP ? 8192 : 0) + port / 8);
			number = word ? READ_ONCE(*word) >> port % 8 * 8 & 0xFF : 0;
			if (number)
				return number;
		}
		word = lookup(protocol_limits, protocol / 8);
		number = word ? READ_ONCE(*word) >> protocol % 8 * 8 & 0xFF : 0;
		if (number)
			return number;
	}
	return 0;
}

static __always_inline bool limits_bound(const struct control *control)
{
	return control->source_limits | control->service_limits;
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

/* What is asked of a limit. */
struct ask {
	__u64 hi; /* the packet's source, as in struct pkt */
	__u64 lo;
	__u32 length; /* of the frame */
	__u8 number;  /* of the limit */
	__u8 set;     /* the thresholds that the packet is measured by, a bit each */
	__u8 family;
	__u8 threshold; /* the answer's counter */
};

/* Masks a source to its group; lengths are 8 to 32, and 16 to 128. */
static __always_inline void mask_source(__u32 family, __u64 hi, __u64 lo, __u32 len4, __u32 len6,
					struct source *src)
{
	if (family == FAMILY_IPV4) {
		src->hi = 0;
		src->lo = lo & 0xFFFFFFFFULL << (32 - len4 & 31);
		return;
	}
	src->hi = len6 < 64 ? hi & ~0ULL << (64 - (len6 & 63)) : hi;
	src->lo = len6 <= 64 ? 0 : len6 < 128 ? lo & ~0ULL << (128 - len6 & 63) : lo;
}

/* The prefix whose aggregate a packet falls under: IPv4 in the high half of the word. */
static __always_inline __u64 aggregate_key(const struct ask *ask, const struct limit *limit)
{
	struct source prefix;

	mask_source(ask->family, ask->hi, ask->lo, limit->aggregate4, limit->aggregate6, &prefix);
	return ask->family == FAMILY_IPV4 ? prefix.lo << 32 : prefix.hi & ~0ULL << 16;
}

/*
 * Charges a packet to its prefix's aggregate. A cell whose TAT has passed says nothing that a new
 * one would not, so taking it over loses nothing, and no prefix is charged for another.
 */
__noinline enum reason aggregate_charge(struct ask *ask, __u64 now)
{
	__u32 units = 1, free = AGGREGATE_WAYS;
	struct aggregate_bucket *bucket;
	const struct rate *rate;
	struct limit *limit;
	__u64 key, burst, cost;

	if (!ask)
		return REASON_CONTINUE;
	limit = lookup(limits, ask->number);
	if (!limit)
		return REASON_CONTINUE;
	rate = &limit->aggregate;
	burst = READ_ONCE(rate->burst);
	/* Without a rate of its own, what one source may send is what its untracked ones may. */
	for (__u32 i = 0; !burst && i < THRESHOLD_MAX; i++) {
		if (!(ask->set & 1 << i))
			continue;
		rate = &limit->threshold[i];
		burst = READ_ONCE(rate->burst);
		units = i == THRESHOLD_BITS ? ask->length : 1;
	}
	if (!burst)
		return REASON_CONTINUE;
	cost = rate_cost(rate, units);

	key = aggregate_key(ask, limit);
	bucket = lookup(aggregates, aggregate_index(key));
	key |= ask->number << 8 |
	       (ask->family == FAMILY_IPV4 ? (limit->aggregate4 & 0x7F) << 1 :
					     (limit->aggregate6 & 0x7F) << 1 | 1);
	if (!bucket)
		return REASON_CONTINUE;

	for (int i = 0; i < AGGREGATE_WAYS; i++) {
		if (READ_ONCE(bucket->key[i]) == key) {
			gcra_settle(&bucket->tat[i], burst, now);
			switch (gcra_advance(&bucket->tat[i], cost, burst, now)) {
			case GCRA_OVER:
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
		WRITE_ONCE(bucket->tat[free], now + cost);
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
				     __u32 set, __u32 length, __u64 now)
{
	for (__u32 i = 0; i < THRESHOLD_MAX; i++) {
		const struct rate *rate = &limit->threshold[i];
		__u64 burst = READ_ONCE(rate->burst);

		if (!(set & 1 << i) || !burst)
			continue;
		gcra_settle(&state->tat[i], burst, now);
		if (!gcra_conforms(READ_ONCE(state->tat[i]),
				   rate_cost(rate, i == THRESHOLD_BITS ? length : 1), burst, now))
			return i;
	}
	return THRESHOLD_MAX;
}

/* Charges it. Another CPU may have been faster, so that it is over after all. */
static __always_inline __u32 charge(const struct limit *limit, struct source_state *state,
				    __u32 set, __u32 length, __u64 now)
{
	for (__u32 i = 0; i < THRESHOLD_MAX; i++) {
		const struct rate *rate = &limit->threshold[i];
		__u64 burst = READ_ONCE(rate->burst);

		if (!(set & 1 << i) || !burst)
			continue;
		switch (gcra_charge(&state->tat[i],
				    rate_cost(rate, i == THRESHOLD_BITS ? length : 1), burst,
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
 * again within a tick gets credit, if the limit gives any.
 */
static __always_inline enum reason limit_charge(const struct control *control,
						const struct limit *limit, const struct source *src,
						struct ask *ask, struct tab *tab, bool again,
						__u64 now)
{
	struct source_state *state = lookup(source_states, src->index);
	__u32 over;

	if (!state)
		return REASON_CONTINUE;
	if (penalized(limit, state, now)) {
		ask->threshold = COUNT_PENALTY;
		return REASON_PENALTY;
	}
	over = measure(limit, state, ask->set, ask->length, now);
	if (over == THRESHOLD_MAX && again) {
		__u32 credit = credit_of(limit, ask->set);

		if (credit >= room_of(ask->length)) {
			tab->room = credit;
			return REASON_CONTINUE;
		}
	}
	if (over == THRESHOLD_MAX)
		over = charge(limit, state, ask->set, ask->length, now);
	if (over == THRESHOLD_MAX) {
		source_owes(control, src->index, src->tag, state, ask->set, now);
		return REASON_CONTINUE;
	}
	ask->threshold = over;
	return REASON_LIMIT_PACKETS + over;
}

/* What a packet is charged to under a limit; its hash and fingerprint are not filled in. */
static __always_inline void source_of(const struct ask *ask, const struct limit *limit,
				      struct source *src)
{
	mask_source(ask->family, ask->hi, ask->lo, limit->group4, limit->group6, src);
	src->tag = (__u64)(ask->number & 0xFF) << TAG_LIMIT_SHIFT |
		   (__u64)(ask->family == FAMILY_IPV6) << TAG_FAMILY_SHIFT | TAG_LIVE;
}

/* Answers from a source's tab, if it can: REASON_MAX if not. */
static __always_inline enum reason tab_answers(struct tab *tab, struct ask *ask, __u32 jiffy)
{
	if (tab->jiffy != jiffy || tab->set != ask->set)
		return REASON_MAX;
	if (likely(tab_gives(tab, ask->length)))
		return REASON_CONTINUE;
	if (!tab_refuses(tab, ask->length))
		return REASON_MAX;
	ask->threshold = tab->threshold;
	return tab->refusal;
}

/* Holds a packet whose source is not tracked to the aggregate of its prefix. */
static __always_inline enum reason limit_stranger(struct ask *ask, __u64 now)
{
	enum reason reason = aggregate_charge(ask, now);

	stat_add(STAT_UNTRACKED);
	if (reason == REASON_CONTINUE)
		return REASON_UNTRACKED;
	ask->threshold = COUNT_AGGREGATE;
	return allowed(ask->hi, ask->lo, ask->family, ALLOW_NO_LIMIT) ? REASON_EXEMPT : reason;
}

/* Holds a packet's source to one limit. */
__noinline enum reason limit_source(struct ask *ask)
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
	__u32 jiffy = bpf_jiffies64();

	if (!ask || !control || !mine)
		return REASON_CONTINUE;
	limit = lookup(limits, ask->number);
	if (!limit || !(limit->flags & LIMIT_ENABLED))
		return REASON_CONTINUE;
	source_of(ask, limit, &src);
	src.hash = source_hash(src.hi, src.lo);
	tab = tab_of(mine, &src);

	if (limit->flags & LIMIT_COARSE) {
		now = tick = bpf_ktime_get_coarse_ns();
		if (tab->jiffy == jiffy && tab_is(tab, &src)) {
			reason = tab_answers(tab, ask, jiffy);
			if (reason != REASON_MAX)
				return reason;
			reason = REASON_CONTINUE;
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
	if (tracked == UNTRACKED)
		return limit_stranger(ask, now);

	tab_open(tab, &src, tick, jiffy, ask->set);
	reason = limit_charge(control, limit, &src, ask, tab, again, now);
	if (reason == REASON_CONTINUE && limit->flags & LIMIT_AGGREGATE)
		reason = aggregate_charge(ask, now);
	if (reason == REASON_LIMIT_AGGREGATE)
		ask->threshold = COUNT_AGGREGATE;
	if (reason != REASON_CONTINUE && allowed(ask->hi, ask->lo, ask->family, ALLOW_NO_LIMIT))
		reason = REASON_EXEMPT;
	if (tab->room) {
		tab_gives(tab, ask->length);
		return reason;
	}
	if (reason == REASON_CONTINUE || reason == REASON_EXEMPT) {
		tab_pass(tab, ask->length);
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
	tab->threshold = ask->threshold;
	tab->length = reason != REASON_LIMIT_BITS ? 0 : ask->length < 0xFFFF ? ask->length : 0xFFFF;
	return reason;
}

/* Whether a limit is one that is measured alone, before the default has its say. */
static __always_inline bool limit_shadows(const struct control *control, const struct limit *limit,
					  __u32 number)
{
	return number && limit->flags & LIMIT_MONITOR && !control->monitor;
}

/*
 * Holds each source to its limit. One that only monitors must not exempt from the default: it is
 * measured for its counters, and the way goes on to the default.
 */
static __always_inline enum reason stage_limit(const struct control *control, struct pkt *pkt)
{
	struct ask ask = {
		.hi = pkt->src_hi,
		.lo = pkt->src_lo,
		.length = pkt->length,
		.set = thresholds_of(pkt),
		.family = pkt->family,
	};
	struct limit *limit;
	enum reason reason;

	if (limits_bound(control))
		ask.number =
			limit_number(pkt->src_hi, pkt->src_lo, pkt->family,
				     service_of(pkt->protocol, pkt->dport, pkt->flags & PKT_PORTS));
	limit = lookup(limits, ask.number);
	if (limit && limit_shadows(control, limit, ask.number)) {
		reason = limit_source(&ask);
		if (reason >= REASON_FIRST_DROP && pkt->shadow < REASON_FIRST_DROP) {
			pkt->shadow = reason;
			pkt->shadow_limit = ask.number;
			pkt->shadow_threshold = ask.threshold;
		}
		ask.number = 0;
		limit = lookup(limits, 0);
	}
	reason = limit_source(&ask);
	pkt->limit = ask.number;
	pkt->threshold = ask.threshold;
	pkt->monitor = limit && limit->flags & LIMIT_ENABLED && limit->flags & LIMIT_MONITOR;
	return reason;
}
