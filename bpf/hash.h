/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "config.h"

/*
 * Keyed hashes of the tables. Each round is a multiplication and a shift that folds the high half
 * down (the finalizer of MurmurHash3 has this form); the key enters before each round, so that
 * which prefixes meet in a bucket can't be worked out without it. maps/hash.go is the twin.
 */
#define HASH_A 0xFF51AFD7ED558CCDULL
#define HASH_B 0xC4CEB9FE1A85EC53ULL

static __always_inline __u64 hash64(__u64 x)
{
	x ^= cfg_secret[0];
	x *= HASH_A;
	x ^= x >> 32;
	x ^= cfg_secret[1];
	x *= HASH_B;
	return x ^ x >> 29;
}

static __always_inline __u64 hash128(__u64 hi, __u64 lo)
{
	return hash64(hash64(hi) + lo);
}
