// SPDX-License-Identifier: Dual MIT/GPL
/*
 * The flows of an E-Switch. The program runs where frames enter the card: at the inner end of each port's veth pair, at
 * the inner end of each representor's, and at the wire. What it does with a frame is defined by the crate flow
 * (flow::process); the names are the same.
 *
 * Connections are tracked as flow::conntrack does it (track.h).
 *
 * A run has two passes. The first one finds the rules that the frame matches, chain by chain, on a key to which rewrites
 * are applied, and changes nothing but the tokens of meters, which it can give back; connections change in a copy. If the
 * frame misses in a later chain, it goes to the representor as it came in. Otherwise the connections are settled: the
 * table gets what has changed. The second pass counts, rewrites and sends.
 */
#include "maps.h"
#include "dissect.h"
#include "track.h"
#include "classify.h"
#include "execute.h"

#define TCX_NEXT -1
#define TCX_DROP 2

static __always_inline int drop_early(__u32 port, __u32 reason)
{
	note_drop(port, reason);
	return TCX_DROP;
}

/* What the representor's netdev sends goes to the port, whatever the rules say. */
static __always_inline int from_representor(struct __sk_buff *skb, __u32 number)
{
	struct port *port = bpf_map_lookup_elem(&ports, &number);

	if (!port || port->mode == MODE_INACTIVE)
		return drop_early(number, DROP_INACTIVE);
	if (port->mode == MODE_LEGACY)
		return TCX_NEXT;
	return send_last(skb, number, 0, 0);
}

/* Writes what has changed of connections. Returns whether no other CPU has changed the same meanwhile. */
static __always_inline int is_settled(struct scratch *s)
{
	if (s->fate == FATE_MISSED)
		return 1;
	if (s->fate == FATE_DROPPED && s->reason == DROP_BUSY)
		return 0;
	return !settle();
}

/*
 * Another CPU has changed one of the connections meanwhile: decides about the frame once more. Meters get their tokens back
 * before. A frame that changes connections of several zones may count twice in one that it had changed already.
 */
static __always_inline void settle_again(struct __sk_buff *skb, struct scratch *s, __u64 block)
{
	for (int i = 0; i < MAX_ATTEMPTS; i++) {
		give_back(s);
		s->base = 0;
		s->block = block;
		if (dissect(skb))
			break;
		note_segments(skb, s);
		classify(skb);
		if (!s->held_count || is_settled(s))
			return;
	}
	give_back(s);
	s->steps = 0;
	s->taken = 0;
	s->fate = FATE_DROPPED;
	s->reason = DROP_BUSY;
}

/*
 * A netdev that is none of the card's: the loopback device on which user space runs the program to remove connections. No
 * frame has such a mark, as a frame loses its mark on its way into the card's network namespace.
 */
static __always_inline int from_elsewhere(struct __sk_buff *skb)
{
	struct control *control = controls();
	__u32 all = skb->mark == MARK_CLEAR;

	if (!control || (!all && skb->mark != MARK_SWEEP))
		return TCX_NEXT;
	return sweep(testing ? control->now : bpf_ktime_get_coarse_ns(), all);
}

/*
 * What a limited function sends waits in its class first, which the qdisc finds by the priority. It comes back at the lane's
 * other end, with the port as its mark.
 */
static __always_inline int into_lane(struct __sk_buff *skb, const struct port *port, __u32 number)
{
	skb->mark = number;
	skb->priority = port->class;
	return bpf_redirect(port->lane, 0);
}

SEC("classifier")
int eswitch_ingress(struct __sk_buff *skb)
{
	__u32 ifindex = *(volatile __u32 *)&skb->ifindex, number;
	struct netdev *netdev;
	struct control *control;
	struct scratch *s;
	struct port *port;
	int wrong, shaped;

	if (testing)
		ifindex = *(volatile __u32 *)&skb->mark;
	netdev = bpf_map_lookup_elem(&netdevs, &ifindex);
	if (!netdev)
		return from_elsewhere(skb);
	number = netdev->port;
	if (netdev->role == ROLE_REPRESENTOR)
		return from_representor(skb, number);
	shaped = netdev->role == ROLE_LANE;
	if (shaped) {
		number = skb->mark;
		skb->mark = MARK_SHAPED;
	}
	port = bpf_map_lookup_elem(&ports, &number);
	if (!port || port->mode == MODE_INACTIVE)
		return drop_early(number, DROP_INACTIVE);
	if (port->mode == MODE_LEGACY)
		return TCX_NEXT;
	s = scratch();
	control = controls();
	if (!s || !control)
		return TCX_DROP;
	if (!(port->flags & PORT_LINK_UP))
		return drop_early(number, DROP_LINK_DOWN);
	if (port->lane && !shaped && !testing)
		return into_lane(skb, port, number);
	s->generation = *(volatile __u64 *)&control->generation;
	s->now = testing ? control->now : bpf_ktime_get_coarse_ns();
	s->block = port->block;
	s->in_port = number;
	s->representor = port->representor;
	s->verdict = TCX_DROP;
	s->wire = port->flags & PORT_WIRE;
	s->eswitch = port->eswitch;
	s->base = 0;
	s->encap = 0;
	s->through = 0;
	wrong = dissect(skb);
	if (wrong)
		return drop_early(number, wrong);
	note_segments(skb, s);
	classify(skb);
	if (s->held_count && !is_settled(s))
		settle_again(skb, s, port->block);
	return execute(skb);
}

char _license[] SEC("license") = "Dual MIT/GPL";
