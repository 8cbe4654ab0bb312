/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "hash.h"
#include "maps.h"
#include "stat.h"

/* What a packet is charged to. */
struct source {
	__u64 hi; /* masked to the limit's group */
	__u64 lo;
	__u64 tag;   /* the tag without `seen` */
	__u32 index; /* into the source table */
};

enum tracked { TRACKED, UNTRACKED, RACED };

#define TAG_SEEN (TAG_SEEN_MASK << TAG_SEEN_SHIFT)

static __always_inline __u64 tag_with_seen(__u64 tag, __u64 ns)
{
	return (tag & ~TAG_SEEN) | (ns >> SEEN_SHIFT & TAG_SEEN_MASK) << TAG_SEEN_SHIFT;
}

/* Units since the tag was seen; negative while a penalty holds. 38 bits: no wrap in 146,000 years. */
static __always_inline __s64 tag_age(__u64 tag, __u64 now)
{
	return (__s64)(now >> SEEN_SHIFT) - (__s64)(tag >> TAG_SEEN_SHIFT & TAG_SEEN_MASK);
}

/* Moves `seen` forward to a time. False if someone else changed the tag to another source's. */
static __always_inline bool tag_touch(__u64 *tag, __u64 fixed, __u64 ns)
{
	for (int i = 0; i < 2; i++) {
		__u64 old = READ_ONCE(*tag);

		if ((old & ~TAG_SEEN) != fixed)
			return false;
		if (tag_age(old, ns) <= 0)
			return true;
		if (__sync_val_compare_and_swap(tag, old, tag_with_seen(fixed, ns)) == old)
			return true;
	}
	return true; /* others touch it, too: it is seen */
}

/* Which slot of a bucket a newcomer may take: a free one, else the longest idle, else none. */
__noinline __u32 source_victim(__u32 bucket, __u64 now, __u64 idle)
{
	struct source_tags *tags = lookup(source_tags, bucket);
	__s64 oldest = idle >> SEEN_SHIFT;
	__u32 victim = SOURCE_WAYS;

	if (!tags)
		return SOURCE_WAYS;
	for (__u32 i = 0; i < SOURCE_WAYS; i++) {
		__u64 tag = READ_ONCE(tags->tag[i]);

		if (!tag)
			return i;
		if (tag & TAG_LIVE && tag_age(tag, now) > oldest) {
			victim = i;
			oldest = tag_age(tag, now);
		}
	}
	return victim;
}

/*
 * Finds the source's slot, or takes one. A slot is taken by compare-and-swap of its tag: old ->
 * busy -> new; the entry is filled while it is busy, and readers skip busy slots. A slot that was
 * touched within control->source_idle is never taken, and a found one is touched before it is
 * charged: so nobody is charged for another.
 */
static __always_inline enum tracked source_track(const struct control *control, struct source *src,
						 __u8 family, __u8 limit, __u64 now)
{
	__u64 hash = hash64(hash128(src->hi, src->lo) + ((__u32)limit << 8 | family));
	__u32 bucket = hash & cfg_source_mask;
	struct source_tags *tags = lookup(source_tags, bucket);
	struct source_state *state;
	struct source_counts *counts;
	__u64 victim_tag;
	__u32 victim;

	src->tag = hash >> TAG_PRINT_SHIFT << TAG_PRINT_SHIFT | (__u64)limit << TAG_LIMIT_SHIFT |
		   (__u64)(family == FAMILY_IPV6) << TAG_FAMILY_SHIFT | TAG_LIVE;
	if (!tags)
		return UNTRACKED;

	for (__u32 i = 0; i < SOURCE_WAYS; i++) {
		__u64 tag = READ_ONCE(tags->tag[i]);

		if ((tag & ~TAG_SEEN) == src->tag) {
			state = lookup(source_states, bucket * SOURCE_WAYS + i);
			if (!state || state->hi != src->hi || state->lo != src->lo)
				continue;
			src->index = bucket * SOURCE_WAYS + i;
			return tag_touch(&tags->tag[i], src->tag, now) ? TRACKED : RACED;
		}
		if ((tag & ~TAG_SEEN) == (src->tag & ~(__u64)TAG_LIVE) && tag)
			return RACED; /* another CPU is making this very entry */
	}

	victim = source_victim(bucket, now, control->source_idle);
	if (victim >= SOURCE_WAYS)
		return UNTRACKED;
	victim_tag = READ_ONCE(tags->tag[victim]);
	if (victim_tag && (!(victim_tag & TAG_LIVE) ||
			   tag_age(victim_tag, now) <= (__s64)(control->source_idle >> SEEN_SHIFT)))
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

/* Hands what was gathered over to its source's entry, if that is still the source's. */
static __always_inline void pending_flush(const struct pending *pending)
{
	struct source_tags *tags = lookup(source_tags, pending->slot / SOURCE_WAYS);
	struct source_counts *counts = lookup(source_counts, pending->slot);

	if (!tags || !counts)
		return;
	if ((READ_ONCE(tags->tag[pending->slot % SOURCE_WAYS]) & ~TAG_SEEN) != pending->tag)
		return;
	if (pending->passed) {
		__sync_fetch_and_add(&counts->packets, pending->passed);
		__sync_fetch_and_add(&counts->bytes, pending->bytes);
	}
	if (pending->dropped)
		__sync_fetch_and_add(&counts->dropped, pending->dropped);
}

static __always_inline void source_count(const struct source *src, __u32 bytes, bool dropped)
{
	struct pending_set *set = lookup(pending, 0);
	struct pending *mine;

	if (!set)
		return;
	mine = &set->slot[src->index % PENDING_SLOTS];
	if (mine->slot != src->index || mine->tag != src->tag ||
	    mine->passed + mine->dropped >= PENDING_FLUSH) {
		if (mine->passed + mine->dropped)
			pending_flush(mine);
		mine->slot = src->index;
		mine->passed = 0;
		mine->dropped = 0;
		mine->bytes = 0;
		mine->tag = src->tag;
	}
	if (dropped) {
		mine->dropped++;
		return;
	}
	mine->passed++;
	mine->bytes += bytes;
}
