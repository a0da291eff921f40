/* SPDX-License-Identifier: Dual MIT/GPL */
/* Reading frames: the key of a frame, and where its headers are. It does what flow::dissect does. */
#ifndef ESWITCH_DISSECT_H
#define ESWITCH_DISSECT_H

#include "maps.h"
#include <bpf/bpf_endian.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>

#define MAX_EXTENSIONS 15

#define copy __builtin_memcpy

static __always_inline __u16 be16_at(const __u8 *bytes)
{
	return (__u16)bytes[0] << 8 | bytes[1];
}

/*
 * Whether a size is from 1 to `most`, so that the verifier knows it. It knows bounds of the register that was compared, and
 * before Linux 6.8 not that a number which is not 0 is at least 1: so one comparison of the number before it, which stays in
 * its register.
 */
static __always_inline int is_within(__u32 *size, __u32 most)
{
	__u32 before = *size - 1;

	asm volatile("" : "+r"(before));
	if (before >= most)
		return 0;
	asm volatile("" : "+r"(before));
	*size = before + 1;
	return 1;
}

/* Loads bytes of the frame, which ends before what the wire has padded it with. */
static __always_inline int load(struct __sk_buff *skb, const struct scratch *s, __u32 offset, void *to, __u32 size)
{
	if (offset + size > s->limit)
		return -1;
	return bpf_skb_load_bytes(skb, offset, to, size);
}

static __always_inline int is_vlan(__be16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD);
}

/* Sets the fields of the key that follow from the tags. */
static __always_inline void describe_tags(struct scratch *s)
{
	__u32 first = s->first_tag;
	__u32 outer = s->tag[first & 127], inner = s->tag[(first + 1) & 127], third = s->tag[(first + 2) & 127];
	__u8 tags = s->tags;
	__be16 type = tags <= 1 ? s->type : s->raw_type;

	s->key.eth_type = type;
	s->key.vlan_tpid = tags ? bpf_htons(outer >> 16) : 0;
	s->key.vlan_tci = tags ? bpf_htons(outer & 0xefff) : 0;
	s->key.vlan_eth_type = !tags ? 0 : tags == 1 ? type : bpf_htons(inner >> 16);
	s->key.cvlan_tpid = tags > 1 ? bpf_htons(inner >> 16) : 0;
	s->key.cvlan_tci = tags > 1 ? bpf_htons(inner & 0xefff) : 0;
	s->key.cvlan_eth_type = tags <= 1 ? 0 : tags == 2 ? type : bpf_htons(third >> 16);
}

/* Forgets what is behind more tags than are read. */
static __noinline int forget_headers(struct scratch *s)
{
	__u32 in_port = s->key.in_port, mark = s->key.ct_mark;
	__be16 zone = s->key.ct_zone;
	__u8 state = s->key.ct_state;

	s->raw_type = s->type = bpf_htons(s->tag[(s->first_tag + MAX_TAGS) & 127] >> 16);
	s->key.eth_type = s->type;
	__builtin_memset(&s->key.ip_proto, 0, SHORT_KEY - __builtin_offsetof(struct key, ip_proto));
	s->key.in_port = in_port;
	s->key.ct_mark = mark;
	s->key.ct_zone = zone;
	s->key.ct_state = state;
	s->network = 0;
	s->version = 0;
	s->protocol = 0;
	s->has_ports = 0;
	s->has_tcp_flags = 0;
	return 0;
}

/* The EtherType that tc compares with the protocol of a filter. */
static __always_inline __be16 outermost_type(const struct scratch *s)
{
	return s->tags ? s->key.vlan_tpid : s->key.eth_type;
}

static __always_inline int dissect_transport(struct __sk_buff *skb, struct scratch *s)
{
	__u32 offset = s->payload;

	s->key.ip_proto = s->protocol;
	s->key.ip_flags = s->fragment == 0 ? 0 : s->fragment == 1 ? 3 : 1;
	if (s->fragment)
		return 0;
	switch (s->protocol) {
	case IPPROTO_TCP:
		if (!load(skb, s, offset, s->bytes, 20)) {
			copy(s->key.ports, s->bytes, 4);
			s->has_ports = 1;
			if (s->bytes[12] >> 4 >= 5) {
				s->key.tcp_flags = bpf_htons(be16_at(s->bytes + 12) & 0x0fff);
				s->has_tcp_flags = 1;
			}
			return 0;
		}
		/* fall through */
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		if (!load(skb, s, offset, s->bytes, 4)) {
			copy(s->key.ports, s->bytes, 4);
			s->has_ports = 1;
		}
		return 0;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (!load(skb, s, offset, s->bytes, 8))
			copy(s->key.ports, s->bytes, 2);
		return 0;
	}
	return 0;
}

static __noinline int dissect_arp(struct __sk_buff *skb, struct scratch *s, __u32 offset)
{
	__u8 *arp = s->bytes;

	if (load(skb, s, offset, arp, 28))
		return 0;
	if (arp[0] != 0 || arp[1] != 1 || arp[2] != 8 || arp[3] != 0 || arp[4] != 6 || arp[5] != 4 || arp[6] != 0)
		return 0;
	if (arp[7] != 1 && arp[7] != 2)
		return 0;
	s->key.ip_tos = arp[7];
	copy(s->key.addr, arp + 14, 4);
	copy(s->key.addr + 4, arp + 24, 4);
	copy(s->key.addr + 8, arp + 8, 6);
	copy(s->key.addr + 14, arp + 18, 6);
	return 0;
}

static __noinline int dissect_ipv4(struct __sk_buff *skb, struct scratch *s, __u32 offset)
{
	__u8 *ip = s->bytes;
	__u32 header, total, end;
	__u16 flags;

	if (load(skb, s, offset, ip, 20))
		return 0;
	header = (ip[0] & 15) * 4;
	if (header < 20)
		return 0;
	flags = be16_at(ip + 6);
	total = be16_at(ip + 2);
	end = s->limit;
	if (total >= header && offset + total < end)
		end = offset + total;
	s->network = offset;
	s->version = 4;
	s->protocol = ip[9];
	s->fragment = flags & 0x1fff ? 2 : flags & 0x2000 ? 1 : 0;
	s->payload = offset + header;
	s->end = end;
	s->key.addr_type = 4;
	s->key.ip_tos = ip[1];
	s->key.ip_ttl = ip[8];
	copy(s->key.addr, ip + 12, 8);
	return dissect_transport(skb, s);
}

static __noinline int dissect_ipv6(struct __sk_buff *skb, struct scratch *s, __u32 offset)
{
	__u8 *ip = s->bytes;
	__u32 length, end, at;
	__u8 protocol;

	if (load(skb, s, offset, ip, 40))
		return 0;
	length = be16_at(ip + 4);
	end = s->limit;
	if (length && offset + 40 + length < end)
		end = offset + 40 + length;
	protocol = ip[6];
	at = offset + 40;
	s->network = offset;
	s->version = 6;
	s->end = end;
	s->ip6_word = be16_at(ip);
	s->key.addr_type = 6;
	s->key.ip_tos = s->ip6_word >> 4;
	s->key.ip_ttl = ip[7];
	copy(s->key.addr, ip + 8, 32);

	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		if (protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS) {
			if (load(skb, s, at, ip, 2))
				goto unreadable;
			protocol = ip[0];
			at += (ip[1] + 1) * 8;
			continue;
		}
		if (protocol == IPPROTO_FRAGMENT) {
			if (load(skb, s, at, ip, 8))
				goto unreadable;
			protocol = ip[0];
			at += 8;
			s->fragment = be16_at(ip + 2) & 0xfff8 ? 2 : 1;
		}
		break;
	}
	s->protocol = protocol;
	s->payload = at;
	return dissect_transport(skb, s);
unreadable:
	s->protocol = protocol;
	s->key.ip_proto = protocol;
	s->payload = s->limit;
	return 0;
}

/*
 * Reads the frame into the scratch of this CPU: the whole one, or if `base` is set the one inside, up to `limit`. Returns 0,
 * or what is wrong as a drop_reason.
 */
__noinline int dissect(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	__u32 offset, base, tags = 0;
	__u8 *bytes;
	__be16 type;

	if (!s)
		return DROP_ERROR;
	base = s->base;
	if (!base)
		s->limit = skb->len;
	offset = base + ETH_HLEN;
	bytes = s->bytes;
	__builtin_memset(&s->key, 0, SHORT_KEY);
	s->network = 0;
	s->payload = 0;
	s->end = 0;
	s->version = 0;
	s->protocol = 0;
	s->fragment = 0;
	s->has_ports = 0;
	s->has_tcp_flags = 0;
	s->key.in_port = s->in_port;
	if (load(skb, s, base, bytes, ETH_HLEN))
		return DROP_TOO_SHORT;
	copy(s->key.eth_dst, bytes, 12);
	copy(&type, bytes + 12, 2);
	s->length = s->limit - base;
	/* The kernel has taken the outer tag out. */
	if (!base && skb->vlan_present) {
		s->tag[FIRST_TAG] = (__u32)bpf_ntohs(skb->vlan_proto) << 16 | (skb->vlan_tci & 0xffff);
		s->length += 4;
		tags = 1;
	}
	for (int i = 0; i < MAX_TAGS; i++) {
		if (tags >= MAX_TAGS || !is_vlan(type) || load(skb, s, offset, bytes, 4))
			break;
		s->tag[(FIRST_TAG + tags) & 127] = (__u32)bpf_ntohs(type) << 16 | be16_at(bytes);
		copy(&type, bytes + 2, 2);
		offset += 4;
		tags++;
	}
	s->first_tag = FIRST_TAG;
	s->tags = tags;
	s->raw_type = type;
	if (bpf_ntohs(type) < 0x0600) {
		/* A length: as eth_type_trans(). */
		if (!load(skb, s, offset, bytes, 2) && bytes[0] == 0xff && bytes[1] == 0xff)
			type = bpf_htons(ETH_P_802_3);
		else
			type = bpf_htons(ETH_P_802_2);
	}
	s->type = type;
	describe_tags(s);
	switch (bpf_ntohs(type)) {
	case ETH_P_ARP:
	case ETH_P_RARP:
		return dissect_arp(skb, s, offset);
	case ETH_P_IP:
		return dissect_ipv4(skb, s, offset);
	case ETH_P_IPV6:
		return dissect_ipv6(skb, s, offset);
	}
	return 0;
}

/* Where the header of TCP, UDP and so on begins, or 0. */
static __always_inline __u32 transport(const struct scratch *s)
{
	return s->network && s->fragment != 2 && s->payload < s->end ? s->payload : 0;
}

#endif
