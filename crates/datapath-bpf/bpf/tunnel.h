/* SPDX-License-Identifier: Dual MIT/GPL */
/* Tunnels: what flow::TunnelDevice takes out of a frame, and what flow::Encap puts around one. */
#ifndef ESWITCH_TUNNEL_H
#define ESWITCH_TUNNEL_H

#include "maps.h"
#include "dissect.h"

/* The kinds of blocks, in the highest byte of their number. That of a tunnel has the E-Switch and the port of UDP in it. */
enum { BLOCK_PORT, BLOCK_SHARED, BLOCK_VXLAN, BLOCK_GENEVE, BLOCK_GRE };

/* BPF_F_ADJ_ROOM_DECAP_L3_IPV4 of Linux 6.3 and later, which headers may not have yet. */
#define DECAP_L3_IPV4 (1ULL << 7)

/* What the kernel needs behind the Ethernet header to take something away behind it (bpf_skb_adjust_room). */
#define MIN_INNER 20

static __always_inline int is_block(__u64 block)
{
	struct chain_key key = { .block = block };

	return bpf_map_lookup_elem(&chains, &key) != 0;
}

static __always_inline __u32 be32_at(const __u8 *bytes)
{
	return (__u32)be16_at(bytes) << 16 | be16_at(bytes + 2);
}

static __always_inline void forget_tunnel(struct scratch *s)
{
	__builtin_memset(&s->key.pad0, 0, CACHED_KEY - SHORT_KEY);
	__builtin_memset(&s->key.enc_opts, 0, sizeof(struct key) - __builtin_offsetof(struct key, enc_opts));
}

/* Notes what is known of the outer headers, whose key the scratch has (skb_flow_dissect_tunnel_info). */
static __always_inline void describe_tunnel(struct scratch *s, __u32 id)
{
	forget_tunnel(s);
	s->key.enc_key_id = id;
	s->key.enc_tos = s->key.ip_tos;
	s->key.enc_ttl = s->key.ip_ttl;
	s->key.enc_addr_type = s->key.addr_type;
	copy(s->key.enc_addr, s->key.addr, 32);
	if (s->has_ports) {
		copy(&s->key.enc_src_port, s->key.ports, 2);
		copy(&s->key.enc_dst_port, s->key.ports + 2, 2);
	}
	s->outer_version = s->version;
	s->outer_tos = s->key.ip_tos;
}

/* Where the frame inside of VXLAN begins, or 0 (vxlan_rcv). */
static __noinline int inside_vxlan(struct __sk_buff *skb, struct scratch *s)
{
	__u32 at = s->payload + 8;

	if (at + 8 > s->end || load(skb, s, at, s->bytes, 8))
		return 0;
	if (be32_at(s->bytes) != 0x08000000 || s->bytes[7])
		return 0;
	describe_tunnel(s, be32_at(s->bytes + 4) >> 8);
	return at + 8;
}

/* The same of Geneve (geneve_udp_encap_recv). */
static __noinline int inside_geneve(struct __sk_buff *skb, struct scratch *s)
{
	__u32 at = s->payload + 8, options;

	if (at + 8 > s->end || load(skb, s, at, s->bytes, 8))
		return 0;
	options = (s->bytes[0] & 0x3f) * 4;
	if (s->bytes[0] >> 6 || be16_at(s->bytes + 2) != 0x6558 || at + 8 + options > s->end)
		return 0;
	describe_tunnel(s, be32_at(s->bytes + 4) >> 8);
	s->key.enc_opts_len = options;
	if (is_within(&options, 252) && load(skb, s, at + 8, s->key.enc_opts, options))
		return 0;
	return at + 8 + s->key.enc_opts_len;
}

/* The same of GRE (gre_parse_header). */
static __noinline int inside_gre(struct __sk_buff *skb, struct scratch *s)
{
	__u32 at = s->payload, key = 0, header = 4;
	__u16 flags;

	if (at + 4 > s->end || load(skb, s, at, s->bytes, 4))
		return 0;
	flags = be16_at(s->bytes);
	if (flags & 0x4007 || be16_at(s->bytes + 2) != 0x6558)
		return 0;
	if (flags & 0x8000)
		header += 4;
	if (flags & 0x2000) {
		if (at + header + 4 > s->end || load(skb, s, at + header, s->bytes, 4))
			return 0;
		key = be32_at(s->bytes);
		header += 4;
	}
	if (flags & 0x1000)
		header += 4;
	if (at + header > s->end)
		return 0;
	describe_tunnel(s, key);
	return at + header;
}

/* Takes the outer congestion bits over (INET_ECN_decapsulate). Returns whether the frame may go on. */
static __always_inline int merge_congestion(struct scratch *s)
{
	__u8 outer = s->outer_tos & 3, tos = s->key.ip_tos, inner = tos & 3;

	s->tos_differs = 0;
	if (!s->network)
		return 1;
	if (outer == 3 && inner == 0)
		return 0;
	if (inner == 0 || inner == 3)
		return 1;
	if (outer == 3)
		tos |= 3;
	else if (outer == 1)
		tos = (tos & ~3) | 1;
	s->tos_differs = tos != s->key.ip_tos;
	s->inner_tos = tos;
	s->key.ip_tos = tos;
	if (s->version == 6)
		s->ip6_word = (s->ip6_word & 0xf00f) | (__u16)tos << 4;
	return 1;
}

/* Reads the frame inside of one that a tunnel device of this kind takes. Returns whether there is one. */
static __noinline int enter_tunnel(struct __sk_buff *skb, struct scratch *s, __u32 kind)
{
	__u64 block = (__u64)kind << 56 | s->eswitch << 16;
	__u32 at;

	/* A frame with a tag is for a VLAN device, not for the stack of the uplink. */
	if (!transport(s) || s->fragment || s->tags)
		return 0;
	/* What the kernel segments can have a length that IP has no room for. */
	if (skb->gso_size && s->end != skb->len)
		return 0;
	if (kind == BLOCK_GRE) {
		if (s->protocol != IPPROTO_GRE || !is_block(block))
			return 0;
		at = inside_gre(skb, s);
	} else {
		if (s->protocol != IPPROTO_UDP || !s->has_ports)
			return 0;
		block |= be16_at(s->key.ports + 2);
		if (!is_block(block))
			return 0;
		at = kind == BLOCK_VXLAN ? inside_vxlan(skb, s) : inside_geneve(skb, s);
	}
	if (!at || at + ETH_HLEN + MIN_INNER > s->end)
		return 0;
	s->block = block;
	s->base = at;
	s->limit = s->end;
	if (dissect(skb) || at + ETH_HLEN + MIN_INNER + s->tags * 4 > s->limit)
		return 0;
	return merge_congestion(s);
}

/* Takes the headers of the tunnel away. Returns whether that failed. */
static __noinline int decapsulate(struct __sk_buff *skb, struct scratch *s)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	__u32 base = s->base;

	if (s->outer_version == 6)
		flags |= DECAP_L3_IPV4;
	if (bpf_skb_load_bytes(skb, base, s->bytes, ETH_HLEN))
		return 1;
	if (s->limit < skb->len && bpf_skb_change_tail(skb, s->limit, 0))
		return 1;
	if (bpf_skb_adjust_room(skb, -(__s32)base, BPF_ADJ_ROOM_MAC, flags))
		return 1;
	if (bpf_skb_store_bytes(skb, 0, s->bytes, ETH_HLEN, BPF_F_INVALIDATE_HASH))
		return 1;
	s->base = 0;
	s->through = 1;
	return dissect(skb);
}

/* In the first pass: whether the next output can be encapsulated. */
static __noinline int pretend_encapsulation(struct scratch *s, __u32 index)
{
	struct encap *encap = bpf_map_lookup_elem(&encaps, &index);

	/* What the kernel segments must be IP without tags. */
	s->lost = !encap || !encap->neighbour_known || (s->segments > 1 && (s->tags || !s->network));
	return 0;
}

static __always_inline void put16(__u8 *to, __u16 value)
{
	to[0] = value >> 8;
	to[1] = value;
}

/* Takes the tags out that the kernel keeps beside the frame, the outermost one first. Returns how many there were. */
static __noinline int take_tags_out(struct __sk_buff *skb, struct scratch *s)
{
	__be16 tpid = skb->vlan_proto;
	__u8 *tags = s->bytes;
	__u32 count = 0;

	for (int i = 0; i < MAX_TAGS; i++) {
		if (!skb->vlan_present)
			break;
		copy(tags + i * 4, &tpid, 2);
		put16(tags + i * 4 + 2, skb->vlan_tci);
		/* The kernel takes the next one out too, and believes it to be what it was before its EtherType was rewritten. */
		if (bpf_skb_load_bytes(skb, 12, &tpid, 2))
			break;
		bpf_skb_vlan_pop(skb);
		count = i + 1;
	}
	return count;
}

/* Writes lengths, checksum and source port into the headers. Returns whether the frame is too long for them. */
static __noinline int fill_in(struct __sk_buff *skb, __u8 *out, const struct encap *encap, __u32 inner)
{
	__u32 ip = encap->version == 4 ? 20 : 40, payload = encap->length - ETH_HLEN - ip + inner;
	__u32 total = encap->version == 4 ? payload + 20 : payload, hash = bpf_get_hash_recalc(skb);
	__u8 *udp = encap->version == 4 ? out + ETH_HLEN + 20 : out + ETH_HLEN + 40;

	if (total > 0xffff) {
		if (!skb->gso_size)
			return 1;
		/* Each segment gets its own. */
		total = payload = 0xffff;
	}
	if (encap->udp) {
		put16(udp, 0x8000 | (hash ^ hash >> 16));
		put16(udp + 4, payload);
	}
	if (encap->version == 4) {
		__u64 sum = 0;

		put16(out + 16, total);
#pragma unroll
		for (int i = 0; i < 20; i += 2)
			sum += be16_at(out + ETH_HLEN + i);
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		put16(out + 24, ~sum);
	} else {
		put16(out + 18, total);
	}
	return 0;
}

/*
 * Encapsulates the frame. Returns 0, or why it cannot be.
 *
 * What the kernel segments or computes checksums of gets its room by bpf_skb_adjust_room(), so that the kernel knows of the
 * tunnel; other frames, and those with tags, by bpf_skb_change_head().
 */
static __noinline int encapsulate(struct __sk_buff *skb, struct scratch *s)
{
	__u32 index = s->encap - 1, length, tags, inner;
	struct encap *encap = bpf_map_lookup_elem(&encaps, &index);
	__u8 *out = s->sample.frame, *mac = s->bytes + 128;

	s->encap = 0;
	if (!encap)
		return DROP_ERROR;
	copy(out, encap->bytes, MAX_ENCAP);
	length = encap->length;
	tags = take_tags_out(skb, s);
	inner = skb->len + 4 * tags;
	if (fill_in(skb, out, encap, inner))
		return DROP_TOO_LONG;
	if (bpf_skb_load_bytes(skb, 0, mac, ETH_HLEN))
		return DROP_ERROR;
	if (length < ETH_HLEN)
		return DROP_ERROR;
	s->through = 1;
	if (!tags && s->network && !s->tags) {
		__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L2_ETH;

		flags |= encap->version == 4 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;
		flags |= encap->udp ? BPF_F_ADJ_ROOM_ENCAP_L4_UDP : BPF_F_ADJ_ROOM_ENCAP_L4_GRE;
		/* The inner MAC addresses: what is before them belongs to the tunnel. */
		flags |= BPF_F_ADJ_ROOM_ENCAP_L2((__u64)ETH_HLEN);
		if (!bpf_skb_adjust_room(skb, length, BPF_ADJ_ROOM_MAC, flags)) {
			if (!is_within(&length, MAX_ENCAP))
				return DROP_ERROR;
			bpf_skb_store_bytes(skb, 0, out, length, BPF_F_INVALIDATE_HASH);
			bpf_skb_store_bytes(skb, length, mac, ETH_HLEN, 0);
			return 0;
		}
		if (skb->gso_size)
			return DROP_ERROR;
	}
	if (bpf_skb_change_head(skb, length + 4 * tags, 0))
		return DROP_TOO_LONG;
	if (!is_within(&length, MAX_ENCAP))
		return DROP_ERROR;
	bpf_skb_store_bytes(skb, 0, out, length, BPF_F_INVALIDATE_HASH);
	if (tags) {
		__u32 bytes = tags * 4;

		bpf_skb_store_bytes(skb, length, mac, 12, 0);
		if (is_within(&bytes, 64))
			bpf_skb_store_bytes(skb, length + 12, s->bytes, bytes, 0);
	}
	return 0;
}

#endif
