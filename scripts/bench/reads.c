//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * What an answer costs at the least: the bare program, a load of the packet's source, and one of the fewest
 * cache lines that the answer can be found in, in Levee's own tables. Where a line is depends on the packet
 * alone; nothing is compared, no branch waits, nothing is written, so that all lines are on their way at once.
 */
#include "hash.h"
#include "maps.h"

enum read {
	READ_FILTER = 1,    /* is a ban near? */
	READ_BAN = 2,	    /* one bucket: of a ban of the whole address, as most IPv4 bans are */
	READ_TAGS = 4,	    /* is the source tracked? */
	READ_AGGREGATE = 8, /* what its prefix owes, if it is not */
};

volatile const __u32 cfg_reads = 0;

#define TOUCH(map, index)                                                                          \
	({                                                                                         \
		const __u64 *__line = lookup(map, index);                                          \
		if (__line)                                                                        \
			READ_ONCE(*__line);                                                        \
	})

static __always_inline int touch(__u64 hi, __u64 lo, __u64 prefix)
{
	if (cfg_reads & READ_TAGS)
		TOUCH(source_tags, hash128(hi, lo) & cfg_source_mask);
	if (cfg_reads & READ_AGGREGATE)
		TOUCH(aggregates, hash64(prefix) & cfg_aggregate_mask);
	return XDP_DROP;
}

SEC("xdp")
int reads(struct xdp_md *ctx)
{
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > data_end)
		return XDP_PASS;
	if (eth->proto == cpu_to_be16(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);
		__u32 addr;

		if ((void *)(ip + 1) > data_end || ip->ver_ihl >> 4 != 4)
			return XDP_PASS;
		addr = be32_to_cpu(READ_ONCE(ip->saddr));
		if (cfg_reads & READ_FILTER)
			TOUCH(ban4_bits, addr >> 14);
		if (cfg_reads & READ_BAN)
			TOUCH(ban4_table, hash64(addr) & cfg_ban4_mask);
		return touch(0, addr, (__u64)(addr & ~0xFFU) << 32);
	}
	if (eth->proto == cpu_to_be16(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		__u64 hi, lo;

		if ((void *)(ip + 1) > data_end)
			return XDP_PASS;
		hi = be64_to_cpu(READ_ONCE(ip->saddr[0]));
		lo = be64_to_cpu(READ_ONCE(ip->saddr[1]));
		if (cfg_reads & READ_FILTER)
			TOUCH(ban6_filter, hash64(hi >> 16) & cfg_ban6_filter_mask);
		if (cfg_reads & READ_BAN)
			TOUCH(ban6_table, hash64(hash128(hi, lo) + 128) >> 32 & cfg_ban6_mask);
		return touch(hi, lo, hi & ~0ULL << 16);
	}
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
