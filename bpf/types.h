/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "kernel.h"

/*
 * What the program and user space both see. Widths are fixed, padding is explicit, and every size
 * is asserted; bpf2go makes the Go twins of these types. A change here that is not an addition at
 * the end of an enum is a change of SCHEMA.
 */
#define LEVEE_SCHEMA 3

/*
 * Why a packet's way ended where it did. One enum, from the verdict to the metric's label to the
 * CLI's words. It only grows: a number is never reused, for it is stored in pinned counters.
 * Reasons below REASON_FIRST_DROP pass; the others drop, unless monitoring.
 */
enum reason {
	REASON_CONTINUE = 0,  /* no decision yet: the next stage's turn. Never counted */
	REASON_CLEAN = 1,     /* nothing to say against it */
	REASON_NON_IP = 2,    /* neither IPv4 nor IPv6 (and not ARP): not ours to judge */
	REASON_PANIC = 3,     /* the panic switch is on: everything passes */
	REASON_ALLOWED = 4,   /* a ban matched, an allow entry overruled it */
	REASON_EXEMPT = 5,    /* over a limit, but its allow entry is exempt from limits */
	REASON_CONTROL = 6,   /* ARP, neighbour discovery or an ICMP error, within its cap */
	REASON_UNTRACKED = 7, /* no room to track its source, within the prefix's aggregate */
	REASON_CONTENDED = 8, /* lost four races for its source's state: passed */

	REASON_FIRST_DROP = 16,
	REASON_MALFORMED_L3 = 16, /* an IP header that the kernel itself would discard */
	REASON_BANNED = 17,	  /* its source is on a ban list */
	REASON_MARTIAN = 18,	  /* a source address that can't be on a wire */
	REASON_MALFORMED_L4 = 19, /* a transport header that the kernel itself would discard */
	REASON_CONTROL_CAP = 20,  /* ARP, neighbour discovery or ICMP error over its cap */
	REASON_PENALTY = 21,	  /* its source broke a limit and is dropped whole for a while */
	REASON_LIMIT_PACKETS = 22,
	REASON_LIMIT_BITS = 23,
	REASON_LIMIT_SYN = 24,
	REASON_LIMIT_UDP = 25,
	REASON_LIMIT_ICMP = 26,
	REASON_LIMIT_FRAGMENTS = 27,
	REASON_LIMIT_AGGREGATE = 28, /* its prefix together is over the limit's aggregate */

	REASON_MAX = 48, /* room to grow without a new schema */
};

enum family {
	FAMILY_OTHER = 0,
	FAMILY_IPV4 = 1,
	FAMILY_IPV6 = 2,
	FAMILY_MAX = 3,
};

/* The thresholds of a limit, in the order in which they are checked. */
enum threshold {
	THRESHOLD_PACKETS = 0,
	THRESHOLD_BITS = 1,
	THRESHOLD_SYN = 2,
	THRESHOLD_UDP = 3,
	THRESHOLD_ICMP = 4,
	THRESHOLD_FRAGMENTS = 5,
	THRESHOLD_MAX = 6,

	/* Counters of a limit beside its thresholds'. */
	COUNT_AGGREGATE = 6,
	COUNT_PENALTY = 7,
	LIMIT_COUNTERS = 8,
};

/* Sizes that both sides need. */
enum sizes {
	MAX_INTERFACES = 64,
	MAX_LIMITS = 256,
	MAX_LISTS = 1024,
	EVENT_BYTES = 96,
};

#define NS_FOREVER (~0ULL)

/* Per CPU. Written by the program, read by user space. */
struct counter {
	__u64 packets;
	__u64 bytes; /* whole frames, as the interface hands them over */
};
_Static_assert(sizeof(struct counter) == 16, "counter");

/* The run-time switches: one entry, one cache line, read once a packet. Written by user space. */
struct control {
	__u32 panic;	      /* 1: pass everything at once */
	__u32 monitor;	      /* 1: count what would be dropped, and pass it */
	__u32 event_budget;   /* events per CPU and second; 0: none */
	__u32 ban6_tiers;     /* which IPv6 filters hold anything: enum ban6_tier bits */
	__u32 source_limits;  /* how many source-prefix limits there are; 0 skips the look-up */
	__u32 service_limits; /* likewise for limits bound to a protocol and port */
	__u64 control_cost;   /* ns that one control packet costs its cap (see GCRA in limit.h) */
	__u64 control_burst;  /* ns of debt that the cap allows; 0: no cap */
	__u64 source_idle; /* ns without a packet after which a newcomer may take the slot, at least */
	__u64 ban_epoch;    /* rises before a ban goes, if others came since it last rose */
	__u64 ban6_version; /* rises after an IPv6 filter comes to say more: see struct ban6_far */
};
_Static_assert(sizeof(struct control) == 64, "control");

/* What the pinned set is: checked before it is adopted. Written once, at creation. */
struct meta {
	__u32 schema;
	__u32 pad;
	__u64 secret[2]; /* the hashes' key, random per set, so that nobody can aim at a bucket */
	__u64 created;	 /* CLOCK_MONOTONIC ns */
};
_Static_assert(sizeof(struct meta) == 32, "meta");

/* Which interface a slot of the counters belongs to. Written by user space. */
struct interface {
	__u32 ifindex; /* 0: the slot is free */
	__u32 mode;    /* 0 not attached now, 1 native, 2 generic */
	char name[16];
};
_Static_assert(sizeof(struct interface) == 24, "interface");

/*
 * Bans. Each entry's `word` is its only switch: user space fills the rest first and stores word
 * last, in one 64-bit store; it clears word first when an entry goes. The program compares word
 * once more after reading the rest, so an entry that is replaced under its hands is never a
 * mixture: it is looked at again, and is a miss once its key has changed.
 *
 * One packet's search takes several reads. So that an address which is banned all the time, first
 * by one prefix and then by another, is never missed in between, a search that found nothing
 * starts anew if control->ban_epoch rose meanwhile.
 *
 *   word:  key 32 | list 16 | length 8 | flags 8   (high to low)
 */
enum ban_flags {
	BAN_LIVE = 1,	   /* the entry counts; a word without it is free or a tombstone */
	BAN_MONITOR = 2,   /* count it as banned, and pass it */
	BAN_TOMBSTONE = 4, /* free, but entries that were pushed past this bucket lie behind it */
	BAN_ALL = 8,	   /* IPv6: the slot of a half says what ::/0 says; for user space alone */
	BAN_CLASS_SHIFT = 4, /* IPv4: the class in two bits, so that a key means one prefix */
};
enum ban_word {
	BAN_LENGTH_SHIFT = 8,
	BAN_LIST_SHIFT = 16,
	BAN_KEY_SHIFT = 32,
};

/*
 * IPv4 lengths fall in five classes of four bits' stride; an entry is expanded to its class's
 * length (at most eightfold), so that five questions answer for 33 lengths.
 */
enum ban4_class {
	BAN4_32 = 0,   /* /29../32 */
	BAN4_28 = 1,   /* /25../28 */
	BAN4_24 = 2,   /* /21../24 */
	BAN4_20 = 3,   /* /17../20 */
	BAN4_WIDE = 4, /* /0../16: a table of its own, indexed by the first 16 bits */
};

enum ban_geometry { BAN4_SLOTS = 4, BAN4_PROBES = 8, BAN6_SLOTS = 2, BAN6_PROBES = 16 };

struct ban4_entry {
	__u64 word;    /* key: the address, host order, masked to the class's length */
	__u64 expires; /* CLOCK_MONOTONIC ns, or NS_FOREVER */
};
struct ban4_bucket {
	struct ban4_entry entry[BAN4_SLOTS];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct ban4_bucket) == 64, "ban4_bucket");

/* key in word: the low 32 bits of the prefix's hash, so that a reused slot never looks unchanged. */
struct ban6_entry {
	__u64 word;
	__u64 hi; /* the prefix, host order, masked */
	__u64 lo;
	__u64 expires;
};
struct ban6_bucket {
	struct ban6_entry entry[BAN6_SLOTS];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct ban6_bucket) == 64, "ban6_bucket");

/*
 * Which IPv6 prefix lengths may be found behind a cell. A cell of the hashed filter is reached by
 * the first 48 bits (lengths 48..128) and by the first 32 (lengths 32..47); lengths 0..31 stand in
 * the filter that the first 16 bits index.
 */
struct ban6_lengths {
	__u64 low;  /* bit n: length n, for 32..63; 1..31: a mark of the hash, see ban6_mark */
	__u64 high; /* bit n: length 64 + n, for 64..127; length 128 is bit 0 of low */
};
_Static_assert(sizeof(struct ban6_lengths) == 16, "ban6_lengths");

/*
 * What a CPU remembers of the filters' answers: that no ban is near the addresses of a /48. It holds
 * while control->ban6_version is what it was before the filters were asked; for what they say
 * less since then nobody need be asked again, and what they say more makes it rise.
 */
enum { BAN6_FARS_SHIFT = 6, BAN6_FARS = 1 << BAN6_FARS_SHIFT };
struct ban6_far {
	__u64 key;     /* the first 48 bits, host order */
	__u64 version; /* of the filters; 0: none, for a writer begins with 1 */
};
_Static_assert(sizeof(struct ban6_far) == 16, "ban6_far");

enum ban6_tier {
	BAN6_TIER_48 = 1,
	BAN6_TIER_32 = 2,
	BAN6_TIER_WIDE = 4,
};

/* An address as key of the tries: IPv4 is mapped (::ffff:0:0/96) and its length grows by 96. */
struct prefix_key {
	__u32 length;  /* bits */
	__u8 addr[16]; /* network order */
};
_Static_assert(sizeof(struct prefix_key) == 20, "prefix_key");

enum allow_flags {
	ALLOW_NO_LIMIT = 1, /* exempt from limits, too */
	ALLOW_DERIVED = 2,  /* set by the configuration, not at run time (user space) */
};
struct allow {
	__u32 flags;
	__u32 pad;
	__u64 expires; /* CLOCK_MONOTONIC ns, or NS_FOREVER */
};
_Static_assert(sizeof(struct allow) == 16, "allow");

/*
 * A rate as GCRA knows it (ITU-T I.371, the virtual scheduling algorithm): what one unit costs,
 * and how much may be owed. burst 0 means that the threshold is not set.
 */
enum rate_unit { COST_SHIFT = 20 };
struct rate {
	__u64 cost;  /* ns << COST_SHIFT per unit, which is a packet, or a byte for bits */
	__u64 burst; /* ns */
};

enum limit_flags {
	LIMIT_ENABLED = 1,
	LIMIT_MONITOR = 2,
	LIMIT_AGGREGATE = 4, /* the aggregate counts all packets, not just untracked sources' */
	/*
	 * Tell the time by the coarse clock, which costs a quarter of the exact one but stands still
	 * within a tick. Right where the bursts are many ticks long; user space makes them a tick
	 * shorter, and so no window admits more than burst + rate * time, plus what is due for
	 * the time by which a tick is late: a busy virtual machine's may be.
	 */
	LIMIT_COARSE = 8,
	LIMIT_DERIVED = 16, /* as ALLOW_DERIVED */
};

struct limit {
	struct rate threshold[THRESHOLD_MAX];
	struct rate aggregate; /* packets, of a whole prefix together */
	__u64 penalty;	       /* ns; 0: drop the excess alone */
	__u8 flags;
	__u8 group4;	 /* prefix length that makes one source, IPv4: 8..32 */
	__u8 group6;	 /* … IPv6: 16..128 */
	__u8 aggregate4; /* prefix length of the aggregate, IPv4: 8..32 */
	__u8 aggregate6; /* … IPv6: 16..48 */
	/*
	 * How many packets (of up to CREDIT_BYTES) a CPU may let pass on credit and charge together
	 * later: a nibble a threshold, the lowest first; 0 none, else 1 << (n - 1). User space makes
	 * a burst shorter by what all CPUs together may give. With LIMIT_COARSE only.
	 */
	__u8 credit[3];
};
_Static_assert(sizeof(struct limit) == 128, "limit");

/*
 * Sources. The table is three arrays of one index: tags (8 to a cache line, all that a look-up and
 * an eviction read), the limits' state (one line a source), and what is only counted.
 *
 *   tag:  fingerprint 16 | limit 8 | seen 38 | family 1 | live 1   (high to low)
 *
 * seen is the last packet's time, or when its debts are paid or its penalty ends if that is later, in
 * units of 2^24 ns. It may lag by SEEN_LAG of source_idle, so that most packets need not write it.
 * A tag that is not live is empty (0) or busy: claimed, its entry not filled yet.
 */
enum source_tag {
	SOURCE_WAYS = 8,
	SEEN_SHIFT = 24, /* log2 of its unit in ns */
	SEEN_LAG = 4,	 /* seen lags by a quarter of source_idle at most */
	TAG_LIVE = 1,
	TAG_FAMILY_SHIFT = 1, /* 0 IPv4, 1 IPv6 */
	TAG_SEEN_SHIFT = 2,
	TAG_LIMIT_SHIFT = 40,
	TAG_PRINT_SHIFT = 48,
};
#define TAG_SEEN_MASK ((1ULL << 38) - 1)

struct source_tags {
	__u64 tag[SOURCE_WAYS];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct source_tags) == 64, "source_tags");

#define TAT_PENALTY (1ULL << 63)

struct source_state {
	__u64 hi; /* the source, host order, masked to the limit's group; IPv4 in the low 32 bits of lo */
	__u64 lo;
	/*
	 * Theoretical arrival times, CLOCK_MONOTONIC ns. That of the packets is the time when a
	 * penalty ends if TAT_PENALTY is set in it.
	 */
	__u64 tat[THRESHOLD_MAX];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct source_state) == 64, "source_state");

struct source_counts {
	__u64 packets; /* passed; more may stand on the CPUs' tabs */
	__u64 bytes;   /* passed */
	__u64 dropped; /* packets */
	__u64 first;   /* CLOCK_MONOTONIC ns */
};
_Static_assert(sizeof(struct source_counts) == 32, "source_counts");

/*
 * A source's tab with a CPU: what it was served here and is not in its entry yet. So a flood from
 * one source writes lines that others share once in many packets, and within a tick the answer to its
 * last packet answers the next ones: it may pass on credit while there is room, and what was
 * refused stays refused, for nothing becomes due in between by the coarse clock.
 */
enum tab_geometry {
	TABS_SHIFT = 6, /* log2 of TABS */
	TABS = 1 << TABS_SHIFT,
	TAB_FLUSH = 64,			  /* packets after which counts are handed over */
	CREDIT_MAX = 7,			  /* the most that a nibble of credit says: 64 packets */
	CREDIT_SHIFT = 11,		  /* log2 of CREDIT_BYTES */
	CREDIT_BYTES = 1 << CREDIT_SHIFT, /* a longer packet takes the room of several */
};
struct tab {
	__u64 hi; /* whose it is: as in source_state */
	__u64 lo;
	__u64 tag; /* … its tag's fixed bits; 0: nobody's */
	__u64 tick; /* coarse time of room and refusal, ns; 0: by the exact clock, so neither is set */
	__u32 jiffy;	  /* … and by jiffies, which cost less to read: low 32 bits */
	__u32 slot;	  /* index into the source table */
	__u32 bytes;	  /* passed, not counted in its entry yet */
	__u32 owed_bytes; /* passed on credit, neither charged nor counted yet */
	__u32 dropped;	  /* packets, not counted yet */
	__u16 passed;	  /* packets, as bytes */
	__u16 owed;	  /* packets, as owed_bytes */
	__u16 length;	  /* bytes: packets as long as this and longer are refused */
	__u8 room;	  /* packets that may pass yet in this tick, on credit */
	__u8 set;	  /* the thresholds that room, debt and refusal are about, a bit each */
	__u8 refusal;	  /* enum reason; 0: none */
	__u8 threshold;	  /* … and its counter */
	__u8 pad[2];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct tab) == 64, "tab");
enum guess { GUESS_STRANGER, GUESS_KNOWN, GUESS_TAB };
struct tabs {
	struct tab tab[TABS];
	__u64 guess; /* enum guess: what the next packet will need, which is what the last one did */
	__u64 pad[7];
};
_Static_assert(sizeof(struct tabs) == 4096 + 64, "tabs");

/* Aggregates, four to a cache line: a cell whose time has passed owes nothing and is free. */
enum { AGGREGATE_WAYS = 4 };
struct aggregate_bucket {
	__u64 key[AGGREGATE_WAYS]; /* prefix 48 | limit 8 | length 7 | family 1 */
	__u64 tat[AGGREGATE_WAYS];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct aggregate_bucket) == 64, "aggregate_bucket");

/* What is counted beside the reasons; per CPU. */
enum stat {
	STAT_UNTRACKED = 0, /* packets whose source found no room in the source table */
	STAT_CONTENDED = 1, /* packets passed because their state was lost to four other writers */
	STAT_TRACKED = 2,   /* sources that got a slot */
	STAT_EVICTED = 3,   /* … of which by taking that of an idle one */
	STAT_EVENTS = 4,    /* events written */
	STAT_EVENTS_OVER_BUDGET = 5, /* events not written: the second's budget was spent */
	STAT_EVENTS_LOST = 6,	     /* events not written: the ring buffer was full */
	STAT_AGGREGATE_FULL = 7,     /* packets of prefixes that found no aggregate cell: passed */
	STAT_MAX = 16,
};

/* One sampled packet, as the ring buffer carries it. */
struct event {
	__u64 time;   /* CLOCK_MONOTONIC ns */
	__u64 src[2]; /* host order: high, low; IPv4 in the low 32 bits of the second */
	__u64 dst[2];
	__u32 ifindex;
	__u32 length; /* of the whole frame */
	__u16 list;   /* of a ban */
	__u16 sport;
	__u16 dport;
	__u8 reason;
	__u8 family;
	__u8 protocol; /* 255: unknown */
	__u8 limit;
	__u8 monitored; /* 1: it passed after all */
	__u8 captured;	/* bytes of `packet` that are filled */
	__u8 pad[4];
	__u8 packet[EVENT_BYTES];
};
_Static_assert(sizeof(struct event) == 160, "event");
