/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "config.h"

/*
 * From bytes to struct pkt, in two steps: parse_l3 finds the source, which is all that allows and
 * bans ask for; parse_l4 walks on to ports and flags for packets that got past them.
 *
 * Offsets count from the start of the frame. `end` is where the IP header says that the packet
 * ends; what lies behind it is padding. On a multi-buffer frame only the first buffer is readable:
 * a header past it is unknown, not missing.
 */
enum {
	VLAN_MAX = 2,	    /* 802.1ad + 802.1Q; Linux would strip more, so more are dropped */
	EXTENSION_MAX = 8,  /* IPv6 extension headers; behind more, the L4 is unknown */
	HEADERS_MAX = 4096, /* bytes from the start of the frame; behind more, likewise */
	PROTO_UNKNOWN = 255,
};

enum pkt_flags {
	PKT_FRAGMENT = 1,   /* any fragment, the first one too */
	PKT_PORTS = 2,	    /* sport and dport were read */
	PKT_SYN = 4,	    /* TCP with SYN and without ACK */
	PKT_CONTROL = 8,    /* ARP, neighbour discovery or an ICMP error */
	PKT_L4_BAD = 16,    /* a transport header that the kernel would discard */
	PKT_NEIGHBOUR = 32, /* neighbour discovery, which is control, too */
};

struct pkt {
	__u64 src_hi; /* host order; IPv4 in the low 32 bits of src_lo */
	__u64 src_lo;
	__u32 length; /* of the whole frame */
	__u32 l3;     /* offset of the IP header */
	__u32 l4;     /* offset of what follows it */
	__u32 end;    /* offset of the packet's end */
	__u16 sport;  /* host order */
	__u16 dport;
	__u8 family;   /* enum family */
	__u8 protocol; /* PROTO_UNKNOWN if the walk ended before it */
	__u8 flags;    /* enum pkt_flags */
	__u8 hop_limit;

	/* what the stages found out */
	__u16 list;	   /* of the ban that matched */
	__u8 limit;	   /* number of the limit that spoke */
	__u8 threshold;	   /* … and which of its counters */
	bool monitor;	   /* what spoke is in monitor mode */
	__u8 shadow_limit; /* which limit monitored it */
	__u8 shadow_threshold;
	__u8 shadow; /* the reason of a drop that only monitors; the way went on */
};

static __always_inline void *at(struct xdp_md *ctx, __u32 offset, __u32 size)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;

	if (offset > HEADERS_MAX)
		return NULL;
	data += offset;
	return data + size > data_end ? NULL : data;
}

static __always_inline enum reason parse_ipv4(struct xdp_md *ctx, struct pkt *pkt)
{
	struct iphdr *ip = at(ctx, pkt->l3, sizeof(*ip));
	__u32 ihl, len;

	if (!ip || ip->ver_ihl >> 4 != 4)
		return REASON_MALFORMED_L3;
	ihl = (ip->ver_ihl & 15) * 4;
	len = be16_to_cpu(ip->tot_len);
	if (ihl < sizeof(*ip) || len < ihl || pkt->l3 + len > pkt->length)
		return REASON_MALFORMED_L3;

	pkt->src_lo = be32_to_cpu(ip->saddr);
	pkt->protocol = ip->protocol;
	pkt->hop_limit = ip->ttl;
	pkt->l4 = pkt->l3 + ihl;
	pkt->end = pkt->l3 + len;
	if (ip->frag_off & (cpu_to_be16(IP_MF) | cpu_to_be16(IP_OFFSET)))
		pkt->flags |= PKT_FRAGMENT;
	if (ip->frag_off & cpu_to_be16(IP_OFFSET))
		pkt->l4 = 0; /* not the first: there is no header to read */
	return REASON_CONTINUE;
}

static __always_inline enum reason parse_ipv6(struct xdp_md *ctx, struct pkt *pkt)
{
	struct ipv6hdr *ip = at(ctx, pkt->l3, sizeof(*ip));
	__u32 len;

	if (!ip || (*(__u8 *)ip >> 4) != 6)
		return REASON_MALFORMED_L3;
	len = be16_to_cpu(ip->payload_len);
	pkt->l4 = pkt->l3 + sizeof(*ip);
	if (pkt->l4 + len > pkt->length)
		return REASON_MALFORMED_L3;

	pkt->src_hi = be64_to_cpu(ip->saddr[0]);
	pkt->src_lo = be64_to_cpu(ip->saddr[1]);
	pkt->protocol = ip->nexthdr;
	pkt->hop_limit = ip->hop_limit;
	/* RFC 2675: length 0 before hop-by-hop options is a jumbogram. */
	pkt->end = len || ip->nexthdr != PROTO_HOPOPTS ? pkt->l4 + len : pkt->length;
	return REASON_CONTINUE;
}

static __always_inline enum reason parse_l3(struct xdp_md *ctx, struct pkt *pkt)
{
	struct ethhdr *eth = at(ctx, 0, sizeof(*eth));
	__be16 proto;

	pkt->length = ctx->data_end - ctx->data;
	if (cfg_frags)
		pkt->length = bpf_xdp_get_buff_len(ctx);
	if (!eth)
		return REASON_MALFORMED_L3;
	pkt->l3 = sizeof(*eth);
	proto = eth->proto;
	for (int i = 0; i < VLAN_MAX; i++) {
		struct vlanhdr *vlan;

		if (proto != cpu_to_be16(ETH_P_8021Q) && proto != cpu_to_be16(ETH_P_8021AD))
			break;
		vlan = at(ctx, pkt->l3, sizeof(*vlan));
		if (!vlan)
			return REASON_MALFORMED_L3;
		pkt->l3 += sizeof(*vlan);
		proto = vlan->proto;
	}

	switch (proto) {
	case cpu_to_be16(ETH_P_IP):
		pkt->family = FAMILY_IPV4;
		return parse_ipv4(ctx, pkt);
	case cpu_to_be16(ETH_P_IPV6):
		pkt->family = FAMILY_IPV6;
		return parse_ipv6(ctx, pkt);
	case cpu_to_be16(ETH_P_ARP):
		pkt->flags |= PKT_CONTROL;
		return REASON_NON_IP;
	case cpu_to_be16(ETH_P_8021Q):
	case cpu_to_be16(ETH_P_8021AD):
		/* Priority tags are stripped without a VLAN device: passing would be a way around. */
		return REASON_MALFORMED_L3;
	}
	return REASON_NON_IP;
}

/* Whether a header of this number stands before the transport's. AH does in IPv4, too. */
static __always_inline bool is_extension(const struct pkt *pkt, __u8 number)
{
	switch (number) {
	case PROTO_AH:
		return true;
	case PROTO_HOPOPTS:
	case PROTO_ROUTING:
	case PROTO_FRAGMENT:
	case PROTO_DSTOPTS:
	case PROTO_MOBILITY:
	case PROTO_HIP:
	case PROTO_SHIM6:
		return pkt->family == FAMILY_IPV6;
	}
	return false;
}

/*
 * Walks the extension headers to the transport's. Leaves l4 0 and the protocol unknown where there
 * is none to read: behind the bounds, behind a header that is cut off; l4 0 alone in a fragment
 * that is not the first. Returns false if a header is cut off.
 */
static __always_inline bool parse_extensions(struct xdp_md *ctx, struct pkt *pkt)
{
	__u32 offset = pkt->l4;
	__u8 next = pkt->protocol;
	bool good = true;

	for (int i = 0; i <= EXTENSION_MAX; i++) {
		struct ipv6_opthdr *opt;
		__u32 size = sizeof(struct ipv6_fraghdr); /* the least of any */

		if (!is_extension(pkt, next)) {
			pkt->protocol = next;
			pkt->l4 = offset;
			return true;
		}
		if (i == EXTENSION_MAX)
			break;
		good = offset + size <= pkt->end;
		if (!good)
			break;
		opt = at(ctx, offset, size);
		if (!opt)
			break;
		if (next == PROTO_FRAGMENT) {
			struct ipv6_fraghdr *frag = (void *)opt;

			/* An atomic fragment (RFC 6946) is none. */
			if (frag->frag_off & cpu_to_be16(0xFFF9))
				pkt->flags |= PKT_FRAGMENT;
			if (frag->frag_off & cpu_to_be16(0xFFF8)) {
				pkt->protocol = frag->nexthdr;
				pkt->l4 = 0;
				return true;
			}
		} else if (next == PROTO_AH) {
			size = (opt->len + 2) * 4;
		} else {
			size = (opt->len + 1) * 8;
		}
		next = opt->nexthdr;
		offset += size;
		good = offset <= pkt->end;
		if (!good)
			break;
	}
	pkt->protocol = PROTO_UNKNOWN;
	pkt->l4 = 0;
	return good;
}

/* Reads the transport header. Returns false if the kernel would discard the packet for it. */
static __always_inline bool parse_transport(struct xdp_md *ctx, struct pkt *pkt)
{
	bool whole = !(pkt->flags & PKT_FRAGMENT);
	__u32 length = pkt->end - pkt->l4;

	switch (pkt->protocol) {
	case PROTO_TCP: {
		struct tcphdr *tcp = at(ctx, pkt->l4, sizeof(*tcp));
		__u32 doff;

		if (length < sizeof(*tcp))
			return !whole;
		if (!tcp)
			return true;
		pkt->sport = be16_to_cpu(tcp->sport);
		pkt->dport = be16_to_cpu(tcp->dport);
		pkt->flags |= PKT_PORTS;
		if ((tcp->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
			pkt->flags |= PKT_SYN;
		doff = (tcp->doff >> 4) * 4;
		return doff >= sizeof(*tcp) && (doff <= length || !whole);
	}
	case PROTO_UDP: {
		struct udphdr *udp = at(ctx, pkt->l4, sizeof(*udp));
		__u32 len;

		if (length < sizeof(*udp))
			return !whole;
		if (!udp)
			return true;
		pkt->sport = be16_to_cpu(udp->sport);
		pkt->dport = be16_to_cpu(udp->dport);
		pkt->flags |= PKT_PORTS;
		len = be16_to_cpu(udp->len);
		if (!len && pkt->family == FAMILY_IPV6)
			return true; /* RFC 2675: longer than the field can say */
		return len >= sizeof(*udp) && (len <= length || !whole);
	}
	case PROTO_UDPLITE:
	case PROTO_SCTP: {
		struct udphdr *ports = at(ctx, pkt->l4, sizeof(*ports));

		if (length < sizeof(*ports))
			return !whole;
		if (!ports)
			return true;
		pkt->sport = be16_to_cpu(ports->sport);
		pkt->dport = be16_to_cpu(ports->dport);
		pkt->flags |= PKT_PORTS;
		return true;
	}
	case PROTO_ICMP:
	case PROTO_ICMPV6: {
		struct icmphdr *icmp = at(ctx, pkt->l4, sizeof(*icmp));

		if ((pkt->protocol == PROTO_ICMP) != (pkt->family == FAMILY_IPV4))
			return true; /* the other family's: just a protocol */
		if (length < sizeof(*icmp))
			return !whole;
		if (!icmp || !whole)
			return true;
		if (pkt->family == FAMILY_IPV4) {
			/* unreachable (with fragmentation needed), time exceeded, parameters */
			if (icmp->type == 3 || icmp->type == 11 || icmp->type == 12)
				pkt->flags |= PKT_CONTROL;
		} else if (icmp->type >= 1 && icmp->type <= 4) {
			/* unreachable, packet too big, time exceeded, parameters */
			pkt->flags |= PKT_CONTROL;
		} else if (icmp->type >= 133 && icmp->type <= 137 && pkt->hop_limit == 255) {
			/* RFC 4861: 255 proves that it comes from this link */
			pkt->flags |= PKT_CONTROL | PKT_NEIGHBOUR;
		}
		return true;
	}
	}
	return true;
}

/*
 * The second step. A global function, as the other larger stages: the verifier walks it once, for
 * any pkt, and not once for each way that leads to it.
 */
__noinline int parse_l4(struct xdp_md *ctx, struct pkt *pkt)
{
	bool good = true;

	if (!pkt)
		return 0;
	if (pkt->l4)
		good = parse_extensions(ctx, pkt);
	if (good && pkt->l4)
		good = parse_transport(ctx, pkt);
	else if (pkt->flags & PKT_FRAGMENT)
		good = true; /* cut off by fragmentation, for all that can be known here */
	if (!good)
		pkt->flags |= PKT_L4_BAD;
	return 0;
}
