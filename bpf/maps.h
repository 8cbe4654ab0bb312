/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "types.h"

/*
 * Every map, and who writes it. Sizes stand here as defaults; the loader sets those that are
 * settings. "Array" always means one that user space maps into its memory.
 */
#define ARRAY(map, value_type, entries)                                                            \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                  \
		__uint(map_flags, BPF_F_MMAPABLE);                                                 \
		__uint(max_entries, entries);                                                      \
		__type(key, __u32);                                                                \
		__type(value, value_type);                                                         \
	} map SEC(".maps")

#define PERCPU(map, value_type, entries)                                                           \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);                                           \
		__uint(max_entries, entries);                                                      \
		__type(key, __u32);                                                                \
		__type(value, value_type);                                                         \
	} map SEC(".maps")

#define TRIE(map, value_type, entries)                                                             \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);                                               \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                              \
		__uint(max_entries, entries);                                                      \
		__type(key, struct prefix_key);                                                    \
		__type(value, value_type);                                                         \
	} map SEC(".maps")

/* One entry each. controls: user space writes, the program reads. meta: only user space. */
ARRAY(controls, struct control, 1);
ARRAY(meta, struct meta, 1);

/* Slot of an interface -> the interface. User space only: the program knows its slot. */
ARRAY(interfaces, struct interface, MAX_INTERFACES);

/*
 * IPv4 bans; user space writes, the program reads.
 * bits: one bit per /24 that a ban covers or touches; index address >> 14, bit address >> 8 & 63.
 * classes: four bits per /24: which of the classes below to ask; index address >> 12, nibble
 *   address >> 8 & 15. Bit 3 stands for /20 and for wide.
 * wide: /0../16, expanded to /16; index address >> 16.
 * table: /17../32; bucket hash(address masked, class), 16 bytes an entry, no eviction.
 */
ARRAY(ban4_bits, __u64, 1 << 18);
ARRAY(ban4_classes, __u64, 1 << 20);
ARRAY(ban4_wide, struct ban4_entry, 1 << 16);
ARRAY(ban4_table, struct ban4_bucket, 1 << 20);

/*
 * IPv6 bans; user space writes, the program reads.
 * filter: hash(first 48 bits) and hash(first 32) -> lengths present; wide: first 16 bits ->
 * lengths 0..31 present; table: hash(prefix, length) -> bucket, 32 bytes an entry, no eviction.
 */
ARRAY(ban6_filter, struct ban6_lengths, 1 << 17);
ARRAY(ban6_wide, __u64, 1 << 16);
ARRAY(ban6_table, struct ban6_bucket, 1 << 17);
PERCPU(ban6_fars, struct ban6_far, BAN6_FARS); /* the program's own */

/* Prefixes that no ban may touch; asked only when a ban or a limit would drop. User space writes. */
TRIE(allows, struct allow, 1 << 14);

/*
 * Limits; user space writes. limits: by number, 0 is the default. source_limits: source prefix ->
 * number. service_limits: number of a destination port's limit, eight ports to a word, TCP at
 * 0 and UDP at 8192; protocol_limits: number by IP protocol, eight to a word. Number 0: none.
 */
ARRAY(limits, struct limit, MAX_LIMITS);
TRIE(source_limits, __u32, 1 << 14);
ARRAY(service_limits, __u64, 2 * 65536 / 8);
ARRAY(protocol_limits, __u64, 256 / 8);

/*
 * Sources; the program writes, user space reads through the mapping. Bucket hash(source);
 * index bucket * 8 + way. 104 bytes a source. An idle one makes room for a newcomer.
 */
ARRAY(source_tags, struct source_tags, 1 << 16);
ARRAY(source_states, struct source_state, SOURCE_WAYS << 16);
ARRAY(source_counts, struct source_counts, SOURCE_WAYS << 16);
PERCPU(tabs, struct tabs, 1);

/* hash(prefix, limit) -> four cells. The program writes. A cell that owes nothing is free. */
ARRAY(aggregates, struct aggregate_bucket, 1 << 14);

/* Theoretical arrival time of the caps of control packets, one line each: enum family's
 * ICMP errors (ARP for the other), then neighbour discovery. */
struct control_cap {
	__u64 tat;
	__u64 pad[7];
};
enum { CAP_NEIGHBOUR = FAMILY_MAX, CAPS };
ARRAY(control_caps, struct control_cap, CAPS);

/*
 * Counters, per CPU: the program writes, user space reads and sums.
 * counters: ((slot * REASON_MAX + reason) * FAMILY_MAX + family) * 2 + monitored.
 * list_counters: by list, dropped (or, monitored, passed) packets: list * 2 + monitored.
 * limit_counters: (limit * LIMIT_COUNTERS + threshold or COUNT_…) * 2 + monitored.
 */
#define COUNTERS (MAX_INTERFACES * REASON_MAX * FAMILY_MAX * 2)
PERCPU(counters, struct counter, COUNTERS);
PERCPU(list_counters, struct counter, MAX_LISTS * 2);
PERCPU(limit_counters, struct counter, MAX_LIMITS *LIMIT_COUNTERS * 2);
PERCPU(stats, __u64, STAT_MAX);

/* Sampled packets, to one reader. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

struct event_window {
	__u64 second; /* coarse monotonic time >> 30 */
	__u64 used;
};
PERCPU(event_windows, struct event_window, 1);

/* The entry of an array, or NULL past its end. The JIT turns this into a compare and an add. */
#define lookup(map, index)                                                                         \
	({                                                                                         \
		__u32 __key = (index);                                                             \
		bpf_map_lookup_elem(&(map), &__key);                                               \
	})
