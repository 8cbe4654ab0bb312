/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "hash.h"
#include "maps.h"
#include "stat.h"

/* What a packet is charged to. */
struct source {
	__u64 hi; /* masked to the limit's group */
	__u64 lo;
	__u64 hash;
	__u64 tag; /* the tag without `seen`; until it is looked for, without its fingerprint, too */
	__u32 index; /* into the source table */
};

enum tracked { TRACKED, UNTRACKED, RACED };

#define TAG_SEEN (TAG_SEEN_MASK << TAG_SEEN_SHIFT)

static __always_inline __u64 tag_with_seen(__u64 tag, __u64 ns)
{
	return (tag & ~TAG_SEEN) | (ns >> SEEN_SHIFT & TAG_SEEN_MASK) << TAG_SEEN_SHIFT;
}

/* What the limits of a source have in common: its bucket, its home in there, and its fingerprint. */
static __always_inline __u64 source_hash(__u64 hi, __u64 lo)
{
	return hash128(hi, lo);
}

/* The way of its bucket that a source takes if it can. */
static __always_inline __u32 source_home(__u64 hash)
{
	return hash >> 32 & (SOURCE_WAYS - 1);
}

/* Units since the tag was seen; negative while a penalty holds. 38 bits: no wrap in 146,000 years. */
static __always_inline __s64 tag_age(__u64 tag, __u64 now)
{
	return (__s64)(now >> SEEN_SHIFT) - (__s64)(tag >> TAG_SEEN_SHIFT & TAG_SEEN_MASK);
}

/* By how much `seen` may lag, in its units. */
static __always_inline __s64 seen_lag(const struct control *control)
{
	return control->source_idle / SEEN_LAG >> SEEN_SHIFT;
}

/*
 * Moves `seen` forward to a time, if it lags too far behind. False if someone else changed the tag to
 * another source's.
 */
static __always_inline bool tag_touch(__u64 *tag, __u64 fixed, __u64 ns, __s64 lag)
{
	for (int i = 0; i < 2; i++) {
		__u64 old = READ_ONCE(*tag);

		if ((old & ~TAG_SEEN) != fixed)
			return false;
		if (likely(tag_age(old, ns) <= lag))
			return true;
		if (__sync_val_compare_and_swap(tag, old, tag_with_seen(fixed, ns)) == old)
			return true;
	}
	return true; /* others touch it, too: it is seen */
}

/*
 * `seen`, where the tag has it, of a source that was not heard of for source_idle, and owes nothing:
 * a newcomer may take the slot of one that was seen before. At least 1, so that a free slot, which is
 * 0, always is.
 */
static __always_inline __u64 seen_idle(const struct control *control, __u64 now)
{
	__s64 units =
		(now >> SEEN_SHIFT) - (control->source_idle >> SEEN_SHIFT) - seen_lag(control);

	return units > 0 ? (__u64)units << TAG_SEEN_SHIFT : 1;
}

/*
 * Finds the source's slot, or takes one: its home or another that is free, else that of the longest
 * idle. A slot is taken by compare-and-swap of its tag: old -> busy -> new; the entry is filled
 * while it is busy, and readers skip busy slots. A slot that was touched within
 * control->source_idle is never taken, and a found one is touched before it is charged: so nobody is
 * charged for another.
 */
static __always_inline enum tracked source_track(const struct control *control, struct source *src,
						 __u64 now)
{
	__u32 bucket = src->hash & cfg_source_mask;
	__u32 home = source_home(src->hash);
	struct source_tags *tags = lookup(source_tags, bucket);
	struct source_state *state;
	struct source_counts *counts;
	__u64 idle = seen_idle(control, now), oldest = idle, victim_tag;
	__u32 victim = SOURCE_WAYS;

	src->tag |= src->hash >> TAG_PRINT_SHIFT << TAG_PRINT_SHIFT;
	if (!tags)
		return UNTRACKED;

	for (__u32 i = 0; i < SOURCE_WAYS; i++) {
		__u32 way = (home + i) % SOURCE_WAYS;
		__u64 tag = READ_ONCE(tags->tag[way]);

		if (((tag ^ src->tag) & ~TAG_SEEN & ~(__u64)TAG_LIVE) == 0) {
			if (tag && !(tag & TAG_LIVE))
				return RACED; /* another CPU is making this very entry */
			state = lookup(source_states, bucket * SOURCE_WAYS + way);
			if (tag && state && state->hi == src->hi && state->lo == src->lo) {
				src->index = bucket * SOURCE_WAYS + way;
				return tag_touch(&tags->tag[way], src->tag, now,
						 seen_lag(control)) ?
					       TRACKED :
					       RACED;
			}
		}
		if ((tag & TAG_SEEN) < oldest) {
			victim = way;
			oldest = tag & TAG_SEEN;
		}
	}
	if (victim >= SOURCE_WAYS)
		return UNTRACKED;
	victim_tag = READ_ONCE(tags->tag[victim]);
	if (victim_tag && (!(victim_tag & TAG_LIVE) || (victim_tag & TAG_SEEN) >= idle))
		return RACED;
	if (__sync_val_compare_and_swap(&tags->tag[victim], victim_tag,
					tag_with_seen(src->tag & ~(__u64)TAG_LIVE, now)) !=
	    victim_tag)
		return RACED;
	src->index = bucket * SOURCE_WAYS + victim;
	state = lookup(source_states, src->index);
	counts = lookup(source_counts, src->index);
	if (!state || !counts)
		return UNTRACKED;
	state->hi = src->hi;
	state->lo = src->lo;
	for (int i = 0; i < THRESHOLD_MAX; i++)
		WRITE_ONCE(state->tat[i], 0);
	counts->packets = 0;
	counts->bytes = 0;
	counts->dropped = 0;
	counts->first = now;
	__sync_lock_test_and_set(&tags->tag[victim], tag_with_seen(src->tag, now));

	stat_add(STAT_TRACKED);
	if (victim_tag)
		stat_add(STAT_EVICTED);
	return TRACKED;
}

/*
 * Keeps a source's slot until what it owes by these thresholds is paid: who lost his slot before would
 * come back with a fresh burst.
 */
static __always_inline void source_owes(const struct control *control, __u32 index, __u64 fixed,
					const struct source_state *state, __u32 set, __u64 now)
{
	struct source_tags *tags = lookup(source_tags, index / SOURCE_WAYS);
	__u64 until = now;

	if (!tags)
		return;
	for (__u32 i = 0; i < THRESHOLD_MAX; i++) {
		__u64 tat = READ_ONCE(state->tat[i]) & ~TAT_PENALTY;

		if (set & 1 << i && tat > until)
			until = tat;
	}
	tag_touch(&tags->tag[index % SOURCE_WAYS], fixed, until, seen_lag(control));
}
