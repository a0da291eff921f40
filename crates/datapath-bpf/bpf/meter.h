/* SPDX-License-Identifier: Dual MIT/GPL */
/* Meters: token buckets, with the arithmetic of flow::Bucket. */
#ifndef ESWITCH_METER_H
#define ESWITCH_METER_H

#include "maps.h"
#include "dissect.h"

#define NANO 1000000000ULL

/* Packets and bytes as they would be on a wire (as qdisc_pkt_len_init()). */
static __noinline int note_segments(struct __sk_buff *skb, struct scratch *s)
{
	__u8 offset = 0;

	s->segments = 1;
	s->header_bytes = 0;
	s->segment = 0;
	if (!skb->gso_size || skb->gso_segs < 2)
		return 0;
	s->segments = skb->gso_segs;
	s->segment = skb->gso_size;
	if (!s->network)
		return 0;
	s->header_bytes = s->payload - s->base + 8;
	if (s->protocol == IPPROTO_TCP && !bpf_skb_load_bytes(skb, s->payload + 12, &offset, 1))
		s->header_bytes = s->payload - s->base + (offset >> 4) * 4;
	if (!s->base && skb->vlan_present)
		s->header_bytes += 4;
	return 0;
}

/* The bytes of the frame; of one that is yet to be segmented, those of its segments. */
static __always_inline __u64 bytes_of(const struct scratch *s)
{
	return s->length + (s->segments - 1) * (__u64)s->header_bytes;
}

/*
 * Measures the frame, whose length the scratch has. Returns whether it conforms. The tokens that it takes are noted, so
 * that they can be given back.
 *
 * A burst of at most 2^64 / 10^9 keeps every number in 64 bits; the loader refuses a larger one.
 */
static __noinline int measure(struct scratch *s, __u32 index)
{
	struct meter *meter = bpf_map_lookup_elem(&meters, &index);
	__u64 now = testing ? s->now : bpf_ktime_get_ns();
	__u64 cost, elapsed, missing, rate, longest;
	__u32 i = s->taken;
	int conforms = 0;

	if (!meter)
		return 1;
	rate = meter->rate;
	if (!rate)
		return 1;
	cost = (meter->kind == METER_PACKETS ? s->segments : bytes_of(s)) * NANO;
	/* The longest segment counts (tcf_police_mtu_check). */
	longest = s->segment ? s->header_bytes + s->segment : s->length;
	bpf_spin_lock(&meter->lock);
	elapsed = now > meter->at ? now - meter->at : 0;
	missing = meter->capacity - meter->tokens;
	/* The product cannot overflow where it is computed. */
	if (elapsed > missing / rate)
		missing = 0;
	else
		missing -= elapsed * rate;
	if (meter->kind == METER_MTU) {
		conforms = longest <= rate;
		cost = 0;
	} else if (meter->capacity - missing >= cost) {
		meter->tokens = meter->capacity - missing - cost;
		if (now > meter->at)
			meter->at = now;
		conforms = 1;
	}
	if (conforms)
		meter->conformed++;
	else
		meter->exceeded++;
	bpf_spin_unlock(&meter->lock);
	if (i < MAX_TAKEN) {
		s->take[i].meter = index;
		s->take[i].conforms = conforms;
		s->take[i].cost = cost;
		s->taken = i + 1;
	}
	return conforms;
}

static long give_back_one(__u32 i, struct scratch **sp)
{
	struct scratch *s = *sp;
	struct meter *meter;
	__u64 cost;
	__u32 conforms;

	if (i >= MAX_TAKEN)
		return 1;
	cost = s->take[i].cost;
	conforms = s->take[i].conforms;
	meter = bpf_map_lookup_elem(&meters, &s->take[i].meter);
	if (!meter)
		return 0;
	bpf_spin_lock(&meter->lock);
	if (conforms) {
		meter->tokens += cost;
		if (meter->tokens > meter->capacity)
			meter->tokens = meter->capacity;
		meter->conformed--;
	} else {
		meter->exceeded--;
	}
	bpf_spin_unlock(&meter->lock);
	return 0;
}

/* Gives back what a frame has taken that misses after all. */
static __always_inline void give_back(struct scratch *s)
{
	if (s->taken)
		bpf_loop(s->taken, give_back_one, &s, 0);
}

#endif
