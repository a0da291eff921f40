/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * What the maps hold. src/layout.rs writes and reads the same bytes; the loader compares the sizes.
 */
#ifndef ESWITCH_LAYOUT_H
#define ESWITCH_LAYOUT_H

#include <linux/bpf.h>

#define MAX_STEPS 17		/* a frame begins in chain 0 and goes on at most 16 times */
#define MAX_GROUPS_OF_CHAIN 256
#define MAX_ACTIONS 64		/* of one rule */
#define MAX_TAGS 16		/* that are read of one frame */
#define FIRST_TAG 64		/* where the tags of a frame begin; those that are pushed stand before it */
#define CACHE_SLOTS 8192	/* a power of two, for each CPU */
#define MAX_OUTPUTS 64		/* that a test can record */
#define MAX_RECORDED 4096	/* bytes of a frame that a test can record */
#define MAX_SAMPLED 9216	/* bytes of a frame that a sample can have */
#define MAX_TAKEN 64		/* tokens that a run can give back */
#define MAX_HELD 8		/* connections that a run can change */
#define MAX_CT_OF_RULE 4
#define MAX_WIRES 4
#define MAX_RECORDS 68		/* how often a run tracks: MAX_STEPS * MAX_CT_OF_RULE */

/*
 * The key of a frame. Addresses of IPv4, IPv6 and ARP share a place, and so do ports and what ICMP has: a rule that
 * asks for one of them always asks for the protocol too. The first SHORT_KEY bytes are enough for most rules.
 */
#define SHORT_KEY 80
struct key {
	__u8 eth_dst[6];
	__u8 eth_src[6];
	__be16 eth_type;
	__be16 vlan_eth_type;
	__be16 vlan_tpid;
	__be16 vlan_tci;	/* without the bit for drop eligible */
	__be16 cvlan_tpid;
	__be16 cvlan_tci;
	__be16 cvlan_eth_type;
	__u8 ip_proto;
	__u8 ip_tos;		/* of ARP: the operation */
	__u8 ip_ttl;
	__u8 ip_flags;
	__u8 addr_type;
	__u8 ct_state;
	__u32 in_port;
	__u8 ports[4];		/* source and destination; or type and code of ICMP */
	__be16 tcp_flags;
	__be16 ct_zone;
	__u32 ct_mark;
	__u8 addr[32];		/* IPv4: 4 + 4; IPv6: 16 + 16; ARP: sip 4, tip 4, sha 6, tha 6 */
	/* the long part */
	__u32 pad0;
	__u8 enc_tos;
	__u8 enc_ttl;
	__u8 enc_addr_type;
	__u8 enc_opts_len;
	__u32 enc_key_id;
	__be16 enc_src_port;
	__be16 enc_dst_port;
	__u8 enc_addr[32];
	__u8 ct_label[16];
	__u8 enc_opts[252];
	__u8 pad2[4];
};

/* What a frame out of a tunnel has besides, but for labels and options. */
#define CACHED_KEY 128
_Static_assert(__builtin_offsetof(struct key, ct_label) == CACHED_KEY, "the key of the cache");
_Static_assert(__builtin_offsetof(struct key, pad0) == SHORT_KEY, "the short key");
_Static_assert(sizeof(struct key) == 400, "the key");

/* Where rules are looked up. */
struct short_lookup {
	__u32 group;
	__u32 zero;
	__u8 key[SHORT_KEY];
};

struct long_lookup {
	__u32 group;
	__u32 zero;
	struct key key;
};

/* What a rule says last; or all that it says. */
enum terminal {
	TERMINAL_END,		/* the frame was sent before */
	TERMINAL_DROP,
	TERMINAL_TRAP,
	TERMINAL_REDIRECT,	/* to port arg */
	TERMINAL_GOTO,		/* to chain arg */
};

#define RULE_WALK 1		/* its actions decide what becomes of the frame, or which rule is next */

struct rule {
	__u64 id;
	__u32 index;		/* of its counter */
	__u32 first;		/* its first action, or NEXT_TERMINAL */
	__u8 terminal;
	__u8 flags;
	__u16 pad;
	__u32 arg;
};

#define GROUP_LONG 1
#define GROUP_SRC_RANGE 2
#define GROUP_DST_RANGE 4
#define GROUP_ANY_PROTOCOL 8

/* The rules of one chain, priority and mask, and of one range of ports if there are ranges. */
struct group {
	__u64 block;
	__u64 mask_order;	/* masks of a priority are asked in this order */
	__u32 chain;
	__u32 priority;
	__be16 protocol;
	__u16 flags;
	__u16 src_min, src_max;
	__u16 dst_min, dst_max;
	__u32 pad;
	struct key mask;
};

struct chain_key {
	__u64 block;
	__u32 chain;
	__u32 pad;
};

#define CHAIN_CACHED 1		/* the key of the cache decides */

/* The groups of a chain in the order in which they are asked. */
struct chain {
	__u32 count;
	__u32 flags;
	__u32 groups[MAX_GROUPS_OF_CHAIN];
};

enum action_kind {
	ACTION_MIRROR = 1,	/* to port arg */
	ACTION_VLAN_PUSH,	/* arg: TPID << 16 | TCI, in host order */
	ACTION_VLAN_POP,
	ACTION_VLAN_MODIFY,	/* arg as above; field: whether the priority changes */
	ACTION_EDIT,		/* the field; value and mask for the region around it */
	ACTION_ADD,		/* arg is added to the field */
	ACTION_CSUM,		/* arg: bits of TCA_CSUM_UPDATE_FLAG_* */
	ACTION_DEC_TTL,
	ACTION_POLICE,		/* with meter arg; next if the frame conforms, alternative if not */
	ACTION_SAMPLE,		/* arg: the rate; alternative: the group; value: at most so many bytes, in host order */
	ACTION_DROP,		/* the terminals, where they are not the last action */
	ACTION_TRAP,
	ACTION_REDIRECT,
	ACTION_GOTO,
	ACTION_TUNNEL_SET,	/* arg: the encapsulation of the next output */
	ACTION_TUNNEL_UNSET,
	ACTION_CT,		/* arg: how */
	ACTION_CT_CLEAR,
};

/* The headers of a tunnel, but for lengths, checksum and source port. */
#define MAX_ENCAP 344
struct encap {
	__u16 length;		/* from the outer MAC addresses to the inner ones */
	__u8 version;		/* of the outer IP */
	__u8 udp;		/* otherwise it is GRE */
	__u8 neighbour_known;
	__u8 pad[3];
	__u8 bytes[MAX_ENCAP];
};

enum nat { NAT_NONE, NAT_RESTORE, NAT_SRC, NAT_DST };

/* How a connection is tracked. It stands in the map of encapsulations. */
struct ct {
	__u16 zone;
	__u8 commit;
	__u8 force;
	__u8 nat;
	__u8 version;		/* of the addresses */
	__u8 has_ports;
	__u8 changes;		/* mark or label */
	__u32 mark;
	__u32 mark_mask;
	__u8 label[16];
	__u8 label_mask[16];
	__u8 first[16];		/* of the addresses */
	__u32 count;		/* of them; 0: 2^32 or more */
	__u16 first_port;
	__u16 last_port;
};

/* What the frames of one direction of a connection have in common. An address of IPv4 is followed by zeros. */
struct tuple {
	__u8 src[16];
	__u8 dst[16];
	__u16 src_part;		/* in host order */
	__u16 dst_part;
	__u16 zone;
	__u8 protocol;
	__u8 version;		/* in the lower half; in the upper one the E-Switch, whose zones are its own */
};

#define CONNECTION_REPLY 1	/* the entry of the direction of the reply: `other` is the original one */
#define CONNECTION_SELF 2	/* both directions have the same tuple */
#define CONNECTION_TRANSLATED 4

/*
 * An entry of the table. Each connection has two, one for each direction; everything but `other` and `id` is in that of the
 * original one.
 *
 * Everything that decides what a frame does is one word, so that it changes at once or not at all:
 * bits 0 to 3 the phase of TCP, 4 to 6 the kind of the last segment, 7 its direction, then flags; 32 to 63 what the last
 * ignored segment ended with.
 */
struct connection {
	__u64 state;
	__u64 expires;
	__u64 stream_from;
	__u64 id;
	struct tuple other;
	__u8 label[16] __attribute__((aligned(8)));
	__u32 mark;
	__u32 flags;
};

#define STATE_CLOSING (1 << 8)
#define STATE_SIMULTANEOUS (1 << 9)
#define STATE_SEEN_REPLY (1 << 10)
#define STATE_ASSURED (1 << 11)
#define STATE_CHALLENGE (1 << 13)
#define STATE_DEAD (1 << 12)	/* it is being removed, by whoever set this */

/* All connections. */
struct connection_table {
	__u64 count;
	__u64 limit;
	__u64 next;		/* the identifier of the next one */
	__u64 swept;		/* when those that are over were last removed */
};

enum held_kind { HELD_NEW = 1, HELD_PRESENT, HELD_ENDED };

/* A connection as this run would leave it. */
struct held {
	struct tuple original;
	struct tuple reply;
	__u64 before;		/* its state in the table */
	__u64 state;
	__u64 expired;		/* when it would expire, in the table */
	__u64 expires;
	__u64 stream_from;
	__u64 id;
	__u8 label[16] __attribute__((aligned(8)));
	__u32 mark;
	__u8 kind;
	__u8 in_table;
	__u8 changed;		/* mark or label */
	__u8 translated;
};

#define NEXT_TERMINAL 0
#define NEXT_END 0xffffffff
#define NEXT_DROP 0xfffffffe

struct action {
	__u8 kind;
	__u8 header;
	__u8 field;
	__u8 size;		/* of the field */
	__u32 next;
	__u32 arg;
	__u32 alternative;
	__u16 place;		/* of the region in the header: even */
	__u16 region;		/* its length: 2, 4, 6 or 16 */
	__u32 pad;
	__u8 value[16];
	__u8 mask[16];
};

enum header { HEADER_ETH, HEADER_IP4, HEADER_IP6, HEADER_TCP, HEADER_UDP };

/* Fields that can be rewritten, in the order of flow::EditField. */
enum edit_field {
	EDIT_ETH_DST, EDIT_ETH_SRC, EDIT_ETH_TYPE,
	EDIT_IP4_SRC, EDIT_IP4_DST, EDIT_IP4_TOS, EDIT_IP4_TTL,
	EDIT_IP6_SRC, EDIT_IP6_DST, EDIT_IP6_TRAFFIC_CLASS, EDIT_IP6_HOP_LIMIT,
	EDIT_TCP_SRC, EDIT_TCP_DST, EDIT_TCP_FLAGS, EDIT_UDP_SRC, EDIT_UDP_DST,
};

struct counter {
	__u64 packets;
	__u64 bytes;
	__u64 last_used;	/* ns of CLOCK_MONOTONIC */
};

enum meter_kind { METER_BYTES, METER_PACKETS, METER_MTU };

struct meter {
	struct bpf_spin_lock lock;
	__u32 kind;
	__u64 rate;		/* a second; or the length of the longest frame that conforms */
	__u64 capacity;		/* burst, in billionths */
	__u64 tokens;		/* in billionths */
	__u64 at;		/* when there were so many */
	__u64 conformed;
	__u64 exceeded;
	__u32 id;
	__u32 pad;
};

enum role { ROLE_PORT, ROLE_REPRESENTOR, ROLE_WIRE, ROLE_LANE };
enum mode { MODE_LEGACY, MODE_SWITCHDEV, MODE_INACTIVE };

/* A netdev in the card's namespace that has the program. */
struct netdev {
	__u32 port;
	__u32 role;
};

#define PORT_THROUGH_INNER 1	/* send through the inner end, as the outer one is in the card's namespace */
#define PORT_WIRE 2
#define PORT_LINK_UP 4

struct port {
	__u64 block;
	__u32 ifindex;		/* the inner end, or the wire */
	__u32 representor;	/* the representor's inner end, or 0 */
	__u32 mode;
	__u32 flags;
	__u32 lane;		/* where what comes in waits first if the port's rate is limited, or 0 */
	__u32 class;		/* in which it waits */
	__u32 wires[MAX_WIRES];	/* of an uplink in a LAG: those on which rules send, or none */
	__u32 wire_count;
	__u32 eswitch;		/* which of them has the port: tunnels end at each */
};

/* Marks of frames in the card's network namespace, to which frames come without any. They are no ports. */
#define MARK_SHAPED 0xe5e50001	/* it has waited in its class */
#define MARK_SWEEP 0xe5e50002	/* removes connections that are over */
#define MARK_CLEAR 0xe5e50003	/* removes all connections */

enum drop_reason {
	DROP_RULE = 1,
	DROP_METER,
	DROP_TOO_SHORT,
	DROP_TOO_LONG,
	DROP_TTL,
	DROP_GOTOS,
	DROP_NO_PORT,
	DROP_INACTIVE,
	DROP_LINK_DOWN,
	DROP_NO_REPRESENTOR,
	DROP_ERROR,
	DROP_NOT_IP,
	DROP_CONNECTIONS,
	DROP_CLASH,
	DROP_NO_FREE_PORT,
	DROP_BUSY,
};

struct drop_key {
	__u32 port;
	__u32 reason;
};

struct cached {
	__u64 generation;
	__u64 block;
	__u32 chain;
	__u32 found;
	__u8 key[CACHED_KEY];	/* of a frame that came out of no tunnel the short one */
	struct rule rule;
};

enum fate { FATE_FORWARDED, FATE_DROPPED, FATE_TRAPPED, FATE_MISSED };

struct control {
	__u64 generation;	/* of the tables: grows with each commit */
	__u64 now;		/* the time in a test */
	__u64 random;		/* the state of random numbers in a test */
	__u32 fate;		/* the result of a test */
	__u32 reason;
	__u32 outputs;
	__u32 samples;
	__u64 build;		/* of the program, by which one that is found again is known */
	__u64 sampling;		/* whether somebody wants samples */
};

/* A frame that a test would have sent. */
struct output {
	__u32 port;
	__u32 to_representor;
	__u32 length;
	__u32 vlan_present;
	__u16 vlan_tpid;
	__u16 vlan_tci;
	__u32 pad;
	__u8 frame[MAX_RECORDED];
};

struct sample {
	__u32 group;
	__u32 rate;
	__u32 in_port;
	__u32 length;		/* of the whole frame */
	__u32 kept;
	__u32 pad;
	__u8 frame[MAX_SAMPLED + 16];
};

struct step {
	struct rule rule;
	__u32 bytes;
	__u32 exceeded;		/* one bit for each measurement, the first one the lowest */
};

/* What is known of a frame on its way; one for each CPU. */
struct scratch {
	struct long_lookup lookup;
	struct key key;
	struct rule found;
	/* where the headers are in the skb */
	__u32 network;		/* 0: there is none */
	__u32 payload;
	__u32 end;
	__u32 length;		/* of the frame, with its tags */
	__u8 version;
	__u8 protocol;
	__u8 fragment;		/* 0: whole, 1: first, 2: later */
	__u8 has_ports;
	__u8 has_tcp_flags;
	__u8 tags;
	__u8 first_tag;
	__u8 pad0;
	__be16 raw_type;	/* behind the tags, as it stands in the frame */
	__be16 type;		/* the same, or what stands for a length */
	__u16 ip6_word;		/* the first two bytes of IPv6, in host order */
	__u16 pad1;
	__u32 tag[128];		/* TPID << 16 | TCI, in host order */
	/* the run */
	__u64 block;
	__u64 now;
	__u64 generation;
	__u32 in_port;
	__u32 representor;
	__u32 fate;
	__u32 reason;
	__u32 steps;
	__u32 measured;		/* by this rule */
	__u32 verdict;		/* what the program returns */
	__u32 taken;
	__u32 segments;
	__u32 header_bytes;	/* of each further segment */
	__u32 segment;		/* the data of a segment, or 0 */
	__u32 rewritten;
	__u32 wire;		/* whether tunnels end here */
	__u32 eswitch;
	__u32 base;		/* where the frame begins: behind the headers of a tunnel */
	__u32 limit;		/* where it ends */
	__u32 encap;		/* of the next output: its number and 1, or 0 */
	__u32 lost;		/* what is sent next cannot be encapsulated here */
	__u32 through;		/* send by the inner end, as the frame is of another protocol than the kernel thinks */
	__u8 outer_version;
	__u8 outer_tos;
	__u8 inner_tos;		/* with the congestion bits of both */
	__u8 tos_differs;
	struct step step[MAX_STEPS + 1];
	struct {
		__u32 meter;
		__u32 conforms;
		__u64 cost;
	} take[MAX_TAKEN];
	/* connections */
	__u32 held_count;
	__u32 holds;		/* the one of the frame: its place in `held` and 1, or 0 */
	__u32 records;		/* how often the frame was tracked */
	__u32 icmp_id;		/* with bit 16, as it would be now */
	__u32 record_at;	/* in the second pass */
	__u32 direction;	/* of the frame: 0 original, 1 reply */
	__u32 found_direction;
	__u32 segment_kind;
	__u32 segment_ack;
	__u32 segment_end;
	__u32 part;		/* while a free port is looked for */
	__u32 parts;
	__u32 first_part;
	__u32 seed;
	struct tuple tuple __attribute__((aligned(8)));	/* of the frame */
	struct tuple probe;	/* what is looked for */
	struct tuple candidate;
	struct tuple gone;	/* what is being removed */
	struct tuple gone_reply;
	struct connection entry;
	struct held held[MAX_HELD];
	__u8 record[MAX_RECORDS];	/* its translation: a place in `held` and 1, or 0; and the direction << 7 */
	__u8 old[16] __attribute__((aligned(8)));
	__u8 new[16] __attribute__((aligned(8)));
	__u8 bytes[512] __attribute__((aligned(8)));
	struct sample sample;
};

#endif
