/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "source.h"

/* Where the aggregate of a prefix is: its address, IPv4 in the high half of the word. */
static __always_inline __u32 aggregate_index(__u64 key)
{
	return hash64(key) & cfg_aggregate_mask;
}

/*
 * Asks for the cache lines that this packet will need if it fares as the last one on this CPU did, as
 * a flood's packets do. Each of the later steps waits for a line that nobody has touched for long;
 * asked for here, one after the other, without a look at what they hold, they arrive together. BPF
 * has no prefetch, but a load whose value nobody uses comes to the same. A wrong guess costs bandwidth
 * and changes nothing.
 */
static __always_inline void guess(const struct tabs *mine, __u64 hash, __u64 aggregate)
{
	__u32 bucket = hash & cfg_source_mask;
	struct source_tags *tags = lookup(source_tags, bucket);

	if (tags)
		READ_ONCE(tags->tag[0]);
	if (mine->guess == GUESS_KNOWN) {
		__u32 slot = bucket * SOURCE_WAYS + source_home(hash);
		struct source_state *state = lookup(source_states, slot);
		struct source_counts *counts = lookup(source_counts, slot);

		if (state)
			READ_ONCE(state->hi);
		if (counts)
			READ_ONCE(counts->packets);
	} else {
		struct aggregate_bucket *cell = lookup(aggregates, aggregate_index(aggregate));

		if (cell)
			READ_ONCE(cell->key[0]);
	}
}
