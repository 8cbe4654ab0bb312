/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "types.h"

/*
 * GCRA, the generic cell rate algorithm of ITU-T I.371: a 64-bit theoretical arrival time (TAT)
 * says until when what has passed is paid for. A packet conforms if, with its own cost added, the
 * TAT lies no further ahead than the burst. One that does not conform changes nothing, so a flood
 * only reads. In any window W at most burst + W / T packets pass, whoever counts them.
 */

static __always_inline __u64 rate_cost(const struct rate *rate, __u32 units)
{
	return (READ_ONCE(rate->cost) * units + (1 << COST_SHIFT) - 1) >> COST_SHIFT;
}

static __always_inline bool gcra_conforms(__u64 tat, __u64 cost, __u64 burst, __u64 now)
{
	return (tat > now ? tat : now) + cost <= now + burst;
}

/*
 * Owed is at most the burst. Much more comes from a time when the limit was lower, and is let off,
 * so that a raised limit frees those whom the old one blocked. A little more is what another CPU
 * has charged, whose clock is ahead of `now`: it must stand, or each of them would be given back.
 */
#define SETTLE_SLACK (1ULL << 30) /* ns; no two CPUs are that far apart */

static __always_inline void gcra_settle(__u64 *tat, __u64 burst, __u64 now)
{
	__u64 old = READ_ONCE(*tat);

	if (unlikely(old > now + burst + SETTLE_SLACK && !(old & TAT_PENALTY)))
		__sync_val_compare_and_swap(tat, old, now + burst);
}

enum gcra { GCRA_PASS, GCRA_OVER, GCRA_CONTENDED };

/* Charges what has passed on credit at a time, whether it conforms or not. False after four lost races. */
static __always_inline bool gcra_bill(__u64 *tat, __u64 cost, __u64 when)
{
	__u64 old = READ_ONCE(*tat);

	for (int i = 0; i < 4; i++) {
		__u64 seen;

		if (old & TAT_PENALTY)
			return true; /* it pays otherwise */
		seen = __sync_val_compare_and_swap(tat, old, (old > when ? old : when) + cost);
		if (seen == old)
			return true;
		old = seen;
	}
	return false;
}

/* Advances the TAT if the packet conforms, against other CPUs: four tries. */
static __always_inline int gcra_advance(__u64 *tat, __u64 cost, __u64 burst, __u64 now)
{
	__u64 old;

	if (!tat)
		return GCRA_PASS;
	old = READ_ONCE(*tat);

	for (int i = 0; i < 4; i++) {
		__u64 seen;

		if (!gcra_conforms(old, cost, burst, now))
			return GCRA_OVER;
		seen = __sync_val_compare_and_swap(tat, old, (old > now ? old : now) + cost);
		if (seen == old)
			return GCRA_PASS;
		old = seen;
	}
	return GCRA_CONTENDED;
}

/* A function, for those who charge more than one. */
__noinline int gcra_charge(__u64 *tat, __u64 cost, __u64 burst, __u64 now)
{
	return gcra_advance(tat, cost, burst, now);
}
