//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * What stands before the program under test: it rewrites the packet's source and tail-calls that
 * program, so that its caches are as cold as a flood makes them. Its own cost is in every figure,
 * the bare program's too. Told an interface, it sends the frame there instead.
 */
#include "kernel.h"

#define BPF_MAP_TYPE_PROG_ARRAY 3

static __u32 (*const bpf_get_prandom_u32)(void) = (void *)7;
static long (*const bpf_tail_call)(void *ctx, const void *map, __u32 index) = (void *)12;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;

enum {
	ETH_LENGTH = 14,
	TARGETS = 256,
	LIST_ENTRIES = 1 << 20,
	PER_LINE4 = 16,
	PER_LINE6 = 4,
};

enum draw {
	DRAW_FIXED = 0,
	DRAW_RANDOM = 1,
	DRAW_SEQUENCE = 2, /* the list, one address after the other */
	DRAW_SHUFFLE = 3,  /* the list, at random: a cold access of the wrapper's own */
};

volatile const __u32 cfg_target = 0; /* slot in `targets` */
volatile const __u32 cfg_draw = DRAW_FIXED;
volatile const bool cfg_ipv6 = false;
volatile const __u32 cfg_entries = LIST_ENTRIES; /* of the list; a power of two */
volatile const __u32 cfg_ifindex = 0;		 /* where frames go; 0: to the target */
volatile const __u32 cfg_header_sum = 0;	 /* RFC 1071, the IPv4 header without the source */

/* DRAW_FIXED; network order. */
volatile const __u32 cfg_fixed4 = 0;
volatile const __u64 cfg_fixed6[2] = {};

struct line4 {
	__u32 addr[PER_LINE4]; /* network order */
};
struct line6 {
	__u64 addr[PER_LINE6][2];
};

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, TARGETS);
	__uint(key_size, 4);
	__uint(value_size, 4);
} targets SEC(".maps");

/* One of the two is used. Written by user space, read in order; 4 and 16 bytes an address. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, LIST_ENTRIES / PER_LINE4);
	__type(key, __u32);
	__type(value, struct line4);
} list4 SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, LIST_ENTRIES / PER_LINE6);
	__type(key, __u32);
	__type(value, struct line6);
} list6 SEC(".maps");

/* How far each CPU has read. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} cursor SEC(".maps");

static __always_inline __u32 list_index(void)
{
	__u32 zero = 0;
	__u64 *at;

	if (cfg_draw == DRAW_SHUFFLE)
		return bpf_get_prandom_u32() & (cfg_entries - 1);
	at = bpf_map_lookup_elem(&cursor, &zero);
	return at ? (*at)++ & (cfg_entries - 1) : 0;
}

/*
 * Any unicast address whose second byte is even. The lists' prefixes shorter than /25 all lie
 * where it is odd, so that what is drawn here is not banned.
 */
static __always_inline __u32 random4(void)
{
	__u32 bits = bpf_get_prandom_u32();
	__u32 first = ((bits & 0xFF) * 223 >> 8) + 1;

	if (first == 10 || first == 127)
		first++;
	return (bits & 0xFFFFFE00) | first;
}

/* A random /64 of 2000::/3, likewise. */
static __always_inline __u64 random6(void)
{
	__u64 bits = (__u64)bpf_get_prandom_u32() * 0x9E3779B97F4A7C15ULL;

	return (bits & ~0x01E0ULL) | 0x20;
}

static __always_inline bool rewrite4(struct xdp_md *ctx)
{
	struct iphdr *ip = (void *)(long)ctx->data + ETH_LENGTH;
	__u32 addr = cfg_fixed4;

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return false;
	if (cfg_draw == DRAW_RANDOM) {
		addr = random4();
	} else if (cfg_draw != DRAW_FIXED) {
		__u32 index = list_index(), key = index / PER_LINE4;
		struct line4 *line = bpf_map_lookup_elem(&list4, &key);

		if (!line)
			return false;
		addr = line->addr[index % PER_LINE4];
	}
	ip->saddr = addr;
	if (cfg_ifindex) {
		__u32 sum = cfg_header_sum + (addr & 0xFFFF) + (addr >> 16);

		sum = (sum & 0xFFFF) + (sum >> 16);
		sum = (sum & 0xFFFF) + (sum >> 16);
		ip->check = ~sum;
	}
	return true;
}

static __always_inline bool rewrite6(struct xdp_md *ctx)
{
	struct ipv6hdr *ip = (void *)(long)ctx->data + ETH_LENGTH;
	__u64 hi = cfg_fixed6[0], lo = cfg_fixed6[1];

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return false;
	if (cfg_draw == DRAW_RANDOM) {
		hi = random6();
	} else if (cfg_draw != DRAW_FIXED) {
		__u32 index = list_index(), key = index / PER_LINE6;
		struct line6 *line = bpf_map_lookup_elem(&list6, &key);

		if (!line)
			return false;
		hi = line->addr[index % PER_LINE6][0];
		lo = line->addr[index % PER_LINE6][1];
	}
	ip->saddr[0] = hi;
	ip->saddr[1] = lo;
	return true;
}

SEC("xdp")
int wrapper(struct xdp_md *ctx)
{
	if (!(cfg_ipv6 ? rewrite6(ctx) : rewrite4(ctx)))
		return XDP_ABORTED;
	if (cfg_ifindex)
		return bpf_redirect(cfg_ifindex, 0);
	bpf_tail_call(ctx, &targets, cfg_target);
	return XDP_ABORTED;
}

char _license[] SEC("license") = "Dual BSD/GPL";
