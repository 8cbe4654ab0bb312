//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * What Levee is measured against. bare: parse and drop, the floor. field: Levee's duty (a
 * blocklist of prefixes, a limit per source, counters) as it is commonly built, out of the
 * kernel's general-purpose maps.
 */
#include "kernel.h"

#define BPF_MAP_TYPE_LRU_HASH 9

static long (*const bpf_map_update_elem)(const void *map, const void *key, const void *value,
					 __u64 flags) = (void *)2;

enum { ETH_LENGTH = 14, NS_PER_SECOND = 1000000000 };

enum count {
	COUNT_PASSED = 0,
	COUNT_BANNED = 1,
	COUNT_LIMITED = 2,
	COUNT_OTHER = 3,
	COUNT_MAX = 4
};

/* Per second, and as a burst. */
volatile const __u64 cfg_packets = 0;
volatile const __u64 cfg_bytes = 0;

/* Parts that can be left out, to see what each costs. */
volatile const bool cfg_bans = true;
volatile const bool cfg_limits = true;

struct key4 {
	__u32 length;
	__u32 addr;
};
struct key6 {
	__u32 length;
	__u8 addr[16];
};

#define TRIE(map, key_type)                                                                        \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);                                               \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                              \
		__uint(max_entries, 1 << 20);                                                      \
		__type(key, key_type);                                                             \
		__type(value, __u64); /* until when, CLOCK_MONOTONIC ns */                         \
	} map SEC(".maps")

TRIE(bans4, struct key4);
TRIE(bans6, struct key6);

/* A token bucket. */
struct bucket {
	__u64 at;      /* CLOCK_MONOTONIC ns */
	__u64 packets; /* left */
	__u64 bytes;   /* left */
};

#define SOURCES(map, key_type)                                                                     \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_LRU_HASH);                                               \
		__uint(max_entries, 1 << 19);                                                      \
		__type(key, key_type);                                                             \
		__type(value, struct bucket);                                                      \
	} map SEC(".maps")

SOURCES(sources4, __u32);
SOURCES(sources6, __u64); /* a /64 */

struct counts {
	__u64 packets;
	__u64 bytes;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNT_MAX);
	__type(key, __u32);
	__type(value, struct counts);
} counts SEC(".maps");

static __always_inline int done(__u32 what, __u32 length)
{
	struct counts *count = bpf_map_lookup_elem(&counts, &what);

	if (count) {
		count->packets++;
		count->bytes += length;
	}
	return what == COUNT_BANNED || what == COUNT_LIMITED ? XDP_DROP : XDP_PASS;
}

static __always_inline bool lives(const __u64 *until)
{
	return until && (*until == ~0ULL || *until > bpf_ktime_get_ns());
}

static __always_inline __u64 refill(__u64 left, __u64 rate, __u64 ns)
{
	left += rate * ns / NS_PER_SECOND;
	return left < rate ? left : rate;
}

/* As the field does it: not atomic. */
static __always_inline int charge(void *map, const void *key, __u32 length)
{
	struct bucket *bucket = bpf_map_lookup_elem(map, key);
	__u64 now = bpf_ktime_get_ns(), ns;

	if (!bucket) {
		struct bucket fresh = { now, cfg_packets - 1, cfg_bytes - length };

		bpf_map_update_elem(map, key, &fresh, 0);
		return done(COUNT_PASSED, length);
	}
	ns = now - bucket->at;
	if (ns > NS_PER_SECOND)
		ns = NS_PER_SECOND;
	bucket->at = now;
	bucket->packets = refill(bucket->packets, cfg_packets, ns);
	bucket->bytes = refill(bucket->bytes, cfg_bytes, ns);
	if (!bucket->packets || bucket->bytes < length)
		return done(COUNT_LIMITED, length);
	bucket->packets--;
	bucket->bytes -= length;
	return done(COUNT_PASSED, length);
}

SEC("xdp")
int field(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	__u32 length = data_end - data;

	if ((void *)(eth + 1) > data_end)
		return done(COUNT_OTHER, length);
	if (eth->proto == cpu_to_be16(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_LENGTH;
		struct key4 key = { .length = 32 };

		if ((void *)(ip + 1) > data_end || ip->ver_ihl >> 4 != 4)
			return done(COUNT_OTHER, length);
		key.addr = ip->saddr;
		if (cfg_bans && lives(bpf_map_lookup_elem(&bans4, &key)))
			return done(COUNT_BANNED, length);
		return cfg_limits ? charge(&sources4, &key.addr, length) :
				    done(COUNT_PASSED, length);
	}
	if (eth->proto == cpu_to_be16(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + ETH_LENGTH;
		struct key6 key = { .length = 128 };
		__u64 network;

		if ((void *)(ip + 1) > data_end)
			return done(COUNT_OTHER, length);
		network = ip->saddr[0];
		__builtin_memcpy(key.addr, ip->saddr, sizeof(key.addr));
		if (cfg_bans && lives(bpf_map_lookup_elem(&bans6, &key)))
			return done(COUNT_BANNED, length);
		return cfg_limits ? charge(&sources6, &network, length) :
				    done(COUNT_PASSED, length);
	}
	return done(COUNT_OTHER, length);
}

SEC("xdp")
int bare(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > data_end)
		return XDP_PASS;
	if (eth->proto == cpu_to_be16(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_LENGTH;

		return (void *)(ip + 1) > data_end || ip->ver_ihl >> 4 != 4 ? XDP_PASS : XDP_DROP;
	}
	if (eth->proto == cpu_to_be16(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + ETH_LENGTH;

		return (void *)(ip + 1) > data_end ? XDP_PASS : XDP_DROP;
	}
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
