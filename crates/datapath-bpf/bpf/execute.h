/* SPDX-License-Identifier: Dual MIT/GPL */
/* The second pass: counting, rewriting and sending. */
#ifndef ESWITCH_EXECUTE_H
#define ESWITCH_EXECUTE_H

#include "maps.h"
#include "dissect.h"
#include "meter.h"
#include "tunnel.h"

#define VERDICT_DROP 2

static __noinline int note_drop(__u32 port, __u32 reason)
{
	struct drop_key key = { .port = port, .reason = reason };
	__u64 one = 1, *count = bpf_map_lookup_elem(&drops, &key);

	if (count)
		*count += 1;
	else
		bpf_map_update_elem(&drops, &key, &one, BPF_NOEXIST);
	return 0;
}

/* In a test: notes a frame that would be sent. */
static __noinline int record(struct __sk_buff *skb, __u32 port, __u32 to_representor)
{
	struct control *control = controls();
	struct output *output;
	__u32 index, length = skb->len;

	if (!control)
		return 0;
	index = control->outputs;
	output = bpf_map_lookup_elem(&outputs, &index);
	if (!output)
		return 0;
	control->outputs = index + 1;
	output->port = port;
	output->to_representor = to_representor;
	output->length = length;
	output->vlan_present = skb->vlan_present;
	output->vlan_tpid = bpf_ntohs(skb->vlan_proto);
	output->vlan_tci = skb->vlan_tci;
	if (is_within(&length, MAX_RECORDED))
		bpf_skb_load_bytes(skb, 0, output->frame, length);
	return 0;
}

static __always_inline __u32 mixed(__u32 hash, __u32 word)
{
	return (hash ^ word) * 0x9e3779b1;
}

/*
 * The netdev out of which rules send to a port. Of several wires, one flow leaves by the same: that of a hash of the
 * addresses and ports.
 */
static __noinline __u32 way_out(const struct port *port, const struct scratch *s)
{
	const __u32 *macs = (const __u32 *)&s->key, *addr = (const __u32 *)s->key.addr;
	__u32 hash = s->key.ip_proto, which;

	if (!port->wire_count)
		return port->ifindex;
	for (int i = 0; i < 3; i++)
		hash = mixed(hash, macs[i]);
	for (int i = 0; i < 8; i++)
		hash = mixed(hash, addr[i]);
	if (s->key.ip_proto == IPPROTO_TCP || s->key.ip_proto == IPPROTO_UDP)
		hash = mixed(hash, *(const __u32 *)s->key.ports);
	which = (hash >> 16) % port->wire_count;
	return port->wires[which & (MAX_WIRES - 1)];
}

/* Sends the frame itself to a port. `out`: by another wire than its own, or 0. Returns what the program returns. */
static __noinline int send_last(struct __sk_buff *skb, __u32 number, __u32 through, __u32 out)
{
	struct port *port = bpf_map_lookup_elem(&ports, &number);

	if (testing) {
		record(skb, number, 0);
		return VERDICT_DROP;
	}
	if (!port || !port->ifindex || port->mode == MODE_INACTIVE) {
		note_drop(number, DROP_NO_PORT);
		return VERDICT_DROP;
	}
	if (!(port->flags & PORT_LINK_UP)) {
		note_drop(number, DROP_LINK_DOWN);
		return VERDICT_DROP;
	}
	/* The other end is in another network namespace, which is to see no mark. */
	skb->mark = 0;
	if (port->flags & PORT_WIRE)
		return bpf_redirect(out ? out : port->ifindex, 0);
	if (through || port->flags & PORT_THROUGH_INNER)
		return bpf_redirect(port->ifindex, 0);
	return bpf_redirect_peer(port->ifindex, 0);
}

/* Sends the frame itself to a port, into a tunnel if one is set. Returns what the program returns. */
static __noinline int redirect(struct __sk_buff *skb, struct scratch *s, __u32 number)
{
	struct port *port = bpf_map_lookup_elem(&ports, &number);

	if (s->encap) {
		int wrong = encapsulate(skb, s);

		if (wrong) {
			s->fate = FATE_DROPPED;
			s->reason = wrong;
			return VERDICT_DROP;
		}
	}
	return send_last(skb, number, s->through, port ? way_out(port, s) : 0);
}

/* Sends a copy of the frame to a port. */
static __noinline int send_copy(struct __sk_buff *skb, const struct scratch *s, __u32 number)
{
	struct port *port = bpf_map_lookup_elem(&ports, &number);
	__u32 mark = skb->mark;

	if (testing)
		return record(skb, number, 0);
	if (!port || !port->ifindex || port->mode == MODE_INACTIVE)
		return note_drop(number, DROP_NO_PORT);
	if (!(port->flags & PORT_LINK_UP))
		return note_drop(number, DROP_LINK_DOWN);
	skb->mark = 0;
	bpf_clone_redirect(skb, way_out(port, s), 0);
	skb->mark = mark;
	return 0;
}

/* Sends the frame as it came in to the representor, where it is received. */
static __noinline int send_to_representor(struct __sk_buff *skb, struct scratch *s)
{
	if (testing) {
		record(skb, s->in_port, 1);
		return VERDICT_DROP;
	}
	if (!s->representor) {
		note_drop(s->in_port, DROP_NO_REPRESENTOR);
		return VERDICT_DROP;
	}
	return bpf_redirect(s->representor, 0);
}

static __noinline int count(const struct scratch *s, __u32 rule, __u32 bytes)
{
	__u32 cpu = bpf_get_smp_processor_id(), index;
	struct counter *counter;

	if (rule >= max_rules || cpu >= cpus)
		return 0;
	index = cpu * max_rules + rule;
	counter = bpf_map_lookup_elem(&counters, &index);
	if (!counter)
		return 0;
	counter->packets += s->segments;
	counter->bytes += bytes;
	counter->last_used = s->now;
	return 0;
}

/* The place of the checksum of TCP, UDP, ICMP or ICMPv6, or 0. */
static __always_inline __u32 check_of_transport(const struct scratch *s, __u64 *flags)
{
	__u32 at = transport(s);

	*flags = 0;
	if (!at)
		return 0;
	if (s->protocol == IPPROTO_TCP) {
		at += 16;
	} else if (s->protocol == IPPROTO_UDP) {
		at += 6;
		*flags = BPF_F_MARK_MANGLED_0;
	} else if ((s->protocol == IPPROTO_ICMP && s->version == 4) ||
		   (s->protocol == IPPROTO_ICMPV6 && s->version == 6)) {
		at += 2;
	} else {
		return 0;
	}
	return at + 2 <= s->end ? at : 0;
}

#define COVERS_HEADER 1		/* the checksum of IPv4 covers it */
#define COVERS_PSEUDO 2		/* so does that of the transport, by the pseudo header */
#define COVERS_TRANSPORT 4	/* so does that of the transport */

/* Writes `new` over `old`, `size` bytes at an even place of a header, and corrects the checksums that cover them. */
static __noinline int write_region(struct __sk_buff *skb, struct scratch *s, __u32 at, __u32 size, __u32 covers)
{
	__u64 flags = 0, store = 0;
	__u32 check = 0;
	__s64 diff;

	if (covers & (COVERS_PSEUDO | COVERS_TRANSPORT))
		check = check_of_transport(s, &flags);
	if (covers & COVERS_PSEUDO) {
		flags |= BPF_F_PSEUDO_HDR;
		if (s->protocol == IPPROTO_ICMP)
			check = 0;
	}
	/* Behind the last byte of the region both are zero. */
	diff = bpf_csum_diff((__be32 *)s->old, 16, (__be32 *)s->new, 16, 0);
	if (!covers && at >= ETH_HLEN)
		store = BPF_F_RECOMPUTE_CSUM;
	if (!is_within(&size, 16))
		return 0;
	bpf_skb_store_bytes(skb, at, s->new, size, store);
	if (covers & COVERS_HEADER)
		bpf_l3_csum_replace(skb, s->network + 10, 0, diff, 0);
	if (check)
		bpf_l4_csum_replace(skb, check, 0, diff, flags);
	return 0;
}

/* Reads `size` bytes into `old` and `new`. */
static __always_inline int read_region(struct __sk_buff *skb, struct scratch *s, __u32 at, __u32 size)
{
	__builtin_memset(s->old, 0, 16);
	if (!is_within(&size, 16) || bpf_skb_load_bytes(skb, at, s->old, size))
		return 0;
	copy(s->new, s->old, 16);
	return 1;
}

static __noinline int edit(struct __sk_buff *skb, struct scratch *s, const struct action *action)
{
	__u32 start = 0, covers = 0, at = transport(s), place = action->place;
	__u64 *new = (__u64 *)s->new, *value = (__u64 *)action->value, *mask = (__u64 *)action->mask;

	switch (action->header) {
	case HEADER_ETH:
		/* The EtherType is what follows the outer tag, which may still stand in the frame. */
		if (action->field == EDIT_ETH_TYPE && s->tags && !skb->vlan_present)
			start = 4;
		break;
	case HEADER_IP4:
		if (s->version != 4)
			return 0;
		start = s->network;
		covers = place >= 12 ? COVERS_HEADER | COVERS_PSEUDO : COVERS_HEADER;
		break;
	case HEADER_IP6:
		if (s->version != 6)
			return 0;
		start = s->network;
		covers = place >= 8 ? COVERS_PSEUDO : 0;
		break;
	case HEADER_TCP:
	case HEADER_UDP:
		if (!at || s->protocol != (action->header == HEADER_TCP ? IPPROTO_TCP : IPPROTO_UDP))
			return 0;
		start = at;
		covers = COVERS_TRANSPORT;
		break;
	}
	if (!read_region(skb, s, start + place, action->region))
		return 0;
	if (action->kind == ACTION_EDIT) {
		new[0] = (new[0] & ~mask[0]) | (value[0] & mask[0]);
		new[1] = (new[1] & ~mask[1]) | (value[1] & mask[1]);
	} else if (action->size == 1) {
		/* Fields of one byte stand at an even or an odd place of their region. */
		if (action->mask[0])
			s->new[0] += action->arg;
		else
			s->new[1] += action->arg;
	} else if (action->size == 2) {
		__u16 sum = be16_at(s->new) + action->arg;

		s->new[0] = sum >> 8;
		s->new[1] = sum;
	} else {
		__u32 sum = ((__u32)be16_at(s->new) << 16 | be16_at(s->new + 2)) + action->arg;

		s->new[0] = sum >> 24;
		s->new[1] = sum >> 16;
		s->new[2] = sum >> 8;
		s->new[3] = sum;
	}
	write_region(skb, s, start + place, action->region, covers);
	if (action->field == EDIT_ETH_TYPE)
		dissect(skb);
	return 0;
}

/* Returns whether the time to live is over. */
static __noinline int decrement_ttl(struct __sk_buff *skb, struct scratch *s)
{
	__u32 at = s->network + (s->version == 4 ? 8 : 6), odd = s->version == 4 ? 0 : 1;
	__u8 ttl;

	if (!s->network || !read_region(skb, s, at, 2))
		return 0;
	ttl = odd ? s->new[1] : s->new[0];
	if (ttl <= 1)
		return 1;
	if (odd)
		s->new[1] = ttl - 1;
	else
		s->new[0] = ttl - 1;
	write_region(skb, s, at, 2, odd ? 0 : COVERS_HEADER);
	return 0;
}

/* Notes how far the headers have moved, and which tags there are. */
static __noinline int after_tags(struct __sk_buff *skb, struct scratch *s, __u32 before)
{
	__u32 moved = skb->len - before;

	if (s->network) {
		s->network += moved;
		s->payload += moved;
		s->end += moved;
	}
	if (s->tags > MAX_TAGS)
		forget_headers(s);
	return 0;
}

/* Takes the outer tag out of a frame of which the kernel does not know that it has one. */
static __always_inline int cut_tag(struct __sk_buff *skb, struct scratch *s)
{
	if (bpf_skb_load_bytes(skb, 16, s->old, 2) || bpf_skb_adjust_room(skb, -4, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return 0;
	return bpf_skb_store_bytes(skb, 12, s->old, 2, 0);
}

static __noinline int change_tags(struct __sk_buff *skb, struct scratch *s, const struct action *action)
{
	__u32 before = skb->len, tag = action->arg, top = s->tag[s->first_tag & 127];

	if (action->kind != ACTION_VLAN_PUSH) {
		if (!s->tags)
			return 0;
		/* An error says that the next tag is truncated; this one is gone. */
		if (skb->vlan_present || is_vlan(skb->protocol))
			bpf_skb_vlan_pop(skb);
		else
			cut_tag(skb, s);
		s->first_tag++;
		s->tags--;
		if (action->kind == ACTION_VLAN_MODIFY)
			tag |= top & (action->field ? 0x1000 : 0xf000);
	}
	if (action->kind != ACTION_VLAN_POP && !bpf_skb_vlan_push(skb, bpf_htons(tag >> 16), tag & 0xffff)) {
		s->first_tag--;
		s->tags++;
		s->tag[s->first_tag & 127] = tag;
	}
	return after_tags(skb, s, before);
}

struct sum {
	struct __sk_buff *skb;
	struct scratch *s;
	__u32 at;
	__u32 end;
	__s64 sum;
};

static long sum_chunk(__u32 i, struct sum *sum)
{
	__u32 left = sum->end - sum->at;
	__u8 *bytes = sum->s->bytes;

	if (sum->at >= sum->end)
		return 1;
	if (left >= 512) {
		if (bpf_skb_load_bytes(sum->skb, sum->at, bytes, 512))
			return 1;
		sum->sum = bpf_csum_diff(0, 0, (__be32 *)bytes, 512, sum->sum);
		sum->at += 512;
		return 0;
	}
	__builtin_memset(bytes, 0, 512);
	if (!is_within(&left, 511) || bpf_skb_load_bytes(sum->skb, sum->at, bytes, left))
		return 1;
	sum->sum = bpf_csum_diff(0, 0, (__be32 *)bytes, 512, sum->sum);
	sum->at = sum->end;
	return 1;
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static __always_inline __s64 sum_of(struct __sk_buff *skb, struct scratch *s, __u32 at, __u32 end, __s64 start)
{
	struct sum sum = { .skb = skb, .s = s, .at = at, .end = end, .sum = start };

	bpf_loop(130, sum_chunk, &sum, 0);
	return sum.sum;
}

static __noinline int compute_header(struct __sk_buff *skb, struct scratch *s)
{
	__u16 check = 0;
	__u32 end = s->payload < skb->len ? s->payload : skb->len;

	bpf_skb_store_bytes(skb, s->network + 10, &check, 2, 0);
	check = ~fold(sum_of(skb, s, s->network, end, 0));
	bpf_skb_store_bytes(skb, s->network + 10, &check, 2, 0);
	return 0;
}

/*
 * Computes the checksum of the transport anew, unless the sender has left that to the hardware: then there is the sum of
 * the pseudo header in its place, and it is computed when the frame leaves the machine.
 */
static __noinline int compute_transport(struct __sk_buff *skb, struct scratch *s)
{
	__u64 flags, pseudo = 0;
	__u32 at = check_of_transport(s, &flags), length = s->end - s->payload;
	__u16 check, before;

	if (!at || s->fragment || bpf_skb_load_bytes(skb, at, &before, 2))
		return 0;
	if (s->protocol == IPPROTO_UDP && !before)
		return 0;
	if (s->protocol != IPPROTO_ICMP) {
		__builtin_memset(s->bytes, 0, 64);
		if (s->version == 4)
			bpf_skb_load_bytes(skb, s->network + 12, s->bytes, 8);
		else
			bpf_skb_load_bytes(skb, s->network + 8, s->bytes, 32);
		s->bytes[32] = length >> 24;
		s->bytes[33] = length >> 16;
		s->bytes[34] = length >> 8;
		s->bytes[35] = length;
		s->bytes[39] = s->protocol;
		pseudo = bpf_csum_diff(0, 0, (__be32 *)s->bytes, 64, 0);
		if (before == fold(pseudo) || skb->gso_size)
			return 0;
	}
	check = 0;
	bpf_skb_store_bytes(skb, at, &check, 2, 0);
	check = ~fold(sum_of(skb, s, s->payload, s->end, pseudo));
	if (!check && s->protocol == IPPROTO_UDP)
		check = 0xffff;
	bpf_skb_store_bytes(skb, at, &check, 2, 0);
	return 0;
}

/* The bits TCA_CSUM_UPDATE_FLAG_* that stand for a protocol. */
static __always_inline __u32 csum_bit(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return 2;
	case IPPROTO_TCP:
		return 8;
	case IPPROTO_UDP:
		return 16;
	}
	return 0;
}

static __always_inline int compute_checksums(struct __sk_buff *skb, struct scratch *s, __u32 which)
{
	if (!s->network)
		return 0;
	if (which & csum_bit(s->protocol))
		compute_transport(skb, s);
	if (which & 1 && s->version == 4)
		compute_header(skb, s);
	return 0;
}

/* The next random number; in a test SplitMix64, as in flow::State. */
static __always_inline __u64 next_random(void)
{
	struct control *control = controls();
	__u64 mixed;

	if (!testing || !control)
		return bpf_get_prandom_u32();
	control->random += 0x9e3779b97f4a7c15ULL;
	mixed = (control->random ^ control->random >> 30) * 0xbf58476d1ce4e5b9ULL;
	mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebULL;
	return mixed ^ mixed >> 31;
}

/* Loads at most MAX_SAMPLED bytes, or none. */
static __always_inline int load_some(struct __sk_buff *skb, __u32 offset, __u8 *to, __u32 size)
{
	if (!is_within(&size, MAX_SAMPLED))
		return 0;
	return bpf_skb_load_bytes(skb, offset, to, size);
}

static __noinline int take_sample(struct __sk_buff *skb, struct scratch *s, const struct action *action)
{
	struct control *control = controls();
	struct sample *sample = &s->sample;
	__u32 length = skb->len, kept, limit, room = MAX_SAMPLED, tag = 0;

	if (!control || !*(volatile __u64 *)&control->sampling)
		return 0;
	if (next_random() % (action->arg ? action->arg : 1))
		return 0;
	copy(&limit, action->value, 4);
	/* A tag that the kernel has taken out goes back to its place. */
	if (skb->vlan_present) {
		tag = bpf_htonl((__u32)bpf_ntohs(skb->vlan_proto) << 16 | (skb->vlan_tci & 0xffff));
		length += 4;
	}
	kept = length < limit ? length : limit;
	if (kept > room)
		kept = room;
	sample->group = action->alternative;
	sample->rate = action->arg;
	sample->in_port = s->in_port;
	sample->length = length;
	sample->kept = kept;
	if (tag) {
		if (bpf_skb_load_bytes(skb, 0, sample->frame, 12) ||
		    load_some(skb, 12, sample->frame + 16, kept > 16 ? kept - 16 : 0))
			return 0;
		copy(sample->frame + 12, &tag, 4);
	} else if (load_some(skb, 0, sample->frame, kept)) {
		return 0;
	}
	asm volatile("" : "+r"(kept));
	if (kept <= MAX_SAMPLED)
		bpf_ringbuf_output(&samples, sample, __builtin_offsetof(struct sample, frame) + kept, 0);
	return 0;
}

/* Writes an address of IP at `at`, unless it is the same in both tuples. */
static __noinline int translate_address(struct __sk_buff *skb, struct scratch *s, __u32 at, __u64 *from, __u64 *to)
{
	if (from[0] == to[0] && from[1] == to[1])
		return 0;
	if (s->version == 4) {
		if (!read_region(skb, s, at, 4))
			return 0;
		copy(s->new, to, 4);
		return write_region(skb, s, at, 4, COVERS_HEADER | COVERS_PSEUDO);
	}
	if (!read_region(skb, s, at, 16))
		return 0;
	copy(s->new, to, 16);
	return write_region(skb, s, at, 16, COVERS_PSEUDO);
}

static __noinline int translate_part(struct __sk_buff *skb, struct scratch *s, __u32 at, __u32 from, __u32 to)
{
	if (from == to || !read_region(skb, s, at, 2))
		return 0;
	put16(s->new, to);
	return write_region(skb, s, at, 2, COVERS_TRANSPORT);
}

/* Translates the frame, as the first pass has noted. Returns whether the run was over there. */
__noinline int translate_frame(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct tuple *own, *wanted;
	__u32 i, record;
	struct held *held;

	if (!s)
		return 1;
	i = s->record_at;
	if (i >= s->records || i >= MAX_RECORDS)
		return 1;
	wanted = &s->candidate;
	s->record_at = i + 1;
	record = s->record[i];
	held = held_at(s, record & 0x7f);
	if (!held || !s->network)
		return 0;
	own = record & 0x80 ? &held->reply : &held->original;
	invert(wanted, record & 0x80 ? &held->original : &held->reply);
	translate_address(skb, s, s->network + (s->version == 4 ? 12 : 8), (__u64 *)own->src, (__u64 *)wanted->src);
	translate_address(skb, s, s->network + (s->version == 4 ? 16 : 24), (__u64 *)own->dst, (__u64 *)wanted->dst);
	if (is_icmp(own)) {
		translate_part(skb, s, s->payload + 4, own->src_part, wanted->src_part);
		return 0;
	}
	translate_part(skb, s, s->payload, own->src_part, wanted->src_part);
	translate_part(skb, s, s->payload + 2, own->dst_part, wanted->dst_part);
	return 0;
}

struct doing {
	struct __sk_buff *skb;
	struct scratch *s;
	__u32 next;
	__u32 exceeded;
	__u32 measured;
	__u32 over;
};

/* Does one action. Returns whether the run is over. */
static __always_inline int do_action(struct __sk_buff *skb, struct scratch *s, struct doing *doing)
{
	struct action *action = bpf_map_lookup_elem(&actions, &doing->next);

	if (!action)
		return 1;
	doing->next = action->next;
	switch (action->kind) {
	case ACTION_MIRROR:
		send_copy(skb, s, action->arg);
		return 0;
	case ACTION_VLAN_PUSH:
	case ACTION_VLAN_POP:
	case ACTION_VLAN_MODIFY:
		change_tags(skb, s, action);
		return 0;
	case ACTION_EDIT:
	case ACTION_ADD:
		edit(skb, s, action);
		return 0;
	case ACTION_CSUM:
		compute_checksums(skb, s, action->arg);
		return 0;
	case ACTION_DEC_TTL:
		if (decrement_ttl(skb, s)) {
			s->fate = FATE_DROPPED;
			s->reason = DROP_TTL;
			return 1;
		}
		return 0;
	case ACTION_POLICE:
		if (doing->exceeded >> (doing->measured & 31) & 1)
			doing->next = action->alternative;
		doing->measured++;
		return doing->next == NEXT_DROP;
	case ACTION_SAMPLE:
		take_sample(skb, s, action);
		return 0;
	case ACTION_TUNNEL_SET:
		s->encap = action->arg + 1;
		return 0;
	case ACTION_TUNNEL_UNSET:
	case ACTION_CT_CLEAR:
		return 0;
	case ACTION_CT:
		return translate_frame(skb) != 0;
	case ACTION_REDIRECT:
		s->verdict = redirect(skb, s, action->arg);
		return 1;
	}
	/* Drop, trap and goto: the first pass knows what follows. */
	return 1;
}

static long do_next_action(__u32 i, struct doing *doing)
{
	if (doing->next == NEXT_TERMINAL)
		return 1;
	if (doing->next == NEXT_END) {
		doing->over = 1;
		return 1;
	}
	doing->over = do_action(doing->skb, doing->s, doing);
	return doing->over;
}

/* Counts for the rule of a step and does its actions. Returns whether the run is over. */
static __always_inline int do_step(struct __sk_buff *skb, struct scratch *s, __u32 i)
{
	struct doing doing = { .skb = skb, .s = s };
	struct step *step;

	if (i >= MAX_STEPS)
		return 1;
	step = &s->step[i];
	count(s, step->rule.index, step->bytes);
	if (step->rule.first != NEXT_TERMINAL) {
		doing.next = step->rule.first;
		doing.exceeded = step->exceeded;
		bpf_loop(MAX_ACTIONS + 1, do_next_action, &doing, 0);
		/* The next step follows a `goto` in the middle, too. */
		if (doing.over)
			return i + 1 >= s->steps;
	}
	if (step->rule.terminal == TERMINAL_REDIRECT)
		s->verdict = redirect(skb, s, step->rule.arg);
	return 0;
}

struct doing_steps {
	struct __sk_buff *skb;
	struct scratch *s;
};

static long do_later_step(__u32 i, struct doing_steps *doing)
{
	return do_step(doing->skb, doing->s, i + 1);
}

/* Leaves the frame that is inside, with the congestion bits of both. */
static __noinline int leave_tunnel(struct __sk_buff *skb, struct scratch *s)
{
	__u8 tos = s->inner_tos, differs = s->tos_differs;

	if (decapsulate(skb, s)) {
		s->fate = FATE_DROPPED;
		s->reason = DROP_ERROR;
		s->steps = 0;
		return 0;
	}
	if (!differs || !read_region(skb, s, s->network, 2))
		return 0;
	if (s->version == 4)
		s->new[1] = tos;
	else
		put16(s->new, (be16_at(s->old) & 0xf00f) | (__u16)tos << 4);
	return write_region(skb, s, s->network, 2, s->version == 4 ? COVERS_HEADER : 0);
}

/* Carries out what the first pass decided. Returns what the program returns. */
__noinline int execute(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct doing_steps doing = { .skb = skb, .s = s };
	struct control *control;

	if (!s)
		return VERDICT_DROP;
	if (s->fate == FATE_MISSED) {
		give_back(s);
		s->verdict = send_to_representor(skb, s);
		goto out;
	}
	if (s->fate == FATE_TRAPPED) {
		/* As it came in: before it is rewritten. */
		if ((s->rewritten || s->base) && !testing && s->representor)
			bpf_clone_redirect(skb, s->representor, 0);
		else
			s->verdict = send_to_representor(skb, s);
	}
	s->record_at = 0;
	/* The first pass has moved the headers of the key, not those of the frame. */
	if (s->base)
		leave_tunnel(skb, s);
	else if (s->rewritten)
		dissect(skb);
	if (s->steps && !do_step(skb, s, 0) && s->steps > 1)
		bpf_loop(s->steps - 1, do_later_step, &doing, 0);
	if (s->fate == FATE_DROPPED)
		note_drop(s->in_port, s->reason);
out:
	control = controls();
	if (testing && control) {
		control->fate = s->fate;
		control->reason = s->reason;
	}
	return s->verdict;
}

#endif
