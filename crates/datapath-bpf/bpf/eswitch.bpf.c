// SPDX-License-Identifier: Dual MIT/GPL
/*
 * The flows of an E-Switch. The program runs where frames enter the card: at the inner end of each port's veth pair, at
 * the inner end of each representor's, and at the wire. What it does with a frame is defined by the crate flow
 * (flow::process); the names are the same.
 *
 * A run has two passes. The first one finds the rules that the frame matches, chain by chain, on a key to which rewrites
 * are applied, and changes nothing but the tokens of meters, which it can give back. If the frame misses in a later
 * chain, it goes to the representor as it came in. Otherwise the second pass counts, rewrites and sends.
 */
#include "maps.h"
#include "dissect.h"
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
	return send_last(skb, number, 0);
}

SEC("classifier")
int eswitch_ingress(struct __sk_buff *skb)
{
	__u32 ifindex = *(volatile __u32 *)&skb->ifindex, number;
	struct netdev *netdev;
	struct control *control;
	struct scratch *s;
	struct port *port;
	int wrong;

	if (testing)
		ifindex = *(volatile __u32 *)&skb->mark;
	netdev = bpf_map_lookup_elem(&netdevs, &ifindex);
	if (!netdev)
		return TCX_NEXT;
	number = netdev->port;
	if (netdev->role == ROLE_REPRESENTOR)
		return from_representor(skb, number);
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
	s->generation = *(volatile __u64 *)&control->generation;
	s->now = testing ? control->now : bpf_ktime_get_coarse_ns();
	s->block = port->block;
	s->in_port = number;
	s->representor = port->representor;
	s->verdict = TCX_DROP;
	s->wire = port->flags & PORT_WIRE;
	s->base = 0;
	s->encap = 0;
	s->through = 0;
	wrong = dissect(skb);
	if (wrong)
		return drop_early(number, wrong);
	note_segments(skb, s);
	classify(skb);
	return execute(skb);
}

char _license[] SEC("license") = "Dual MIT/GPL";
