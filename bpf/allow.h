/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "maps.h"
#include "parse.h"

#define MAPPED_IPV4 0x0000FFFF00000000ULL

static __always_inline void source_key(__u64 hi, __u64 lo, __u32 family, struct prefix_key *key)
{
	hi = be64_to_cpu(hi);
	lo = be64_to_cpu(family == FAMILY_IPV4 ? lo | MAPPED_IPV4 : lo);
	key->length = 128;
	__builtin_memcpy(key->addr, &hi, 8);
	__builtin_memcpy(key->addr + 8, &lo, 8);
}

/*
 * Whether an allow entry speaks for the source, with all of these flags. The most specific entry
 * decides. Only packets that would be dropped ask, so allowing costs clean traffic nothing.
 */
__noinline int allowed(__u64 hi, __u64 lo, __u32 family, __u32 flags)
{
	struct prefix_key key;
	struct allow *allow;

	source_key(hi, lo, family, &key);
	allow = bpf_map_lookup_elem(&allows, &key);
	if (!allow || (allow->flags & flags) != flags)
		return false;
	return allow->expires == NS_FOREVER || allow->expires > bpf_ktime_get_coarse_ns();
}

static __always_inline bool stage_allow(const struct pkt *pkt, __u32 flags)
{
	return allowed(pkt->src_hi, pkt->src_lo, pkt->family, flags);
}
