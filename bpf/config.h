/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "types.h"

/*
 * What is fixed when the program is loaded. The loader sets each by its name and an unknown name
 * is an error; to the verifier they are constants, so what is off costs nothing. What changes
 * while the program runs stands in struct control.
 */

/* The slot of this interface in the counters: each interface runs its own copy of the program. */
volatile const __u32 cfg_interface_slot = 0;

/* The hashes' key, that of the pinned set's struct meta. */
volatile const __u64 cfg_secret[2] = { 0x9E3779B97F4A7C15ULL, 0xD1B54A32D192ED03ULL };

/* Sizes of the hashed tables, as number of buckets or cells less one; powers of two. */
volatile const __u32 cfg_ban4_mask = (1 << 20) - 1;
volatile const __u32 cfg_ban6_mask = (1 << 17) - 1;
volatile const __u32 cfg_ban6_filter_mask = (1 << 17) - 1;
volatile const __u32 cfg_source_mask = (1 << 16) - 1;
volatile const __u32 cfg_aggregate_mask = (1 << 14) - 1;

/*
 * This CPU's loads are seen in their order, as amd64 sees to it: what is remembered of the filters
 * relies on that. Where they are not, nothing is remembered.
 */
volatile const bool cfg_ordered_loads = false;

/* Stages that can be left out. */
volatile const bool cfg_bans = true;
volatile const bool cfg_sanity = true;
volatile const bool cfg_limits = true;
volatile const bool cfg_events = true;

/* Drop sources that can't be on a wire (loopback, multicast): off on the loopback interface. */
volatile const bool cfg_martians = true;

/* The kernel has bpf_xdp_get_buff_len (5.18) and the program is loaded for multi-buffer packets. */
volatile const bool cfg_frags = false;

/* Enums that no signature mentions, so that they get into the BTF, and from there into Go. */
volatile const struct {
	enum reason reason;
	enum family family;
	enum threshold threshold;
	enum sizes sizes;
	enum stat stat;
	enum ban_flags ban_flags;
	enum ban_word ban_word;
	enum ban_geometry ban_geometry;
	enum ban4_class ban4_class;
	enum ban6_tier ban6_tier;
	enum allow_flags allow_flags;
	enum limit_flags limit_flags;
	enum rate_unit rate_unit;
	enum source_tag source_tag;
	enum tab_geometry tab_geometry;
	struct event event;
} types_for_go = {};
