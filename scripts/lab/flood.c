//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The flood: run by BPF_PROG_TEST_RUN with live frames, it gives each frame a source of its own
 * and sends it out of an interface. A frame comes back from the kernel's page pool as the stack
 * left it, so its headers are written anew each time; their checksums come from sums over what does
 * not change, which were taken once, in user space.
 */
#include "kernel.h"

static __u32 (*const bpf_get_prandom_u32)(void) = (void *)7;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;

enum {
	ETH_LENGTH = 14,
	MAX_SOURCES = 65536,
	PATTERN = 96 / 8, /* all headers of the longest frame */
	TRIES = 8,	  /* for a random IPv4 address that can be someone's */
};

/* What the frame is, where it goes, and which fields of it change. An offset of 0: none. */
volatile const __u64 cfg_pattern[PATTERN] = {};
volatile const __u32 cfg_ifindex = 0;
volatile const __u32 cfg_length = 64;
volatile const bool cfg_ipv6 = false;
volatile const __u32 cfg_sources = 1;	  /* how many of `sources` take part; 0: random addresses */
volatile const __u32 cfg_port_offset = 0; /* source port */
volatile const __u32 cfg_part_offset =
	0;				/* which part of a datagram it is, where it is fragmented */
volatile const __be16 cfg_part[2] = {}; /* … what is there in the first part, and in the second */
volatile const __u32 cfg_check_offset = 0; /* the transport's checksum */
volatile const bool cfg_pseudo = true; /* … and it covers the addresses (not so in ICMP for IPv4) */

/*
 * The pace. One run takes tens of milliseconds to begin and to end, so a flood is one run that
 * keeps time by itself: a frame that would come too early is dropped before it is sent.
 */
volatile const __u64 cfg_gap = 0;      /* ns between two frames */
volatile const __u64 cfg_lag = 250000; /* ns by which it may be late and still catch up */
__u64 start = 0; /* CLOCK_MONOTONIC ns; nothing is sent before. Written by user space */
__u64 stop = 0;	 /* … nothing is sent after */
__u64 due = 0;	 /* the next frame's time. Like `sent`, written by the one CPU that runs this */
__u64 sent = 0;
__u32 source = 0; /* the last one: an index of `sources` */

static __always_inline bool in_time(void)
{
	__u64 now = bpf_ktime_get_ns();

	if (now < READ_ONCE(start) || now > READ_ONCE(stop) || now < due)
		return false;
	if (due + cfg_lag < now)
		due = now;
	due += cfg_gap;
	sent++;
	return true;
}

/* Sums (RFC 1071) of what does not change: the IPv4 header, the transport with its pseudo header. */
volatile const __u32 cfg_header_sum = 0;
volatile const __u32 cfg_transport_sum = 0;

union address { /* network order; IPv4 in the first four bytes */
	__u32 dword[4];
	__u16 word[8];
	__u8 byte[16];
};

/* Key: 0…cfg_sources-1. Written by user space before the program runs. 16 bytes an entry. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SOURCES);
	__type(key, __u32);
	__type(value, union address);
} sources SEC(".maps");

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xFFFF) + (sum >> 16);
	sum = (sum & 0xFFFF) + (sum >> 16);
	return sum;
}

/*
 * Any IPv4 address but those of 0/8, 10/8, 127/8, multicast and above; any of 2400::/12, 2600::/12,
 * 2800::/12 and 2a00::/12, which is where the internet's IPv6 hosts are.
 */
static __always_inline void random_address(union address *addr)
{
	if (cfg_ipv6) {
		for (int i = 0; i < 4; i++)
			addr->dword[i] = bpf_get_prandom_u32();
		addr->byte[0] = 0x24 + (addr->byte[0] & 3) * 2;
		addr->byte[1] &= 0x0F;
		return;
	}
	for (int i = 0; i < TRIES; i++) {
		__u8 first;

		addr->dword[0] = bpf_get_prandom_u32();
		first = addr->byte[0];
		if (first && first != 10 && first != 127 && first < 224)
			return;
	}
	addr->dword[0] = 0x01010101;
}

SEC("xdp")
int flood(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	union address random = {}, *addr = &random;
	__u32 sum = 0, bits;
	__u16 *src;

	if (!in_time())
		return XDP_DROP;
	if (data + cfg_length > data_end)
		return XDP_ABORTED;
	for (int i = 0; i < PATTERN; i++)
		if ((i + 1) * sizeof(__u64) <= cfg_length)
			((__u64 *)data)[i] = cfg_pattern[i];
	bits = bpf_get_prandom_u32();

	if (cfg_sources) {
		/* both parts of a datagram have one source; a source has one at a time (one identification) */
		if (!cfg_part_offset || sent & 1)
			source = cfg_sources > 1 ? bits % cfg_sources : 0;
		addr = bpf_map_lookup_elem(&sources, (const void *)&source);
		if (!addr)
			return XDP_ABORTED;
	} else {
		random_address(addr);
	}

	if (cfg_part_offset) {
		*(__u16 *)(data + cfg_part_offset) = cfg_part[!(sent & 1)];
		sum += cfg_part[!(sent & 1)];
	}
	if (cfg_ipv6) {
		src = data + ETH_LENGTH + 8;
		for (int i = 0; i < 8; i++) {
			src[i] = addr->word[i];
			sum += addr->word[i];
		}
	} else {
		src = data + ETH_LENGTH + 12;
		for (int i = 0; i < 2; i++) {
			src[i] = addr->word[i];
			sum += addr->word[i];
		}
		*(__u16 *)(data + ETH_LENGTH + 10) = ~fold(cfg_header_sum + sum);
	}

	if (!cfg_pseudo)
		sum = 0;
	if (cfg_port_offset) {
		__u16 port = bits >> 16 | cpu_to_be16(0x8000); /* above the well-known ones */

		*(__u16 *)(data + cfg_port_offset) = port;
		sum += port;
	}
	if (cfg_check_offset)
		*(__u16 *)(data + cfg_check_offset) = ~fold(cfg_transport_sum + sum);
	return bpf_redirect(cfg_ifindex, 0);
}

/*
 * The host's way out: what its kernel answers to addresses that nobody has is dropped as it leaves,
 * for the internet swallows it. What is for the lab's own addresses goes on, and so do ARP,
 * neighbour discovery and the like.
 */
struct __sk_buff { /* include/uapi/linux/bpf.h, as far as it is used */
	__u32 unused[19];
	__u32 data;
	__u32 data_end;
};
enum { TC_ACT_OK = 0, TC_ACT_SHOT = 2, OURS = 4 };
volatile const __be32 cfg_ours4[OURS] = {};
volatile const __u64 cfg_ours6[OURS] = {}; /* first halves, network order */

SEC("tc")
int leave(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *data_end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip4 = data + ETH_LENGTH;
	struct ipv6hdr *ip6 = data + ETH_LENGTH;
	__u8 first;

	if ((void *)(eth + 1) > data_end)
		return TC_ACT_OK;
	if (eth->proto == cpu_to_be16(ETH_P_IP)) {
		if ((void *)(ip4 + 1) > data_end)
			return TC_ACT_OK;
		for (int i = 0; i < OURS; i++)
			if (ip4->daddr == cfg_ours4[i])
				return TC_ACT_OK;
		return TC_ACT_SHOT;
	}
	if (eth->proto == cpu_to_be16(ETH_P_IPV6)) {
		if ((void *)(ip6 + 1) > data_end)
			return TC_ACT_OK;
		first = ip6->daddr[0]; /* the first byte: fe80::/10, ff00::/8 */
		if (first >= 0xFE)
			return TC_ACT_OK;
		for (int i = 0; i < OURS; i++)
			if (ip6->daddr[0] == cfg_ours6[i])
				return TC_ACT_OK;
		return TC_ACT_SHOT;
	}
	return TC_ACT_OK;
}

char _license[] SEC("license") = "Dual BSD/GPL";
