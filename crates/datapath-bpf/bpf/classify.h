/* SPDX-License-Identifier: Dual MIT/GPL */
/* The first pass: which rules a frame matches. */
#ifndef ESWITCH_CLASSIFY_H
#define ESWITCH_CLASSIFY_H

#include "maps.h"
#include "dissect.h"
#include "meter.h"
#include "tunnel.h"
#include "track.h"

/* The rule of a group that the frame matches, into `found`. Returns whether there is one. */
static __noinline int ask_group(struct scratch *s, __u32 index)
{
	struct group *group = bpf_map_lookup_elem(&groups, &index);
	struct rule *rule;
	__u64 *key, *mask, *to;

	if (!group)
		return 0;
	if (!(group->flags & GROUP_ANY_PROTOCOL) && group->protocol != outermost_type(s))
		return 0;
	if (group->flags & (GROUP_SRC_RANGE | GROUP_DST_RANGE)) {
		/* A frame of ICMP has no ports, but something else in their place. */
		__u16 src = s->has_ports ? be16_at(s->key.ports) : 0;
		__u16 dst = s->has_ports ? be16_at(s->key.ports + 2) : 0;

		if (group->flags & GROUP_SRC_RANGE && (src < group->src_min || src > group->src_max))
			return 0;
		if (group->flags & GROUP_DST_RANGE && (dst < group->dst_min || dst > group->dst_max))
			return 0;
	}
	key = (__u64 *)&s->key;
	mask = (__u64 *)&group->mask;
	to = (__u64 *)&s->lookup.key;
	s->lookup.group = index;
	s->lookup.zero = 0;
#pragma unroll
	for (int i = 0; i < SHORT_KEY / 8; i++)
		to[i] = key[i] & mask[i];
	if (group->flags & GROUP_LONG) {
#pragma unroll
		for (int i = SHORT_KEY / 8; i < (int)sizeof(struct key) / 8; i++)
			to[i] = key[i] & mask[i];
		rule = bpf_map_lookup_elem(&long_rules, &s->lookup);
	} else {
		rule = bpf_map_lookup_elem(&rules, &s->lookup);
	}
	if (!rule)
		return 0;
	s->found = *rule;
	return 1;
}

struct ask {
	struct scratch *s;
	struct chain *chain;
	__u32 found;
};

static long ask_next_group(__u32 i, struct ask *ask)
{
	struct chain *chain = ask->chain;

	if (i >= MAX_GROUPS_OF_CHAIN)
		return 1;
	ask->found = ask_group(ask->s, chain->groups[i]);
	return ask->found;
}

static __always_inline __u32 hash_of_key(const struct scratch *s, __u32 chain)
{
	const __u64 *key = (const __u64 *)&s->key;
	__u64 hash = s->block ^ chain * 0x9e3779b97f4a7c15ULL;

#pragma unroll
	for (int i = 0; i < SHORT_KEY / 8; i++) {
		hash = (hash ^ key[i]) * 0xff51afd7ed558ccdULL;
		hash ^= hash >> 32;
	}
	if (s->base) {
#pragma unroll
		for (int i = SHORT_KEY / 8; i < CACHED_KEY / 8; i++) {
			hash = (hash ^ key[i]) * 0xff51afd7ed558ccdULL;
			hash ^= hash >> 32;
		}
	}
	return hash;
}

static __always_inline struct cached *slot_of_key(const struct scratch *s, __u32 chain)
{
	__u32 cpu = bpf_get_smp_processor_id(), slot;

	if (cpu >= cpus)
		return 0;
	slot = cpu * CACHE_SLOTS + (hash_of_key(s, chain) & (CACHE_SLOTS - 1));
	return bpf_map_lookup_elem(&cache, &slot);
}

static __always_inline int is_answer(const struct cached *cached, const struct scratch *s, __u32 chain)
{
	const __u64 *one = (const __u64 *)&s->key, *other = (const __u64 *)cached->key;
	__u64 differs = cached->generation ^ s->generation;

	differs |= cached->block ^ s->block;
	differs |= cached->chain ^ chain;
#pragma unroll
	for (int i = 0; i < SHORT_KEY / 8; i++)
		differs |= one[i] ^ other[i];
	if (s->base) {
#pragma unroll
		for (int i = SHORT_KEY / 8; i < CACHED_KEY / 8; i++)
			differs |= one[i] ^ other[i];
	}
	return !differs;
}

/* The first rule of a chain that the frame matches, into `found`. Returns whether there is one. */
static __noinline int find(struct scratch *s, __u32 number)
{
	struct chain_key chain_key = { .block = s->block, .chain = number };
	struct cached *cached = slot_of_key(s, number);
	struct ask ask = { .s = s };

	if (cached && is_answer(cached, s, number)) {
		s->found = cached->rule;
		return cached->found;
	}
	ask.chain = bpf_map_lookup_elem(&chains, &chain_key);
	if (!ask.chain)
		return 0;
	if (ask.chain->count == 1) {
		ask.found = ask_group(s, ask.chain->groups[0]);
	} else {
		bpf_loop(ask.chain->count, ask_next_group, &ask, 0);
	}
	if (cached && ask.chain->flags & CHAIN_CACHED) {
		cached->generation = s->generation;
		cached->block = s->block;
		cached->chain = number;
		cached->found = ask.found;
		copy(cached->key, &s->key, CACHED_KEY);
		cached->rule = s->found;
	}
	return ask.found;
}

static __always_inline void pretend_masked(__u8 *bytes, const struct action *action, int size, int from)
{
	for (int i = 0; i < size; i++)
		bytes[i] = (bytes[i] & ~action->mask[from + i]) | (action->value[from + i] & action->mask[from + i]);
}

static __always_inline void pretend_16(__u8 *bytes, const struct action *action)
{
	__u16 sum;

	if (action->kind == ACTION_EDIT) {
		pretend_masked(bytes, action, 2, 0);
		return;
	}
	sum = be16_at(bytes) + action->arg;
	bytes[0] = sum >> 8;
	bytes[1] = sum;
}

static __always_inline void pretend_32(__u8 *bytes, const struct action *action)
{
	__u32 sum;

	if (action->kind == ACTION_EDIT) {
		pretend_masked(bytes, action, 4, 0);
		return;
	}
	sum = ((__u32)be16_at(bytes) << 16 | be16_at(bytes + 2)) + action->arg;
	bytes[0] = sum >> 24;
	bytes[1] = sum >> 16;
	bytes[2] = sum >> 8;
	bytes[3] = sum;
}

/* A field of one byte that stands at `odd` in its region. */
static __always_inline __u8 pretend_8(__u8 byte, const struct action *action, int odd)
{
	if (action->kind == ACTION_ADD)
		return byte + action->arg;
	return (byte & ~action->mask[odd]) | (action->value[odd] & action->mask[odd]);
}

/* Applies a rewrite to the key. */
static __noinline int pretend_edit(struct scratch *s, const struct action *action)
{
	struct key *key = &s->key;
	__u32 at = transport(s);

	switch (action->header) {
	case HEADER_IP4:
		if (s->version != 4)
			return 0;
		break;
	case HEADER_IP6:
		if (s->version != 6)
			return 0;
		break;
	case HEADER_TCP:
		if (!at || s->protocol != IPPROTO_TCP)
			return 0;
		break;
	case HEADER_UDP:
		if (!at || s->protocol != IPPROTO_UDP)
			return 0;
		break;
	}
	switch (action->field) {
	case EDIT_ETH_DST:
		pretend_masked(key->eth_dst, action, 6, 0);
		break;
	case EDIT_ETH_SRC:
		pretend_masked(key->eth_src, action, 6, 0);
		break;
	case EDIT_IP4_SRC:
		pretend_32(key->addr, action);
		break;
	case EDIT_IP4_DST:
		pretend_32(key->addr + 4, action);
		break;
	case EDIT_IP4_TOS:
		key->ip_tos = pretend_8(key->ip_tos, action, 1);
		break;
	case EDIT_IP4_TTL:
		key->ip_ttl = pretend_8(key->ip_ttl, action, 0);
		break;
	case EDIT_IP6_SRC:
		pretend_masked(key->addr, action, 16, 0);
		break;
	case EDIT_IP6_DST:
		pretend_masked(key->addr + 16, action, 16, 0);
		break;
	case EDIT_IP6_TRAFFIC_CLASS:
		s->bytes[0] = s->ip6_word >> 8;
		s->bytes[1] = s->ip6_word;
		pretend_16(s->bytes, action);
		s->ip6_word = be16_at(s->bytes);
		key->ip_tos = s->ip6_word >> 4;
		break;
	case EDIT_IP6_HOP_LIMIT:
		key->ip_ttl = pretend_8(key->ip_ttl, action, 1);
		break;
	case EDIT_TCP_SRC:
	case EDIT_UDP_SRC:
		if (s->has_ports)
			pretend_16(key->ports, action);
		break;
	case EDIT_TCP_DST:
	case EDIT_UDP_DST:
		if (s->has_ports)
			pretend_16(key->ports + 2, action);
		break;
	case EDIT_TCP_FLAGS:
		if (s->has_tcp_flags) {
			__u8 *flags = (__u8 *)&key->tcp_flags;

			flags[1] = pretend_8(flags[1], action, 1);
		}
		break;
	}
	return 0;
}

/* Applies an action to the key, if it changes the key or decides what is next. */
static __noinline int pretend(struct scratch *s, const struct action *action, __u32 *next)
{
	if (action->kind >= ACTION_VLAN_PUSH && action->kind <= ACTION_DEC_TTL)
		s->rewritten = 1;
	switch (action->kind) {
	case ACTION_EDIT:
	case ACTION_ADD:
		pretend_edit(s, action);
		break;
	case ACTION_VLAN_PUSH:
		s->first_tag--;
		s->tags++;
		s->tag[s->first_tag & 127] = action->arg;
		s->length += 4;
		s->header_bytes += 4;
		describe_tags(s);
		if (s->tags > MAX_TAGS)
			forget_headers(s);
		break;
	case ACTION_VLAN_POP:
		if (s->tags) {
			s->first_tag++;
			s->tags--;
			s->length -= 4;
			s->header_bytes -= 4;
			describe_tags(s);
		}
		break;
	case ACTION_VLAN_MODIFY:
		if (s->tags) {
			__u32 keep = action->field ? 0x1000 : 0xf000;

			s->tag[s->first_tag & 127] = action->arg | (s->tag[s->first_tag & 127] & keep);
			describe_tags(s);
		}
		break;
	case ACTION_DEC_TTL:
		if (!s->network)
			break;
		if (s->key.ip_ttl <= 1)
			return end(s, FATE_DROPPED, DROP_TTL);
		s->key.ip_ttl--;
		break;
	case ACTION_POLICE:
		if (!measure(s, action->arg)) {
			*next = action->alternative;
			if (s->steps && s->steps <= MAX_STEPS)
				s->step[s->steps - 1].exceeded |= 1u << (s->measured & 31);
		}
		s->measured++;
		if (*next == NEXT_DROP)
			return end(s, FATE_DROPPED, DROP_METER);
		break;
	case ACTION_DROP:
		return end(s, FATE_DROPPED, DROP_RULE);
	case ACTION_TRAP:
		return end(s, FATE_TRAPPED, 0);
	case ACTION_REDIRECT:
		return end(s, s->lost ? FATE_MISSED : FATE_FORWARDED, 0);
	case ACTION_TUNNEL_SET:
		pretend_encapsulation(s, action->arg);
		break;
	case ACTION_TUNNEL_UNSET:
		forget_tunnel(s);
		break;
	case ACTION_CT_CLEAR:
		forget_connection(s);
		break;
	}
	return 0;
}

struct walk {
	struct scratch *s;
	__u32 next;
	__u32 arg;
	__u32 over;		/* 1: the run has ended; or one of these */
};

#define OVER_GOTO 2		/* it goes on in chain `arg` */
#define OVER_TRACK 3		/* the connection must be tracked first, as `arg` says */

static long walk_action(__u32 i, struct walk *walk)
{
	struct action *action;
	__u32 next;

	if (walk->next == NEXT_TERMINAL)
		return 1;
	if (walk->next == NEXT_END) {
		walk->over = end(walk->s, FATE_FORWARDED, 0);
		return 1;
	}
	action = bpf_map_lookup_elem(&actions, &walk->next);
	if (!action)
		return 1;
	next = action->next;
	if (action->kind == ACTION_GOTO || action->kind == ACTION_CT) {
		walk->arg = action->arg;
		walk->next = next;
		walk->over = action->kind == ACTION_GOTO ? OVER_GOTO : OVER_TRACK;
		return 1;
	}
	walk->over = pretend(walk->s, action, &next);
	walk->next = next;
	return walk->over;
}

struct run {
	struct scratch *s;
	struct __sk_buff *skb;
	__u32 chain;
	__u32 next;		/* the action of the rule that was found with which it goes on */
	__u32 track;		/* how the connection must be tracked before: a number and 1, or 0 */
};

/* What the rule that was found decides. Returns whether the run goes on. */
static __noinline int follow(struct scratch *s, struct run *run)
{
	struct walk walk = { .s = s, .next = run->next };

	if (s->found.flags & RULE_WALK) {
		bpf_loop(MAX_ACTIONS + 1, walk_action, &walk, 0);
		if (walk.over == OVER_GOTO) {
			run->chain = walk.arg;
			return 1;
		}
		if (walk.over == OVER_TRACK) {
			run->track = walk.arg + 1;
			run->next = walk.next;
			return 1;
		}
		if (walk.over)
			return 0;
	}
	switch (s->found.terminal) {
	case TERMINAL_GOTO:
		run->chain = s->found.arg;
		return 1;
	case TERMINAL_DROP:
		end(s, FATE_DROPPED, DROP_RULE);
		return 0;
	case TERMINAL_TRAP:
		end(s, FATE_TRAPPED, 0);
		return 0;
	}
	end(s, s->lost && s->found.terminal == TERMINAL_REDIRECT ? FATE_MISSED : FATE_FORWARDED, 0);
	return 0;
}

/* The next step of the run. Returns whether it was the last one. */
static __noinline int one_step(struct scratch *s, struct run *run)
{
	__u32 i = s->steps;
	struct step *step;

	if (i >= MAX_STEPS)
		return 1;
	if (!find(s, run->chain)) {
		end(s, FATE_MISSED, 0);
		return 1;
	}
	step = &s->step[i];
	step->rule = s->found;
	step->bytes = bytes_of(s);
	step->exceeded = 0;
	s->steps = i + 1;
	s->measured = 0;
	run->next = s->found.first;
	return !follow(s, run);
}

/* This is where connections are tracked: from further inside, the calls would be too deep for the verifier. */
static long later_step(__u32 i, struct run *run)
{
	__u32 track_as = run->track;

	if (!track_as)
		return one_step(run->s, run);
	run->track = 0;
	if (track(run->skb, track_as - 1))
		return 1;
	return !follow(run->s, run);
}

/* Runs the frame through its block. */
static __always_inline int run_block(struct __sk_buff *skb, struct scratch *s)
{
	struct run run = { .s = s, .skb = skb };

	s->steps = 0;
	s->taken = 0;
	s->rewritten = 0;
	s->lost = 0;
	s->fate = FATE_DROPPED;
	s->reason = DROP_GOTOS;
	s->held_count = 0;
	s->holds = 0;
	s->records = 0;
	s->icmp_id = 0;
	__builtin_memset(s->key.ct_label, 0, 16);
	if (!one_step(s, &run))
		bpf_loop(MAX_STEPS + MAX_RECORDS, later_step, &run, 0);
	return s->fate == FATE_MISSED && !s->steps;
}

/* Finds the rules that the frame matches, and what becomes of it. */
__noinline int classify(struct __sk_buff *skb)
{
	struct scratch *s = scratch();

	if (!s || !run_block(skb, s) || !s->wire)
		return 0;
	/* The filters of the uplink come before the stack, and so before tunnel devices, which are asked in this order. */
	for (int kind = BLOCK_VXLAN; kind <= BLOCK_GRE; kind++) {
		if (s->base) {
			s->base = 0;
			dissect(skb);
		}
		if (!enter_tunnel(skb, s, kind))
			continue;
		note_segments(skb, s);
		if (!run_block(skb, s))
			return 0;
	}
	s->base = 0;
	return 0;
}

#endif
