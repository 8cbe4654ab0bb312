/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "parse.h"

/*
 * A source that no sender can have: loopback or multicast, and IPv4 in IPv6 (the kernel discards
 * all of these). 0.0.0.0 and :: stay, for DHCP and duplicate address detection.
 */
static __always_inline bool martian(__u32 family, __u64 hi, __u64 lo)
{
	if (family == FAMILY_IPV4) {
		__u32 first = lo >> 24;

		return first == 127 || (first & 0xF0) == 0xE0 || lo == 0xFFFFFFFF;
	}
	if (hi >> 56 == 0xFF)
		return true;
	return !hi && (lo == 1 || lo >> 32 == 0xFFFF);
}

/* Drops what the kernel would discard after spending an skb on it. */
static __always_inline enum reason stage_sanity(const struct pkt *pkt)
{
	if (cfg_martians && martian(pkt->family, pkt->src_hi, pkt->src_lo))
		return REASON_MARTIAN;
	if (pkt->flags & PKT_L4_BAD)
		return REASON_MALFORMED_L4;
	return REASON_CONTINUE;
}
