//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Called where a function of the data plane begins and ends: it counts these moments, and at those that
 * user space has named it waits until user space lets it go on.
 */
#include "kernel.h"

static long (*const bpf_loop)(__u32 nr, void *callback, void *ctx,
			      __u64 flags) = (void *)181; /* since 5.17 */

enum {
	MOMENTS = 256,
	TURNS = 1 << 23, /* as many as the kernel allows at once */
	WAITS = 8,	 /* so many turns take some seconds */
};

/* A wait ends by itself, so that a test run that nobody waits for does not hold its CPU. */
#define PATIENCE_NS 2000000000ULL

struct pause {
	__u64 stops[MOMENTS / 64]; /* a bit for each moment to wait at */
	__u64 moments;
	__u64 waits; /* how often it has waited, the present time included */
	__u64 freed; /* how often user space has let it go on */
	__u64 late;  /* how often user space did not, in all that time */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pause);
} pauses SEC(".maps");

struct wait {
	struct pause *pause;
	__u64 end; /* ns */
};

static __always_inline bool free_to_go(const struct pause *pause)
{
	return READ_ONCE(pause->freed) >= pause->waits;
}

static long turn(__u32 index, struct wait *wait)
{
	(void)index;
	return free_to_go(wait->pause) || bpf_ktime_get_ns() > wait->end;
}

__noinline int moment(void)
{
	struct wait wait = {};
	__u32 zero = 0;
	__u64 now;

	wait.pause = bpf_map_lookup_elem(&pauses, &zero);
	if (!wait.pause)
		return 0;
	now = wait.pause->moments++;
	if (now >= MOMENTS || !(wait.pause->stops[now / 64] >> (now & 63) & 1))
		return 0;
	wait.end = bpf_ktime_get_ns() + PATIENCE_NS;
	WRITE_ONCE(wait.pause->waits, wait.pause->waits + 1);
#pragma unroll
	for (int i = 0; i < WAITS; i++)
		bpf_loop(TURNS, turn, &wait, 0); /* returns at once when it is over */
	if (!free_to_go(wait.pause))
		wait.pause->late++;
	return 0;
}

/* Never run: what is wanted is the function above. */
SEC("xdp")
int pause(struct xdp_md *ctx)
{
	(void)ctx;
	return moment();
}

char _license[] SEC("license") = "Dual BSD/GPL";
