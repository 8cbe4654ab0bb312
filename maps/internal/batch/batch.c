//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Asks the data plane about many addresses in one test run. A tail call out of a function returns to
 * who called the function: so the verdict of the program under test can be noted.
 */
#include "kernel.h"
#include "types.h"

#define BPF_MAP_TYPE_PROG_ARRAY 3

static long (*const bpf_tail_call)(void *ctx, const void *map, __u32 index) = (void *)12;

enum {
	ETH_LENGTH = 14,
	BATCH = 1 << 15, /* addresses in all */
	EACH = 32,	 /* a call of the batch: as many tail calls as the kernel allows */
	LISTS = 8,	 /* whose counters are looked at */
};

struct question {
	__u64 addr[2]; /* network order; IPv4 in the first four bytes */
};

/* What the program did: its verdict, and 1 + list * 2 + monitored of the list that it counted to. */
struct answer {
	__u32 verdict;
	__u32 list;
};

/* How many questions there are, and how many have been asked. A run that a signal interrupts is begun
 * again, and goes on where it was. */
struct progress {
	__u64 questions;
	__u64 asked;
};

#define ARRAY(map, value_type, entries)                                                            \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                  \
		__uint(map_flags, BPF_F_MMAPABLE);                                                 \
		__uint(max_entries, entries);                                                      \
		__type(key, __u32);                                                                \
		__type(value, value_type);                                                         \
	} map SEC(".maps")

ARRAY(questions, struct question, BATCH);
ARRAY(answers, struct answer, BATCH);
ARRAY(progress, struct progress, 1);

/* The program under test. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__uint(value_size, 4);
} target SEC(".maps");

/* The program's own is put in place of this one. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_LISTS * 2);
	__type(key, __u32);
	__type(value, struct counter);
} list_counters SEC(".maps");

static __noinline int call(struct xdp_md *ctx)
{
	int verdict = XDP_ABORTED;

	bpf_tail_call(ctx, &target, 0);
	asm volatile("" : "+r"(verdict)); /* or the compiler takes it for all that can come back */
	return verdict;
}

/* Which list was counted to since the last time. */
static __always_inline __u32 counted(__u64 *before)
{
	__u32 list = 0;

#pragma unroll
	for (__u32 i = 0; i < LISTS * 2; i++) {
		__u32 key = i;
		struct counter *counter = bpf_map_lookup_elem(&list_counters, &key);

		if (counter && counter->packets != before[i]) {
			before[i] = counter->packets;
			list = i + 1;
		}
	}
	return list;
}

static __always_inline bool rewrite(struct xdp_md *ctx, const struct question *question)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > data_end)
		return false;
	if (eth->proto == cpu_to_be16(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_LENGTH;

		if ((void *)(ip + 1) > data_end)
			return false;
		ip->saddr = question->addr[0];
	} else {
		struct ipv6hdr *ip = data + ETH_LENGTH;

		if ((void *)(ip + 1) > data_end)
			return false;
		ip->saddr[0] = question->addr[0];
		ip->saddr[1] = question->addr[1];
	}
	return true;
}

SEC("xdp")
int batch(struct xdp_md *ctx)
{
	__u64 before[LISTS * 2] = {};
	__u32 zero = 0;
	struct progress *at = bpf_map_lookup_elem(&progress, &zero);

	if (!at)
		return XDP_ABORTED;
	counted(before);
	for (int i = 0; i < EACH; i++) {
		__u32 next = at->asked;
		struct question *question = bpf_map_lookup_elem(&questions, &next);
		struct answer *answer = bpf_map_lookup_elem(&answers, &next);

		if (next >= at->questions)
			break;
		if (!question || !answer || !rewrite(ctx, question))
			return XDP_ABORTED;
		answer->verdict = call(ctx);
		answer->list = counted(before);
		at->asked++;
	}
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
