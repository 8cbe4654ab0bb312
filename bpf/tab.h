/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "gcra.h"
#include "source.h"

#define TAG_WHO (~TAG_SEEN & ((1ULL << TAG_PRINT_SHIFT) - 1))

/* This CPU's tab for a source; two sources may share one, and then take it from each other. */
static __always_inline struct tab *tab_of(struct tabs *mine, const struct source *src)
{
	__u64 who = (src->hi ^ src->lo ^ cfg_secret[0]) + (src->tag >> TAG_LIMIT_SHIFT & 0xFF);

	return &mine->tab[who * HASH_B >> (64 - TABS_SHIFT)];
}

static __always_inline bool tab_is(const struct tab *tab, const struct source *src)
{
	return tab->lo == src->lo && tab->hi == src->hi &&
	       (tab->tag & TAG_WHO) == (src->tag & TAG_WHO);
}

/* A packet's length in units of room. */
static __always_inline __u32 room_of(__u32 length)
{
	return 1 + (length >> CREDIT_SHIFT);
}

/* Puts a packet that passes on a tab. */
static __always_inline void tab_pass(struct tab *tab, __u32 length)
{
	tab->passed++;
	tab->bytes += length;
}

/* Lets a packet pass on credit, if there is room for it. */
static __always_inline bool tab_gives(struct tab *tab, __u32 length)
{
	__u32 room = tab->room;

	if (room < room_of(length))
		return false;
	tab->room = room - room_of(length);
	tab->owed++;
	tab->owed_bytes += length;
	return true;
}

/* Refuses a packet, if one that is not longer was refused. */
static __always_inline bool tab_refuses(struct tab *tab, __u32 length)
{
	if (!tab->refusal || length < tab->length)
		return false;
	tab->dropped++;
	return true;
}

/*
 * Charges what passed on credit to its source, as of the tick in which it passed, and puts it to what is
 * to be counted. A global function: it is walked once, and runs once in many packets.
 */
__noinline int tab_bill(struct tab *tab)
{
	const struct control *control = lookup(controls, 0);
	struct source_tags *tags;
	struct source_state *state;
	struct limit *limit;

	if (!tab || !tab->owed)
		return 0;
	tags = lookup(source_tags, tab->slot / SOURCE_WAYS);
	state = lookup(source_states, tab->slot);
	limit = lookup(limits, tab->tag >> TAG_LIMIT_SHIFT & 0xFF);
	if (!tags || !state || !limit || !control)
		return 0;
	if ((READ_ONCE(tags->tag[tab->slot % SOURCE_WAYS]) & ~TAG_SEEN) == tab->tag) {
		for (__u32 i = 0; i < THRESHOLD_MAX; i++) {
			const struct rate *rate = &limit->threshold[i];

			if (!(tab->set & 1 << i) || !READ_ONCE(rate->burst))
				continue;
			if (!gcra_bill(&state->tat[i],
				       rate_cost(rate,
						 i == THRESHOLD_BITS ? tab->owed_bytes : tab->owed),
				       tab->tick))
				stat_add(STAT_CONTENDED);
		}
		source_owes(control, tab->slot, tab->tag, state, tab->set, tab->tick);
	}
	tab->passed += tab->owed;
	tab->bytes += tab->owed_bytes;
	tab->owed = 0;
	tab->owed_bytes = 0;
	return 0;
}

/* Adds what is counted on a tab to its source's entry, if that is still the source's. */
static __always_inline void tab_count(struct tab *tab)
{
	struct source_tags *tags = lookup(source_tags, tab->slot / SOURCE_WAYS);
	struct source_counts *counts = lookup(source_counts, tab->slot);

	if (!tags || !counts)
		return;
	if ((READ_ONCE(tags->tag[tab->slot % SOURCE_WAYS]) & ~TAG_SEEN) == tab->tag) {
		if (tab->passed) {
			__sync_fetch_and_add(&counts->packets, tab->passed);
			__sync_fetch_and_add(&counts->bytes, tab->bytes);
		}
		if (tab->dropped)
			__sync_fetch_and_add(&counts->dropped, tab->dropped);
	}
	tab->passed = 0;
	tab->dropped = 0;
	tab->bytes = 0;
}

/* Makes a tab the source's for this tick, and lets go of whosever it was. */
static __always_inline void tab_open(struct tab *tab, const struct source *src, __u64 tick,
				     __u32 jiffy, __u8 set)
{
	struct source_counts *counts;
	bool same = tab->tag == src->tag && tab->slot == src->index && tab_is(tab, src);

	/* Jiffies move a moment before the coarse clock: until that follows, every packet asks anew. */
	if (!same || !tick || tab->tick != tick)
		tab->jiffy = jiffy;

	if (!same || tab->passed + tab->dropped >= TAB_FLUSH) {
		if (tab->passed | tab->dropped)
			tab_count(tab);
		tab->hi = src->hi;
		tab->lo = src->lo;
		tab->tag = src->tag;
		tab->slot = src->index;
		/* Fetched now, for when it is someone else's turn. */
		counts = lookup(source_counts, src->index);
		if (counts)
			READ_ONCE(counts->packets);
	}
	tab->tick = tick;
	tab->set = set;
	tab->room = 0;
	tab->refusal = 0;
}
