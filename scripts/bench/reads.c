//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * What an answer costs at the least: the bare program, and a load of each cache line that it needs of
 * Levee's own tables. Where a line is depends on the packet alone; nothing is compared,
 * no branch waits, nothing is written, so that all lines are on their way at once. What Levee costs
 * beyond this is its thinking; what this costs beyond the bare program is the machine's memory.
 */
#include "hash.h"
#include "maps.h"

enum read {
	READ_FILTER = 1,     /* is a ban near? */
	READ_BAN = 2,	     /* the ban, in the bucket of its own length */
	READ_TAGS = 4,	     /* is the source tracked? */
	READ_STATE = 8,	     /* what it owes */
	READ_COUNTS = 16,    /* what it sent */
	READ_AGGREGATE = 32, /* what its prefix owes */
};

volatile const __u32 cfg_reads = 0;

#define TOUCH(map, index)                                                                          \
	({                                                                                         \
		const __u64 *__line = lookup(map, index);                                          \
		if (__line)                                                                        \
			READ_ONCE(*__line);                                                        \
	})

/* The lines are those of this source; of the aggregate's one that is as cold as its own. */
static __always_inline int touch(__u64 hi, __u64 lo)
{
	__u64 hash = hash128(hi, lo);
	__u32 bucket = hash & cfg_source_mask;
	__u32 slot = bucket * SOURCE_WAYS + (hash >> 32) % SOURCE_WAYS;

	if (cfg_reads & READ_TAGS)
		TOUCH(source_tags, bucket);
	if (cfg_reads & READ_STATE)
		TOUCH(source_states, slot);
	if (cfg_reads & READ_COUNTS)
		TOUCH(source_counts, slot);
	if (cfg_reads & READ_AGGREGATE)
		TOUCH(aggregates, hash64(hash) & cfg_aggregate_mask);
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
		addr = be32_to_cpu(ip->saddr);
		if (cfg_reads & READ_FILTER)
			TOUCH(ban4_bits, addr >> 14);
		if (cfg_reads & READ_BAN)
			TOUCH(ban4_table, hash64(addr) & cfg_ban4_mask);
		return touch(0, addr);
	}
	if (eth->proto == cpu_to_be16(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		__u64 hi, lo;

		if ((void *)(ip + 1) > data_end)
			return XDP_PASS;
		hi = be64_to_cpu(ip->saddr[0]);
		lo = be64_to_cpu(ip->saddr[1]);
		if (cfg_reads & READ_FILTER) {
			TOUCH(ban6_filter, hash64(hi >> 16) & cfg_ban6_filter_mask);
			TOUCH(ban6_filter, hash64(hi >> 32) & cfg_ban6_filter_mask);
		}
		if (cfg_reads & READ_BAN)
			TOUCH(ban6_table, hash64(hash128(hi, lo)) >> 32 & cfg_ban6_mask);
		return touch(hi, lo);
	}
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
