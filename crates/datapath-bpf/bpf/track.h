/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Connection tracking: what flow::conntrack does, in two steps.
 *
 * While it is not known what becomes of the frame, nothing in the table changes. Each connection that the frame touches is
 * copied into the scratch of this CPU (struct held), and changes there; whoever looks for a connection looks there first.
 * When the frame is known not to miss, settle() writes what has changed.
 *
 * Several CPUs: a connection has one entry for each direction, under its tuple. One is made by BPF_NOEXIST, first that of
 * the original direction, which has everything, and then that of the reply; so of two frames that begin the same connection
 * one wins, and the other one is decided about once more and finds it. What decides about frames is one word, which changes by compare-and-exchange: who has read an older one decides once more, too. Who removes a
 * connection marks this word first, so that only one CPU does it. The time-out, mark and label are plain stores, as in the
 * kernel.
 *
 * A connection that is over is as good as not there. It is removed by the next frame that finds it, by the next one that
 * finds the table full, and by the program eswitch_sweep.
 */
#ifndef ESWITCH_TRACK_H
#define ESWITCH_TRACK_H

#include "maps.h"
#include "dissect.h"

#define SECOND 1000000000ULL
#define MAX_ATTEMPTS 8

/* How much longer than before a connection must live for that to be written; a test wants every bit of it. */
#define COARSE (SECOND / 8)
/* How often a full table is searched for connections that are over. */
#define SWEEP_EVERY (SECOND / 10)

#define CT_NEW 1
#define CT_ESTABLISHED 2
#define CT_RELATED 4
#define CT_TRACKED 8
#define CT_INVALID 16
#define CT_REPLY 32

enum phase {
	PHASE_NONE, PHASE_SYN_SENT, PHASE_SYN_RECV, PHASE_ESTABLISHED, PHASE_FIN_WAIT, PHASE_CLOSE_WAIT, PHASE_LAST_ACK,
	PHASE_TIME_WAIT, PHASE_CLOSE, PHASE_SYN_SENT2, PHASES,
	PHASE_IGNORE = 14, PHASE_INVALID,
};

enum segment_kind { KIND_NONE, KIND_SYN, KIND_SYN_ACK, KIND_FIN, KIND_ACK, KIND_RST, KINDS };

enum update { UPDATE_ACCEPTED, UPDATE_INVALID, UPDATE_KILLED, UPDATE_REOPENED };

/* The transitions of flow::conntrack::tcp: by direction and kind, for each phase. */
#define S PHASE_SYN_SENT
#define R PHASE_SYN_RECV
#define E PHASE_ESTABLISHED
#define F PHASE_FIN_WAIT
#define C PHASE_CLOSE_WAIT
#define L PHASE_LAST_ACK
#define T PHASE_TIME_WAIT
#define X PHASE_CLOSE
#define S2 PHASE_SYN_SENT2
#define o PHASE_IGNORE
#define _ PHASE_INVALID
static const __u8 transitions[2][KINDS][16] = {
	{
		{ _, _, _, _, _, _, _, _, _, _ },
		{ S, S, o, o, o, o, o, S, S, S2 },
		{ _, _, R, _, _, _, _, _, _, R },
		{ _, _, F, F, L, L, L, T, X, _ },
		{ E, _, E, E, C, C, T, T, X, _ },
		{ _, X, X, X, X, X, X, X, X, X },
	}, {
		{ _, _, _, _, _, _, _, _, _, _ },
		{ _, S2, _, _, _, _, _, S, _, S2 },
		{ _, R, o, o, o, o, o, o, o, R },
		{ _, _, F, F, L, L, L, T, X, _ },
		{ _, o, R, E, C, C, T, T, X, o },
		{ _, X, X, X, X, X, X, X, X, X },
	},
};
#undef S
#undef R
#undef E
#undef F
#undef C
#undef L
#undef T
#undef X
#undef S2
#undef o
#undef _

/* In seconds, by phase. */
static const __u32 tcp_timeouts[16] = { 10, 120, 60, 432000, 120, 60, 30, 120, 10, 120 };
#define TIMEOUT_PICKED_UP 300
#define TIMEOUT_UDP 30
#define TIMEOUT_UDP_STREAM 120
#define UDP_STREAM_AFTER 2
#define TIMEOUT_ICMP 30
#define TIMEOUT_GENERIC 600

/* Ends the run. */
static __always_inline int end(struct scratch *s, __u32 fate, __u32 reason)
{
	s->fate = fate;
	s->reason = reason;
	return 1;
}

/* Forgets that the frame has been tracked. */
static __always_inline void forget_connection(struct scratch *s)
{
	s->holds = 0;
	s->key.ct_state = 0;
	s->key.ct_zone = 0;
	s->key.ct_mark = 0;
	__builtin_memset(s->key.ct_label, 0, 16);
}

static __always_inline int same_tuple(const struct tuple *one, const struct tuple *other)
{
	const __u64 *a = (const __u64 *)one, *b = (const __u64 *)other;

	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]));
}

static __always_inline int is_icmp(const struct tuple *tuple)
{
	return tuple->protocol == IPPROTO_ICMP || tuple->protocol == IPPROTO_ICMPV6;
}

/* Of the addresses. */
static __always_inline __u32 version_of(const struct tuple *tuple)
{
	return tuple->version & 15;
}

/* The type of the answer to one of ICMP, or of the question to an answer. */
static __always_inline __u8 opposite_type(__u8 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMP) {
		switch (type) {
		case 8: return 0;
		case 0: return 8;
		case 13: case 15: case 17: return type + 1;
		case 14: case 16: case 18: return type - 1;
		}
	} else {
		switch (type) {
		case 128: case 139: return type + 1;
		case 129: case 140: return type - 1;
		}
	}
	return type;
}

/* The tuple of an answer. */
static __always_inline void invert(struct tuple *to, const struct tuple *from)
{
	copy(to->src, from->dst, 16);
	copy(to->dst, from->src, 16);
	if (is_icmp(from)) {
		to->src_part = from->src_part;
		to->dst_part = (__u16)opposite_type(from->protocol, from->dst_part >> 8) << 8 | (from->dst_part & 0xff);
	} else {
		to->src_part = from->dst_part;
		to->dst_part = from->src_part;
	}
	to->zone = from->zone;
	to->protocol = from->protocol;
	to->version = from->version;
}

/* Whether a connection can begin with such a frame: of ICMP only questions. */
static __always_inline int may_begin(const struct tuple *tuple)
{
	__u8 type = tuple->dst_part >> 8;

	if (tuple->protocol == IPPROTO_ICMP)
		return type == 8 || type == 13 || type == 15 || type == 17;
	if (tuple->protocol == IPPROTO_ICMPV6)
		return type == 128 || type == 139;
	return 1;
}

/* The connection at a place and 1, or nothing. The register that is compared is the one that is used, so that the verifier knows it. */
static __always_inline struct held *held_at(struct scratch *s, __u32 number)
{
	__u32 place = number - 1;

	asm volatile("" : "+r"(place));
	if (place >= MAX_HELD)
		return 0;
	asm volatile("" : "+r"(place));
	return &s->held[place];
}

/*
 * Removes the connection of the tuples `gone` and `gone_reply`, whose state was the one given. Returns whether it has another
 * one by now.
 */
static __noinline int remove_connection(struct scratch *s, struct connection *connection, __u64 state)
{
	struct connection_table *table = table_of_connections();

	if (!table || state & STATE_DEAD)
		return 1;
	if (__sync_val_compare_and_swap(&connection->state, state, state | STATE_DEAD) != state)
		return 1;
	if (!same_tuple(&s->gone, &s->gone_reply))
		bpf_map_delete_elem(&connections, &s->gone_reply);
	bpf_map_delete_elem(&connections, &s->gone);
	__sync_fetch_and_add(&table->count, -1);
	return 0;
}

struct sweep {
	struct scratch *s;
	__u64 now;
	__u32 all;
	__u32 removed;
};

static long sweep_one(void *map, const struct tuple *key, struct connection *connection, struct sweep *sweep)
{
	struct scratch *s = sweep->s;

	if (connection->flags & CONNECTION_REPLY || (!sweep->all && connection->expires > sweep->now))
		return 0;
	copy(&s->gone, key, sizeof(struct tuple));
	copy(&s->gone_reply, &connection->other, sizeof(struct tuple));
	if (!remove_connection(s, connection, connection->state))
		sweep->removed++;
	return 0;
}

/* Removes connections that are over, or all. Returns how many. */
static __noinline int sweep(__u64 now, __u32 all)
{
	struct sweep sweep = { .s = scratch(), .now = now, .all = all };

	if (!sweep.s)
		return 0;
	bpf_for_each_map_elem(&connections, sweep_one, &sweep, 0);
	return sweep.removed;
}

/* Fills in what is known of a connection in the table. */
static __always_inline void hold(struct held *held, const struct connection *connection, const struct tuple *original)
{
	copy(&held->original, original, sizeof(struct tuple));
	copy(&held->reply, &connection->other, sizeof(struct tuple));
	held->before = connection->state;
	held->state = held->before;
	held->expired = connection->expires;
	held->expires = held->expired;
	held->stream_from = connection->stream_from;
	held->id = connection->id;
	copy(held->label, connection->label, 16);
	held->mark = connection->mark;
	held->kind = HELD_PRESENT;
	held->in_table = 1;
	held->changed = 0;
	held->translated = !!(connection->flags & CONNECTION_TRANSLATED);
}

#define FOUND_IN_TABLE (MAX_HELD + 1)

/*
 * The connection of the tuple `probe`: its place in `held` and 1, or 0. The direction is put into `found_direction`. With
 * `peek`, one of the table is not copied: then the answer is FOUND_IN_TABLE. Without room for it the answer is negative.
 */
__noinline int lookup_connection(__u32 peek)
{
	struct scratch *s = scratch();
	struct connection *connection;
	const struct tuple *original;
	struct held *held;
	__u32 count;
	__u64 id, state;

	if (!s)
		return -1;
	count = s->held_count;
	for (__u32 i = 0; i < MAX_HELD; i++) {
		held = &s->held[i];
		if (i >= count)
			break;
		if (held->kind != HELD_PRESENT)
			continue;
		if (same_tuple(&held->reply, &s->probe)) {
			s->found_direction = 1;
			return i + 1;
		}
		if (same_tuple(&held->original, &s->probe)) {
			s->found_direction = 0;
			return i + 1;
		}
	}
	original = &s->probe;
	connection = bpf_map_lookup_elem(&connections, original);
	if (!connection)
		return 0;
	s->found_direction = !!(connection->flags & CONNECTION_SELF);
	if (connection->flags & CONNECTION_REPLY) {
		id = connection->id;
		copy(&s->gone, &connection->other, sizeof(struct tuple));
		original = &s->gone;
		connection = bpf_map_lookup_elem(&connections, original);
		/* One that is being made or removed. */
		if (!connection || connection->id != id)
			return 0;
		s->found_direction = 1;
	}
	state = connection->state;
	if (state & STATE_DEAD)
		return 0;
	id = connection->id;
	for (__u32 i = 0; i < MAX_HELD; i++) {
		if (i >= count)
			break;
		/* This run has removed it. */
		if (s->held[i].in_table && s->held[i].id == id)
			return 0;
	}
	if (connection->expires <= s->now) {
		if (original == &s->probe)
			copy(&s->gone, &s->probe, sizeof(struct tuple));
		copy(&s->gone_reply, &connection->other, sizeof(struct tuple));
		remove_connection(s, connection, state);
		return 0;
	}
	if (peek)
		return FOUND_IN_TABLE;
	held = held_at(s, count + 1);
	if (!held)
		return -1;
	hold(held, connection, original);
	s->held_count = count + 1;
	return count + 1;
}

/* Reads the parts of a tuple out of the frame, where the header at `at` is. Returns whether it can be read. */
static __noinline int read_parts(struct __sk_buff *skb, struct scratch *s, struct tuple *tuple, __u32 at)
{
	__u8 *bytes = s->bytes;
	__u8 protocol = tuple->protocol;

	tuple->src_part = 0;
	tuple->dst_part = 0;
	if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP) {
		if (at + 4 > s->end || load(skb, s, at, bytes, 4))
			return 0;
		tuple->src_part = be16_at(bytes);
		tuple->dst_part = be16_at(bytes + 2);
		return 1;
	}
	if (protocol != IPPROTO_ICMP && protocol != IPPROTO_ICMPV6)
		return 1;
	if (version_of(tuple) != (protocol == IPPROTO_ICMP ? 4 : 6))
		return 0;
	if (at + 8 > s->end || load(skb, s, at, bytes, 8))
		return 0;
	tuple->src_part = be16_at(bytes + 4);
	tuple->dst_part = be16_at(bytes);
	return 1;
}

/* The tuple of the frame, as it would be now, into `tuple`. Returns whether it can be read. */
static __noinline int read_tuple(struct __sk_buff *skb, struct scratch *s, __u32 zone)
{
	struct tuple *tuple = &s->tuple;

	__builtin_memset(tuple, 0, sizeof(struct tuple));
	tuple->zone = zone;
	tuple->protocol = s->protocol;
	tuple->version = s->version | s->eswitch << 4;
	if (s->version == 4) {
		copy(tuple->src, s->key.addr, 4);
		copy(tuple->dst, s->key.addr + 4, 4);
	} else {
		copy(tuple->src, s->key.addr, 16);
		copy(tuple->dst, s->key.addr + 16, 16);
	}
	/* Of TCP, UDP and SCTP the key has the ports. */
	if (s->protocol == IPPROTO_TCP || s->protocol == IPPROTO_UDP || s->protocol == IPPROTO_SCTP) {
		if (s->payload + 4 > s->end || !s->has_ports)
			return 0;
		tuple->src_part = be16_at(s->key.ports);
		tuple->dst_part = be16_at(s->key.ports + 2);
		return 1;
	}
	if (!read_parts(skb, s, tuple, s->payload))
		return 0;
	if (s->icmp_id)
		tuple->src_part = s->icmp_id;
	return 1;
}

/*
 * The tuple of an answer to the packet about which an ICMP error is, into `probe`. Returns whether the frame is an error about a
 * packet that can be read.
 */
static __noinline int read_error(struct __sk_buff *skb, struct scratch *s)
{
	__u32 at = s->payload + 8, header = 40;
	struct tuple *inside = &s->candidate;
	__u8 *ip = s->bytes, type = s->key.ports[0];

	__builtin_memset(inside, 0, sizeof(struct tuple));
	inside->zone = s->tuple.zone;
	if (s->protocol == IPPROTO_ICMP) {
		if (type != 3 && type != 4 && type != 5 && type != 11 && type != 12)
			return 0;
		if (at + 20 > s->end || load(skb, s, at, ip, 20))
			return 0;
		header = (ip[0] & 15) * 4;
		if (ip[0] >> 4 != 4 || header < 20 || be16_at(ip + 6) & 0x1fff)
			return 0;
		inside->version = 4 | s->eswitch << 4;
		inside->protocol = ip[9];
		copy(inside->src, ip + 12, 4);
		copy(inside->dst, ip + 16, 4);
	} else if (s->protocol == IPPROTO_ICMPV6) {
		if (type >= 128 || at + 40 > s->end || load(skb, s, at, ip, 40) || ip[0] >> 4 != 6)
			return 0;
		inside->version = 6 | s->eswitch << 4;
		inside->protocol = ip[6];
		copy(inside->src, ip + 8, 16);
		copy(inside->dst, ip + 24, 16);
	} else {
		return 0;
	}
	if (!read_parts(skb, s, inside, at + header))
		return 0;
	invert(&s->probe, inside);
	return 1;
}

/* Which kind of segment the frame is, unless it is truncated or its flags make no sense. */
static __noinline int read_segment(struct __sk_buff *skb, struct scratch *s)
{
	__u32 length = s->end - s->payload, data, ends = 0;
	__u8 *tcp = s->bytes;

	s->segment_kind = KIND_NONE;
	if (s->protocol != IPPROTO_TCP || s->payload + 20 > s->end || load(skb, s, s->payload, tcp, 20))
		return 0;
	data = (tcp[12] >> 4) * 4;
	if (data < 20 || length < data)
		return 0;
	/* The flags may have been rewritten. */
	switch (bpf_ntohs(s->key.tcp_flags) & 0x37) {
	case 0x02: case 0x22:
		s->segment_kind = KIND_SYN;
		ends = 1;
		break;
	case 0x12:
		s->segment_kind = KIND_SYN_ACK;
		ends = 1;
		break;
	case 0x04: case 0x14:
		s->segment_kind = KIND_RST;
		break;
	case 0x11: case 0x31:
		s->segment_kind = KIND_FIN;
		ends = 1;
		break;
	case 0x10: case 0x30:
		s->segment_kind = KIND_ACK;
		break;
	}
	s->segment_ack = (__u32)be16_at(tcp + 8) << 16 | be16_at(tcp + 10);
	s->segment_end = ((__u32)be16_at(tcp + 4) << 16 | be16_at(tcp + 6)) + length - data + ends;
	return 0;
}

/* Takes note of a segment. */
static __noinline int update_tcp(struct scratch *s, struct held *held, __u32 direction)
{
	__u32 kind = s->segment_kind, state = held->state, old = state & 15, new, last, seen = state & STATE_SEEN_REPLY;
	__u32 timeout;

	direction &= 1;
	if (!kind || kind >= KINDS)
		return UPDATE_INVALID;
	last = (state >> 4) & 15;
	new = transitions[direction][kind][old];
	if (new == PHASE_INVALID)
		return UPDATE_INVALID;
	if (new == PHASE_SYN_SENT && old >= PHASE_TIME_WAIT) {
		if (state & STATE_CLOSING || last == (KIND_RST | direction << 3))
			return UPDATE_REOPENED;
		new = PHASE_IGNORE;
	} else if (new == PHASE_IGNORE) {
		/* An answer to a SYN that was ignored: both sides know better than the card. */
		if (kind == KIND_SYN_ACK && last == (KIND_SYN | (direction ^ 1) << 3) &&
		    s->segment_ack == held->state >> 32) {
			old = PHASE_SYN_SENT;
			new = PHASE_SYN_RECV;
			state &= ~(__u32)(STATE_CLOSING | STATE_CHALLENGE);
		}
	} else if (new == PHASE_SYN_RECV && state & STATE_SIMULTANEOUS && direction && kind == KIND_ACK) {
		new = PHASE_ESTABLISHED;
	} else if (new == PHASE_TIME_WAIT && old == PHASE_LAST_ACK && kind == KIND_ACK && state & STATE_CHALLENGE &&
		   last == (KIND_SYN | (direction ^ 1) << 3)) {
		/* It answers a SYN that was ignored, and not the FIN. */
		held->state &= ~(__u64)STATE_CHALLENGE;
		return UPDATE_ACCEPTED;
	}
	state = (state & ~0xf0U) | (kind | direction << 3) << 4;
	if (new == PHASE_IGNORE) {
		if (kind == KIND_SYN && !direction) {
			state &= ~(__u32)(STATE_SIMULTANEOUS | STATE_CHALLENGE);
			if (old == PHASE_LAST_ACK)
				state |= STATE_CHALLENGE;
		}
		held->state = (__u64)s->segment_end << 32 | state;
		return UPDATE_ACCEPTED;
	}
	if (new == PHASE_SYN_SENT2)
		state |= STATE_SIMULTANEOUS;
	if (old != new && new == PHASE_FIN_WAIT)
		state |= STATE_CLOSING;
	state = (state & ~15U) | new;
	if (seen && (old == PHASE_SYN_RECV || old == PHASE_ESTABLISHED) && new == PHASE_ESTABLISHED)
		state |= STATE_ASSURED;
	held->state = (held->state >> 32 << 32) | state;
	if (!seen && kind == KIND_RST)
		return UPDATE_KILLED;
	/* A SYN that is sent again changes no time-out. */
	if (!seen && kind == KIND_SYN && old == PHASE_SYN_SENT)
		return UPDATE_ACCEPTED;
	timeout = new == PHASE_ESTABLISHED && !seen ? TIMEOUT_PICKED_UP : tcp_timeouts[new & 15];
	held->expires = s->now + timeout * SECOND;
	return UPDATE_ACCEPTED;
}

/* Takes note of a frame of a connection. */
static __noinline int update(struct scratch *s, struct held *held, __u32 direction)
{
	__u32 timeout = TIMEOUT_GENERIC;

	switch (held->original.protocol) {
	case IPPROTO_TCP:
		return update_tcp(s, held, direction);
	case IPPROTO_UDP:
		timeout = TIMEOUT_UDP;
		if (held->state & STATE_SEEN_REPLY && s->now > held->stream_from) {
			held->state |= STATE_ASSURED;
			timeout = TIMEOUT_UDP_STREAM;
		}
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		timeout = TIMEOUT_ICMP;
		break;
	}
	held->expires = s->now + timeout * SECOND;
	return UPDATE_ACCEPTED;
}

/* Takes note of a frame of the connection at a place. Returns whether it begins another one. */
static __noinline int track_known(struct scratch *s, __u32 place, __u32 direction)
{
	struct held *held;
	__u64 state, expires;
	__u8 flags = CT_TRACKED | CT_NEW;
	int outcome;

	held = held_at(s, place + 1);
	if (!held)
		return 0;
	if (direction)
		flags = CT_TRACKED | CT_ESTABLISHED | CT_REPLY;
	else if (held->state & STATE_SEEN_REPLY)
		flags = CT_TRACKED | CT_ESTABLISHED;
	state = held->state;
	expires = held->expires;
	outcome = update(s, held, direction);
	if (outcome == UPDATE_INVALID) {
		held->state = state;
		held->expires = expires;
		return 0;
	}
	if (direction)
		held->state |= STATE_SEEN_REPLY;
	if (outcome != UPDATE_ACCEPTED)
		held->kind = HELD_ENDED;
	if (outcome == UPDATE_REOPENED)
		return 1;
	s->key.ct_state = flags;
	s->holds = place + 1;
	s->direction = direction;
	return 0;
}

/* Begins a connection with the frame. Returns whether there is no room for it. */
static __noinline int begin_connection(struct scratch *s)
{
	__u32 place = s->held_count;
	struct held *held;
	int outcome;

	held = held_at(s, place + 1);
	if (!held)
		return 1;
	copy(&held->original, &s->tuple, sizeof(struct tuple));
	invert(&held->reply, &s->tuple);
	held->before = 0;
	held->state = 0;
	held->expired = 0;
	held->expires = s->now;
	held->stream_from = s->now + UDP_STREAM_AFTER * SECOND;
	held->id = 0;
	__builtin_memset(held->label, 0, 16);
	held->mark = 0;
	held->kind = HELD_NEW;
	held->in_table = 0;
	held->changed = 0;
	held->translated = 0;
	outcome = update(s, held, 0);
	if (outcome == UPDATE_INVALID || outcome == UPDATE_REOPENED)
		return 0;
	if (outcome == UPDATE_KILLED)
		held->kind = HELD_ENDED;
	s->held_count = place + 1;
	s->holds = place + 1;
	s->key.ct_state = CT_TRACKED | CT_NEW;
	return 0;
}

/* Finds the connection of a frame, or begins one. Returns whether the run touches too many. */
static __noinline int find_or_begin(struct __sk_buff *skb, struct scratch *s, __u32 zone)
{
	struct held *last = held_at(s, s->held_count);
	int found;

	/* One that was not committed, and not translated either, is not needed any more. */
	if (last && s->holds == s->held_count && last->kind == HELD_NEW && !last->translated)
		s->held_count--;
	s->holds = 0;
	s->direction = 0;
	s->key.ct_state = CT_TRACKED | CT_INVALID;
	if (!read_tuple(skb, s, zone))
		return 0;
	if (is_icmp(&s->tuple) && read_error(skb, s)) {
		found = lookup_connection(0);
		if (found <= 0)
			return found < 0;
		s->holds = found;
		s->direction = s->found_direction;
		s->key.ct_state = CT_TRACKED | CT_RELATED | (s->direction ? CT_REPLY : 0);
		return 0;
	}
	if (s->protocol == IPPROTO_TCP)
		read_segment(skb, s);
	copy(&s->probe, &s->tuple, sizeof(struct tuple));
	found = lookup_connection(0);
	if (found < 0)
		return 1;
	if (found && !track_known(s, found - 1, s->found_direction))
		return 0;
	return may_begin(&s->tuple) ? begin_connection(s) : 0;
}

/* A number that follows from the addresses and ports (FNV-1a). */
static __always_inline __u32 hash_byte(__u32 hash, __u8 byte)
{
	return (hash ^ byte) * 16777619U;
}

static __noinline __u32 hash_address(__u32 hash, const __u8 *address, __u32 version)
{
	if (version == 4) {
		for (int i = 0; i < 10; i++)
			hash = hash_byte(hash, 0);
		hash = hash_byte(hash_byte(hash, 0xff), 0xff);
		for (int i = 0; i < 4; i++)
			hash = hash_byte(hash, address[i]);
		return hash;
	}
	for (int i = 0; i < 16; i++)
		hash = hash_byte(hash, address[i]);
	return hash;
}

static __noinline __u32 hash_tuple(const struct tuple *tuple)
{
	__u32 hash = 0x811c9dc5;

	hash = hash_address(hash, tuple->src, version_of(tuple));
	hash = hash_address(hash, tuple->dst, version_of(tuple));
	hash = hash_byte(hash, tuple->protocol);
	hash = hash_byte(hash_byte(hash, tuple->src_part >> 8), tuple->src_part);
	return hash_byte(hash_byte(hash, tuple->dst_part >> 8), tuple->dst_part);
}

/* The same address of a range for the same connection. */
static __noinline int pick_address(__u8 *address, const struct ct *ct, __u32 version, __u32 seed)
{
	__u64 carry = ct->count ? seed % ct->count : seed;
	int last = version == 4 ? 3 : 15;

	if (version != ct->version)
		return 0;
	for (int i = 15; i >= 0; i--) {
		if (i > last)
			continue;
		carry += ct->first[i];
		address[i] = carry;
		carry >>= 8;
	}
	return 0;
}

struct tries {
	struct scratch *s;
	__u32 in_source;
	__u32 own;		/* whether the own part is tried first */
	__u32 found;
};

/* Tries the next port. */
static long try_part(__u32 i, struct tries *tries)
{
	struct scratch *s = tries->s;
	struct tuple *tuple = &s->candidate;
	__u32 parts = s->parts;
	__u16 part = s->part;

	if (i || !tries->own) {
		__u32 step = s->seed + i - tries->own;

		if (!parts)
			return 1;
		part = s->first_part + step % parts;
	}
	if (tries->in_source)
		tuple->src_part = part;
	else
		tuple->dst_part = part;
	invert(&s->probe, tuple);
	tries->found = !lookup_connection(1);
	return tries->found;
}

#define MAX_PORT_ATTEMPTS 128

/* Chooses addresses for a new connection. Returns whether none is free. */
static __noinline int choose(struct scratch *s, struct held *held, const struct ct *ct)
{
	struct tuple *tuple = &s->candidate;
	struct tries tries = { .s = s, .own = 1 };
	__u32 source = ct->nat == NAT_SRC, first = 0, last = 0, attempts = 0;
	__u8 protocol = held->original.protocol;

	if (ct->nat != NAT_SRC && ct->nat != NAT_DST)
		return 0;
	copy(tuple, &held->original, sizeof(struct tuple));
	s->seed = hash_tuple(tuple);
	if (source)
		pick_address(tuple->src, ct, version_of(tuple), s->seed);
	else
		pick_address(tuple->dst, ct, version_of(tuple), s->seed);
	/* The identifier of ICMP is the part of its source in both directions. */
	tries.in_source = source || is_icmp(tuple);
	s->part = tries.in_source ? tuple->src_part : tuple->dst_part;
	s->parts = 0;
	if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || is_icmp(tuple)) {
		if (ct->has_ports) {
			first = ct->first_port;
			last = ct->last_port;
			tries.own = s->part >= first && s->part <= last;
		} else if (source) {
			if (is_icmp(tuple))
				last = 0xffff;
			else if (s->part < 512)
				first = 1, last = 511;
			else if (s->part < 1024)
				first = 600, last = 1023;
			else
				first = 1024, last = 0xffff;
		}
		if (ct->has_ports || source) {
			s->first_part = first;
			s->parts = last - first + 1;
			attempts = s->parts < MAX_PORT_ATTEMPTS ? s->parts : MAX_PORT_ATTEMPTS;
		}
	}
	bpf_loop(attempts + tries.own, try_part, &tries, 0);
	if (!tries.found)
		return 1;
	copy(&held->reply, &s->probe, sizeof(struct tuple));
	invert(&s->probe, &held->original);
	held->translated = !same_tuple(&held->reply, &s->probe);
	return 0;
}

/* Applies a translation to the key. */
static __noinline int pretend_translation(struct scratch *s, struct held *held)
{
	struct tuple *own = s->direction ? &held->reply : &held->original, *wanted = &s->candidate;

	invert(wanted, s->direction ? &held->original : &held->reply);
	s->rewritten = 1;
	if (s->version == 4) {
		if (*(__u32 *)own->src != *(__u32 *)wanted->src)
			copy(s->key.addr, wanted->src, 4);
		if (*(__u32 *)own->dst != *(__u32 *)wanted->dst)
			copy(s->key.addr + 4, wanted->dst, 4);
	} else {
		__u64 *from = (__u64 *)own->src, *to = (__u64 *)wanted->src;

		if (from[0] != to[0] || from[1] != to[1])
			copy(s->key.addr, wanted->src, 16);
		if (from[2] != to[2] || from[3] != to[3])
			copy(s->key.addr + 16, wanted->dst, 16);
	}
	if (is_icmp(own)) {
		if (own->src_part != wanted->src_part)
			s->icmp_id = 1 << 16 | wanted->src_part;
		return 0;
	}
	if (own->src_part != wanted->src_part) {
		s->key.ports[0] = wanted->src_part >> 8;
		s->key.ports[1] = wanted->src_part;
	}
	if (own->dst_part != wanted->dst_part) {
		s->key.ports[2] = wanted->dst_part >> 8;
		s->key.ports[3] = wanted->dst_part;
	}
	return 0;
}

/* Translates the frame, after choosing addresses if the connection is new. Returns whether the run has ended. */
static __always_inline int translate(struct scratch *s, const struct ct *ct, __u32 *record)
{
	struct held *held = held_at(s, s->holds);

	if (!held)
		return 0;
	if (held->kind == HELD_NEW && !held->translated && choose(s, held, ct))
		return end(s, FATE_DROPPED, DROP_NO_FREE_PORT);
	if (!held->translated)
		return 0;
	/* Only software translates errors. */
	if (s->key.ct_state & CT_RELATED)
		return end(s, FATE_MISSED, 0);
	*record = s->holds | s->direction << 7;
	return pretend_translation(s, held);
}

/* Whether there is no room for another connection, besides those that this run makes and ends. */
static __noinline int is_full(struct scratch *s)
{
	struct connection_table *table = table_of_connections();
	__u64 own = 0;

	if (!table)
		return 1;
	for (__u32 i = 0; i < MAX_HELD; i++) {
		if (i >= s->held_count)
			break;
		if (s->held[i].kind == HELD_PRESENT && !s->held[i].in_table)
			own++;
		if (s->held[i].kind == HELD_ENDED && s->held[i].in_table)
			own--;
	}
	if (table->count + own < table->limit)
		return 0;
	if (!testing && s->now - table->swept < SWEEP_EVERY)
		return 1;
	table->swept = s->now;
	sweep(s->now, 0);
	return table->count + own >= table->limit;
}

/*
 * Whether another connection has the tuples of a new one: a drop_reason, or 0. The original one was free when the frame was
 * tracked: if it is in the table now, another CPU has put it there.
 */
static __noinline int find_clash(struct scratch *s, struct held *held)
{
	int found;

	copy(&s->probe, &held->original, sizeof(struct tuple));
	found = lookup_connection(1);
	if (found)
		return found == FOUND_IN_TABLE ? DROP_BUSY : DROP_CLASH;
	copy(&s->probe, &held->reply, sizeof(struct tuple));
	if (!lookup_connection(1))
		return 0;
	copy(&s->probe, &held->original, sizeof(struct tuple));
	return lookup_connection(1) == FOUND_IN_TABLE ? DROP_BUSY : DROP_CLASH;
}

/* Remembers a new connection, and sets mark and label. Returns whether the run has ended. */
static __always_inline int commit_connection(struct scratch *s, const struct ct *ct)
{
	__u64 *label, *value = (__u64 *)ct->label, *mask = (__u64 *)ct->label_mask;
	struct held *held = held_at(s, s->holds);
	int clash;

	if (!held)
		return 0;
	if (held->kind == HELD_ENDED)
		return 0;
	if (ct->changes) {
		label = (__u64 *)held->label;
		held->mark = (held->mark & ~ct->mark_mask) | (ct->mark & ct->mark_mask);
		label[0] = (label[0] & ~mask[0]) | (value[0] & mask[0]);
		label[1] = (label[1] & ~mask[1]) | (value[1] & mask[1]);
		held->changed = 1;
	}
	if (held->kind != HELD_NEW)
		return 0;
	clash = find_clash(s, held);
	if (clash)
		return end(s, FATE_DROPPED, clash);
	if (is_full(s))
		return end(s, FATE_DROPPED, DROP_CONNECTIONS);
	held->kind = HELD_PRESENT;
	return 0;
}

/* Whether the frame need not be tracked again. One that must be turned around is forgotten. */
static __always_inline int is_tracked(struct scratch *s, const struct ct *ct)
{
	struct held *held = held_at(s, s->holds);

	if (!held || s->key.ct_zone != bpf_htons(ct->zone))
		return 0;
	if (!ct->force || !s->direction)
		return 1;
	if (held->kind == HELD_PRESENT)
		held->kind = HELD_ENDED;
	return 0;
}

/* Does the action ct. Returns whether the run has ended. */
__noinline int track(struct __sk_buff *skb, __u32 index)
{
	const struct ct *ct = bpf_map_lookup_elem(&encaps, &index);
	struct scratch *s = scratch();
	struct held *held;
	__u32 record = 0, i;

	if (!s)
		return 1;
	if (!ct)
		return end(s, FATE_DROPPED, DROP_ERROR);
	if (!s->network)
		return end(s, FATE_DROPPED, DROP_NOT_IP);
	if (s->fragment)
		return end(s, FATE_MISSED, 0);
	if (!is_tracked(s, ct) && find_or_begin(skb, s, ct->zone))
		return end(s, FATE_MISSED, 0);
	s->key.ct_zone = bpf_htons(ct->zone);
	if (ct->nat && translate(s, ct, &record))
		return 1;
	if (ct->commit && commit_connection(s, ct))
		return 1;
	held = held_at(s, s->holds);
	if (held) {
		s->key.ct_mark = held->mark;
		copy(s->key.ct_label, held->label, 16);
	} else {
		s->key.ct_mark = 0;
		__builtin_memset(s->key.ct_label, 0, 16);
	}
	i = s->records;
	if (i >= MAX_RECORDS)
		return end(s, FATE_MISSED, 0);
	s->record[i] = record;
	s->records = i + 1;
	return 0;
}

/* Removes one of the table. Returns whether it has changed meanwhile. */
static __noinline int settle_ended(struct scratch *s, struct held *held)
{
	struct connection *connection = bpf_map_lookup_elem(&connections, &held->original);

	if (!connection || connection->id != held->id)
		return 1;
	copy(&s->gone, &held->original, sizeof(struct tuple));
	copy(&s->gone_reply, &held->reply, sizeof(struct tuple));
	return remove_connection(s, connection, held->before);
}

/* Writes what has changed of one of the table. Returns whether it has changed meanwhile. */
static __noinline int settle_changed(struct held *held)
{
	__u64 longer = held->expires - held->expired;
	struct connection *connection;

	if (held->state == held->before && !held->changed) {
		if (!longer || (!testing && longer < COARSE))
			return 0;
	}
	connection = bpf_map_lookup_elem(&connections, &held->original);
	if (!connection || connection->id != held->id)
		return 1;
	if (held->state == held->before) {
		if (connection->state != held->before)
			return 1;
	} else if (__sync_val_compare_and_swap(&connection->state, held->before, held->state) != held->before) {
		return 1;
	}
	connection->expires = held->expires;
	if (held->changed) {
		connection->mark = held->mark;
		copy(connection->label, held->label, 16);
	}
	return 0;
}

/* Takes back the entry of the original direction that was just made, unless another CPU has removed it already. */
static __noinline int unmake(struct held *held, __u64 id)
{
	struct connection_table *table = table_of_connections();
	struct connection *connection;
	__u64 state;

	for (int i = 0; i < 4; i++) {
		connection = bpf_map_lookup_elem(&connections, &held->original);
		if (!connection || connection->id != id)
			return 0;
		state = connection->state;
		if (state & STATE_DEAD)
			return 0;
		if (__sync_val_compare_and_swap(&connection->state, state, state | STATE_DEAD) == state) {
			bpf_map_delete_elem(&connections, &held->original);
			if (table)
				__sync_fetch_and_add(&table->count, -1);
			return 0;
		}
	}
	return 0;
}

/* Makes a new one. Returns whether there is one meanwhile, or no room. */
static __noinline int settle_new(struct scratch *s, struct held *held)
{
	struct connection_table *table = table_of_connections();
	struct connection *entry = &s->entry, *made;
	int is_self = same_tuple(&held->original, &held->reply);
	__u64 id;

	if (!table)
		return 1;
	if (__sync_fetch_and_add(&table->count, 1) >= table->limit)
		goto undo;
	id = __sync_fetch_and_add(&table->next, 1);
	entry->id = id;
	entry->flags = (is_self ? CONNECTION_SELF : 0) | (held->translated ? CONNECTION_TRANSLATED : 0);
	entry->state = held->state;
	entry->expires = held->expires;
	entry->stream_from = held->stream_from;
	copy(&entry->other, &held->reply, sizeof(struct tuple));
	copy(entry->label, held->label, 16);
	entry->mark = held->mark;
	if (bpf_map_update_elem(&connections, &held->original, entry, BPF_NOEXIST))
		goto undo;
	if (is_self)
		return 0;
	__builtin_memset(entry, 0, sizeof(*entry));
	entry->id = id;
	entry->flags = CONNECTION_REPLY;
	copy(&entry->other, &held->original, sizeof(struct tuple));
	if (bpf_map_update_elem(&connections, &held->reply, entry, BPF_NOEXIST)) {
		unmake(held, id);
		return 1;
	}
	/* Another CPU may have removed the connection before it had this entry. */
	made = bpf_map_lookup_elem(&connections, &held->original);
	if (!made || made->id != id)
		bpf_map_delete_elem(&connections, &held->reply);
	return 0;
undo:
	__sync_fetch_and_add(&table->count, -1);
	return 1;
}

struct settling {
	struct scratch *s;
	__u32 ended;
	__u32 conflict;
};

static long settle_one(__u32 i, struct settling *settling)
{
	struct scratch *s = settling->s;
	struct held *held;

	held = held_at(s, i + 1);
	if (!held)
		return 1;
	if (settling->ended) {
		if (held->kind == HELD_ENDED && held->in_table)
			settling->conflict = settle_ended(s, held);
	} else if (held->kind == HELD_PRESENT) {
		settling->conflict = held->in_table ? settle_changed(held) : settle_new(s, held);
	}
	return settling->conflict ? 1 : 0;
}

/* Writes into the table what this run has changed. Returns whether another CPU has changed the same meanwhile. */
__noinline int settle(void)
{
	struct scratch *s = scratch();
	struct settling settling = { .s = s, .ended = 1 };

	if (!s)
		return 0;
	/* What is removed first may be in the way of what is made. */
	bpf_loop(s->held_count, settle_one, &settling, 0);
	settling.ended = 0;
	if (!settling.conflict)
		bpf_loop(s->held_count, settle_one, &settling, 0);
	return settling.conflict;
}

#endif
