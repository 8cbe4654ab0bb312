/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "allow.h"
#include "hash.h"

/* How often an entry is read, and a search made, when it changes under the reader's hands. */
enum { BAN_READS = 4, BAN_TRIES = 16 };

/*
 * An entry that matched is read whole: see enum ban_flags. Returns its word if it lives, else 0.
 * While it changes and still matches (another list took the prefix over), it is read again. The
 * expiry is read on both sides of the word: between two looks at the word alone a writer may have
 * put another ban there and this one back. One who does so twice is told by the epoch, which rises
 * each time that a ban gives way to one that enforces less.
 */
static __always_inline __u64 ban_read(const __u64 *word, __u64 seen, const __u64 *expires,
				      __u64 mask, __u64 want)
{
	const struct control *control = lookup(controls, 0);

	for (int i = 0; control && i < BAN_READS; i++) {
		__u64 epoch = READ_ONCE(control->ban_epoch);
		__u64 until = READ_ONCE(*expires);
		__u64 again = READ_ONCE(*word);

		if (likely(again == seen && READ_ONCE(*expires) == until &&
			   READ_ONCE(control->ban_epoch) == epoch)) {
			/* The coarse clock is late by a tick at most (4 ms at 250 Hz), and nearly free. */
			return until == NS_FOREVER || until > bpf_ktime_get_coarse_ns() ? seen : 0;
		}
		if ((again & mask) != want)
			return 0;
		seen = again;
	}
	return 0;
}

#define BAN4_MATCH ((~0ULL << BAN_KEY_SHIFT) | 3ULL << BAN_CLASS_SHIFT | BAN_TOMBSTONE | BAN_LIVE)

static __always_inline __u32 ban4_home(__u32 key, __u32 cls)
{
	return (__u32)hash64((__u64)cls << 32 | key) & cfg_ban4_mask;
}

/*
 * The word of the live entry for a key of this class, or 0. A bucket with a free entry ends the
 * search. A function of its own, so that the verifier walks it once and not once per class.
 */
__noinline __u64 ban4_probe(__u32 key, __u32 cls)
{
	__u64 want = (__u64)key << BAN_KEY_SHIFT | (cls & 3) << BAN_CLASS_SHIFT | BAN_LIVE;
	__u32 home = ban4_home(key, cls);

	for (int i = 0; i < BAN4_PROBES; i++) {
		struct ban4_bucket *bucket = lookup(ban4_table, (home + i) & cfg_ban4_mask);
		__u64 used = ~0ULL;

		if (!bucket)
			return 0;
		for (int j = 0; j < BAN4_SLOTS; j++) {
			__u64 word = READ_ONCE(bucket->entry[j].word);

			if ((word & BAN4_MATCH) == want) {
				__u64 found = ban_read(&bucket->entry[j].word, word,
						       &bucket->entry[j].expires, BAN4_MATCH, want);

				if (found)
					return found;
			}
			used &= word | word >> 2; /* bit 0: live, or a tombstone */
		}
		if (!(used & BAN_LIVE))
			return 0;
	}
	return 0;
}

/* One bit a /24, 2 MiB for all of IPv4: a clean source is answered here. */
static __always_inline bool ban4_near(__u32 addr)
{
	__u64 *word = lookup(ban4_bits, addr >> 14);

	return word && READ_ONCE(*word) >> (addr >> 8 & 63) & 1;
}

/* Asks for the cache line of a key's bucket, as guess does. */
static __always_inline void ban4_fetch(__u32 key, __u32 cls)
{
	struct ban4_bucket *bucket = lookup(ban4_table, ban4_home(key, cls));

	if (bucket)
		READ_ONCE(bucket->entry[0].word);
}

/* The word of the ban of an address that is near one, or 0. */
static __always_inline __u64 ban4_find(const struct control *control, __u32 addr)
{
	__u64 *word, found, epoch, monitored = 0;
	struct ban4_entry *wide;
	__u32 classes;

	/* Most bans are of a /32, then of a /24: they are asked for before the classes are known. */
	ban4_fetch(addr, BAN4_32);
	ban4_fetch(addr & ~0xFFU, BAN4_24);
	word = lookup(ban4_classes, addr >> 12);
	wide = lookup(ban4_wide, addr >> 16);
	if (!word || !wide)
		return 0;

	for (int i = 0; i < BAN_TRIES; i++) {
		epoch = READ_ONCE(control->ban_epoch);
		classes = READ_ONCE(*word) >> ((addr >> 8 & 15) * 4);
		monitored = 0;
		for (int cls = BAN4_32; cls <= BAN4_20; cls++) {
			if (!(classes & 1U << cls))
				continue;
			found = ban4_probe(addr & ~0U << (cls * 4), cls);
			if (found && !(found & BAN_MONITOR))
				return found;
			if (!monitored)
				monitored = found;
		}
		if (classes & 1U << BAN4_20) {
			found = READ_ONCE(wide->word);
			found = found & BAN_LIVE ? ban_read(&wide->word, found, &wide->expires,
							    BAN_LIVE, BAN_LIVE) :
						   0;
			if (found && !(found & BAN_MONITOR))
				return found;
			if (!monitored)
				monitored = found;
		}
		if (likely(READ_ONCE(control->ban_epoch) == epoch))
			break;
	}
	return monitored;
}

#define BAN6_MATCH                                                                                 \
	((~0ULL << BAN_KEY_SHIFT) | 0xFFULL << BAN_LENGTH_SHIFT | BAN_TOMBSTONE | BAN_LIVE)

static __always_inline __u64 ban6_hash(__u64 hi, __u64 lo, __u32 length)
{
	return hash64(hash128(hi, lo) + length);
}

/* Asks for the cache line of a prefix's bucket. */
static __always_inline void ban6_fetch(__u64 hi, __u64 lo, __u32 length)
{
	struct ban6_bucket *bucket =
		lookup(ban6_table, ban6_hash(hi, lo, length) >> 32 & cfg_ban6_mask);

	if (bucket)
		READ_ONCE(bucket->entry[0].word);
}

/* The word of the live entry for the prefix of this length (1..128) of an address, or 0. */
__noinline __u64 ban6_probe(__u64 hi, __u64 lo, __u32 length)
{
	__u64 hash, want;
	__u32 home;

	hi &= length < 64 ? ~0ULL << (64 - (length & 63)) : ~0ULL;
	lo &= length >= 128 ? ~0ULL : length > 64 ? ~0ULL << (128 - length & 63) : 0;
	hash = ban6_hash(hi, lo, length);
	want = hash << BAN_KEY_SHIFT | (length & 0xFF) << BAN_LENGTH_SHIFT | BAN_LIVE;
	home = hash >> 32;

	for (int i = 0; i < BAN6_PROBES; i++) {
		struct ban6_bucket *bucket = lookup(ban6_table, (home + i) & cfg_ban6_mask);
		__u64 used = ~0ULL;

		if (!bucket)
			return 0;
		for (int j = 0; j < BAN6_SLOTS; j++) {
			struct ban6_entry *entry = &bucket->entry[j];
			__u64 word = READ_ONCE(entry->word);

			if ((word & BAN6_MATCH) == want && READ_ONCE(entry->hi) == hi &&
			    READ_ONCE(entry->lo) == lo) {
				__u64 found = ban_read(&entry->word, word, &entry->expires,
						       BAN6_MATCH, want);

				if (found)
					return found;
			}
			used &= word | word >> 2; /* bit 0: live, or a tombstone */
		}
		if (!(used & BAN_LIVE))
			return 0;
	}
	return 0;
}

/*
 * Asks for each length in a set, the longest first: bit n stands for length base + n. Returns the
 * first word that enforces, else the first that monitors, else 0.
 */
__noinline __u64 ban6_ask(__u64 hi, __u64 lo, __u64 set, __u32 base)
{
	__u64 found, monitored = 0;

	for (int i = 0; i < 64 && set; i++) {
		__u32 bit = 63 - __builtin_clzll(set);

		set &= ~(1ULL << bit);
		found = ban6_probe(hi, lo, base + bit);
		if (found && !(found & BAN_MONITOR))
			return found;
		monitored = monitored ? monitored : found;
	}
	return monitored;
}

/*
 * The bit of a cell, 1 to 31, that is set if a prefix of this hash leads there, or one that meets it
 * twice: of those that meet only in the cell it tells most apart.
 */
static __always_inline __u32 ban6_mark(__u64 hash)
{
	return hash >> 59 ? hash >> 59 : 1;
}

/* Which lengths the filters have for an address: those that a ban of it may have. */
static __always_inline struct ban6_lengths ban6_near(__u64 hi, __u32 tiers)
{
	struct ban6_lengths *cell, near = {};
	__u64 hash, set;

	if (tiers & BAN6_TIER_48) {
		hash = hash64(hi >> 16);
		cell = lookup(ban6_filter, hash & cfg_ban6_filter_mask);
		if (cell) {
			set = READ_ONCE(cell->low);
			if (set >> ban6_mark(hash) & 1) {
				/* 48..63, and 128 in bit 0 */
				near.low |= set & (0xFFFFULL << 48 | 1);
				near.high |= READ_ONCE(cell->high);
			}
		}
	}
	if (tiers & BAN6_TIER_32) {
		hash = hash64(hi >> 32);
		cell = lookup(ban6_filter, hash & cfg_ban6_filter_mask);
		if (cell) {
			set = READ_ONCE(cell->low);
			if (set >> ban6_mark(hash) & 1)
				near.low |= set & 0xFFFFULL << 32;
		}
	}
	if (tiers & BAN6_TIER_WIDE) {
		__u64 *wide = lookup(ban6_wide, hi >> 48);

		/* ::/0 is stored as its two halves: no length is 0. */
		if (wide)
			near.low |= READ_ONCE(*wide) & 0xFFFFFFFEULL;
	}
	return near;
}

/* Asks for the lengths that may be there; for most bans' before it is known which those are. */
static __always_inline __u64 ban6_once(__u64 hi, __u64 lo, const struct ban6_lengths *near)
{
	__u64 found, monitored;

	ban6_fetch(hi, lo, 128);
	ban6_fetch(hi, 0, 64);
	monitored = near->low & 1 ? ban6_probe(hi, lo, 128) : 0;
	if (monitored && !(monitored & BAN_MONITOR))
		return monitored;
	found = ban6_ask(hi, lo, near->high, 64);
	if (found && !(found & BAN_MONITOR))
		return found;
	monitored = monitored ? monitored : found;
	found = ban6_ask(hi, lo, near->low & ~1ULL, 0);
	if (found && !(found & BAN_MONITOR))
		return found;
	return monitored ? monitored : found;
}

/* What this CPU remembers of a /48, or of another one that it was asked for since. */
static __always_inline struct ban6_far *ban6_far_of(__u64 key)
{
	return lookup(ban6_fars, (key ^ cfg_secret[0]) * HASH_B >> (64 - BAN6_FARS_SHIFT));
}

/* Whether it is remembered that no ban is near an address. */
static __always_inline bool ban6_is_far(const struct control *control, __u64 hi)
{
	const struct ban6_far *far = ban6_far_of(hi >> 16);

	return cfg_ordered_loads && far && far->key == hi >> 16 &&
	       far->version == READ_ONCE(control->ban6_version);
}

/*
 * The word of the ban of an address, or 0. That none is near is remembered. The version is read before
 * all else: what was made visible before it rose to that is seen below.
 */
static __always_inline __u64 ban6_find(const struct control *control, __u64 hi, __u64 lo)
{
	__u64 found, version = READ_ONCE(control->ban6_version);
	struct ban6_far *far;

	for (int i = 0; i < BAN_TRIES; i++) {
		__u64 epoch = READ_ONCE(control->ban_epoch);
		struct ban6_lengths near = ban6_near(hi, READ_ONCE(control->ban6_tiers));

		found = near.low | near.high ? ban6_once(hi, lo, &near) : 0;
		if (found && !(found & BAN_MONITOR))
			return found;
		if (unlikely(READ_ONCE(control->ban_epoch) != epoch))
			continue;
		far = near.low | near.high ? NULL : ban6_far_of(hi >> 16);
		if (cfg_ordered_loads && far) {
			far->key = hi >> 16;
			far->version = version;
		}
		break;
	}
	return found;
}

/*
 * Whether it is known at a glance that no ban can be found for the source. While a prefix is banned its
 * tier is there.
 */
static __always_inline bool ban_far(const struct control *control, __u32 family, __u64 hi, __u64 lo)
{
	if (family == FAMILY_IPV4)
		return !ban4_near(lo);
	return ban6_is_far(control, hi) || !READ_ONCE(control->ban6_tiers);
}

/* The word of the ban of an address, or 0. A global function, for what a filter has let through. */
__noinline __u64 ban_find(__u64 hi, __u64 lo, __u32 family)
{
	const struct control *control = lookup(controls, 0);

	if (!control)
		return 0;
	return family == FAMILY_IPV4 ? ban4_find(control, lo) : ban6_find(control, hi, lo);
}

/* Drops packets from banned sources, unless an allow entry overrules the ban. */
static __always_inline enum reason stage_ban(const struct control *control, struct pkt *pkt)
{
	__u64 found;

	if (ban_far(control, pkt->family, pkt->src_hi, pkt->src_lo))
		return REASON_CONTINUE;
	found = ban_find(pkt->src_hi, pkt->src_lo, pkt->family);
	if (!found)
		return REASON_CONTINUE;
	if (stage_allow(pkt, 0)) {
		/* Limits may still apply to it: its way goes on, and it is counted as allowed. */
		pkt->shadow = REASON_ALLOWED;
		return REASON_CONTINUE;
	}
	pkt->list = found >> BAN_LIST_SHIFT & (MAX_LISTS - 1);
	if (found & BAN_MONITOR && !control->monitor) {
		pkt->shadow = REASON_BANNED;
		return REASON_CONTINUE;
	}
	return REASON_BANNED;
}
