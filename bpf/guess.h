/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "ban.h"
#include "source.h"

/* The source as it is grouped unless a limit says otherwise: an address of IPv4, a /64 of IPv6. */
static __always_inline __u64 usual_lo(const struct pkt *pkt)
{
	return pkt->family == FAMILY_IPV4 ? pkt->src_lo : 0;
}

/* Where the aggregate of a prefix is: its address, IPv4 in the high half of the word. */
static __always_inline __u32 aggregate_index(__u64 key)
{
	return hash64(key) & cfg_aggregate_mask;
}

/*
 * Asks for the cache lines that this packet will need if it fares as the last one on this CPU did, as
 * a flood's packets do. Each of the later stages waits for a line that nobody has touched for long;
 * asked for here, one after the other, without a look at what they hold, they arrive together. BPF
 * has no prefetch, but a load whose value nobody uses comes to the same. A wrong guess costs bandwidth
 * and changes nothing.
 */
static __always_inline void guess(const struct tabs *mine, struct pkt *pkt)
{
	__u32 bucket;

	pkt->hash = source_hash(pkt->src_hi, usual_lo(pkt));
	bucket = pkt->hash & cfg_source_mask;
	if (mine->guess == GUESS_BANNED) {
		if (cfg_bans && pkt->family == FAMILY_IPV4) {
			struct ban4_bucket *bans =
				lookup(ban4_table, ban4_home(pkt->src_lo, BAN4_32));
			__u64 *classes = lookup(ban4_classes, pkt->src_lo >> 12);

			if (bans && classes) {
				READ_ONCE(bans->entry[0].word);
				READ_ONCE(*classes);
			}
		}
		return;
	}
	if (cfg_limits) {
		struct source_tags *tags = lookup(source_tags, bucket);

		if (tags)
			READ_ONCE(tags->tag[0]);
		if (mine->guess == GUESS_KNOWN) {
			struct source_state *state = lookup(
				source_states, bucket * SOURCE_WAYS + source_home(pkt->hash));

			if (state)
				READ_ONCE(state->hi);
		} else {
			__u64 key = pkt->family == FAMILY_IPV4 ? pkt->src_lo >> 8 << 40 :
								 pkt->src_hi >> 16 << 16;
			struct aggregate_bucket *cell = lookup(aggregates, aggregate_index(key));

			if (cell)
				READ_ONCE(cell->key[0]);
		}
	}
}
