//! What a filter is for the card: a flow rule, with the meters that it needs. What cannot be carried out is refused in mlx5's
//! words (`drivers/net/ethernet/mellanox/mlx5/core/en_tc.c`, `en/tc/act/*.c`, `en/tc_ct.c`).

use std::net::IpAddr;
use std::time::Duration;

use flow::{
    Action as FlowAction, Block, Change, Control, Csum, Ct, Edit, EditField, Encap, Header, Match, Meter, MeterId, Nat,
    NatRange, Police, Port, Protocol, Rate, Rule, Sample, TunnelKind, VlanTag,
};

use crate::action::{Action, Kind, PeditKey, Target};
use crate::keys::geneve;
use crate::numbers::{control, ct};
use crate::refusal::Refusal;
use crate::request::{Classifier, Spec};

/// A flow rule, and the meters that must be there before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offload {
    /// The rule.
    pub rule: Rule,
    /// Its meters: those of police actions, by their indexes.
    pub meters: Vec<(MeterId, Meter)>,
}

/// Nanoseconds in a tick of the packet scheduler: `PSCHED_TICKS2NS`.
const TICK_NS: u64 = 64;

/// The packets that are sent at a rate in a number of ticks. A program has rounded the ticks (`tc_calc_xmittime` of
/// iproute2), so this is the nearest number.
fn packets_in(rate: u64, ticks: u64) -> u64 {
    const NS: u128 = 1_000_000_000;
    let ns = u128::from(ticks) * u128::from(TICK_NS);
    u64::try_from((u128::from(rate).saturating_mul(ns).saturating_add(NS / 2)) / NS).unwrap_or(u64::MAX)
}

impl Classifier {
    /// What a flow rule matches. `protocol`: that of the filter.
    ///
    /// # Errors
    /// EOPNOTSUPP: the card cannot match on a key.
    pub(crate) fn matches(&self, protocol: Protocol) -> Result<Match, Refusal> {
        match self {
            Self::Flower(keys) => keys.matches(protocol),
            Self::Matchall => Ok(Match::new()),
        }
    }
}

impl Spec {
    /// The filter as a flow rule. `uplink`: the port to which tunnels go.
    ///
    /// # Errors
    /// EOPNOTSUPP: the card cannot carry it out.
    pub fn offload(
        &self,
        block: Block,
        uplink: Port,
        (chain, priority, protocol): (u32, u16, Protocol),
    ) -> Result<Offload, Refusal> {
        let matches = self.classifier.matches(protocol)?;
        let mut reader = Reader { uplink, actions: Vec::new(), meters: Vec::new(), tunnel: None, starts: Vec::new() };
        for action in &self.actions {
            if !action.wants_delayed_counters() {
                return Err(Refusal::unsupported("Driver does not support selected HW stats type"));
            }
            reader.starts.push(reader.actions.len());
            reader.action(action)?;
        }
        reader.place_jumps();
        if reader.tunnel.is_some() {
            return Err(Refusal::unsupported("mlx5 can't handle action tunnel_key without an output"));
        }
        let rule = Rule { block, chain, priority: priority.into(), protocol, matches, actions: reader.actions };
        Ok(Offload { rule, meters: reader.meters })
    }
}

/// A header and a command of pedit, with the new values of the header's bytes and the bits that change.
type Image = ((u16, u16), Vec<u8>, Vec<u8>);

struct Reader {
    uplink: Port,
    actions: Vec<FlowAction>,
    meters: Vec<(MeterId, Meter)>,
    /// A tunnel that was set, before the output that says which kind it is.
    tunnel: Option<Encap>,
    /// Where each action of tc begins among the card's.
    starts: Vec<usize>,
}

impl Reader {
    fn action(&mut self, action: &Action) -> Result<(), Refusal> {
        match action.kind {
            Kind::Gact => return self.follow(action.control(), true),
            Kind::Mirred => return self.output(action),
            Kind::Vlan => self.vlan(action)?,
            Kind::TunnelKey => self.tunnel_key(action)?,
            Kind::Pedit => self.pedit(action)?,
            Kind::Csum => self.actions.push(FlowAction::Csum(Csum(action.mode()))),
            Kind::Skbedit => {
                return Err(Refusal::unsupported("The offload action is not supported on this card: skbedit"));
            }
            Kind::Ct => self.ct(action)?,
            Kind::Police => return self.police(action),
            Kind::Sample => self.actions.push(FlowAction::Sample(Sample {
                rate: action.number_u32(3).unwrap_or(1),
                group: action.number_u32(5).unwrap_or(0),
                truncate: action.number_u32(4).filter(|size| *size != 0),
            })),
        }
        self.follow(action.control(), false)
    }

    /// What follows from an action. `alone`: it is all that the action does.
    fn follow(&mut self, code: i32, alone: bool) -> Result<(), Refusal> {
        match code {
            control::PIPE => {}
            control::SHOT => self.actions.push(FlowAction::Drop),
            control::TRAP => self.actions.push(FlowAction::Trap),
            code if code & !control::EXT_VALUE == control::GOTO_CHAIN => {
                self.actions.push(FlowAction::Goto((code & control::EXT_VALUE).cast_unsigned()));
            }
            _ if alone => return Err(Refusal::unsupported("The offload action is not supported on this card: accept")),
            _ => {
                return Err(Refusal::unsupported("only pipe, drop, trap and goto chain can follow from an action"));
            }
        }
        Ok(())
    }

    fn output(&mut self, action: &Action) -> Result<(), Refusal> {
        let mirrors = match action.mode() {
            1 => false,
            2 => true,
            _ => return Err(Refusal::unsupported("mlx5 cannot redirect or mirror to ingress here")),
        };
        let port = match (action.target, self.tunnel.take()) {
            (Some(Target::Port(port)), None) => port,
            (Some(Target::Tunnel(device)), Some(mut encap)) => {
                encap.kind = device.kind;
                if encap.dst_port == 0 && device.kind != TunnelKind::Gre {
                    encap.dst_port = device.udp_port;
                }
                self.actions.push(FlowAction::TunnelSet(encap));
                self.uplink
            }
            (Some(Target::Tunnel(_)), None) => {
                return Err(Refusal::unsupported("a tunnel device can be sent to only after tunnel_key set"));
            }
            (Some(Target::Port(_)), Some(_)) => {
                return Err(Refusal::unsupported("after tunnel_key set, a tunnel device must be sent to"));
            }
            (Some(Target::Other) | None, _) => {
                return Err(Refusal::unsupported("devices are not on same switch HW, can't offload forwarding"));
            }
        };
        self.actions.push(if mirrors { FlowAction::Mirror(port) } else { FlowAction::Redirect(port) });
        match action.control() {
            control::STOLEN if !mirrors => Ok(()),
            code => self.follow(code, false),
        }
    }

    fn vlan(&mut self, action: &Action) -> Result<(), Refusal> {
        let tpid = action.number_u16(4).map_or(0x8100, u16::from_be);
        let (id, priority) = (action.number_u16(3).unwrap_or(0), action.number_u8(6));
        self.actions.push(match action.mode() {
            1 => FlowAction::VlanPop,
            2 => FlowAction::VlanPush(VlanTag { tpid, id, priority: priority.unwrap_or(0) }),
            // The kernel shows a priority of 0 for one that was not given.
            3 => FlowAction::VlanModify { tpid, id, priority: priority.filter(|priority| *priority != 0) },
            _ => return Err(Refusal::unsupported("Unexpected action vlan for a frame without Ethernet header")),
        });
        Ok(())
    }

    fn tunnel_key(&mut self, action: &Action) -> Result<(), Refusal> {
        if action.mode() == 2 {
            self.actions.push(FlowAction::TunnelUnset);
            return Ok(());
        }
        let (Some(src), Some(dst)) = (action.address(3, 5), action.address(4, 6)) else {
            return Err(Refusal::unsupported("a tunnel needs a source and a destination address"));
        };
        self.tunnel = Some(Encap {
            kind: TunnelKind::Vxlan,
            id: action.number_u32(7).map(u32::from_be),
            src,
            dst,
            dst_port: action.number_u16(9).map_or(0, u16::from_be),
            tos: action.number_u8(12).unwrap_or(0),
            ttl: action.number_u8(13).filter(|ttl| *ttl != 0).unwrap_or(64),
            options: action.attribute(11).map(geneve).transpose()?.unwrap_or_default(),
            neighbour: None,
        });
        Ok(())
    }

    fn pedit(&mut self, action: &Action) -> Result<(), Refusal> {
        // For each header and command, the bytes that change and their new values.
        let mut images: Vec<Image> = Vec::new();
        for key in action.pedit_keys() {
            let PeditKey { keep, value, offset, relative, header_and_command } = key;
            let Some(place @ (header, _)) = header_and_command.filter(|(header, _)| *header != 0) else {
                return Err(Refusal::unsupported("legacy pedit isn't offloaded"));
            };
            let offset = offset as usize;
            if relative || offset > 60 || header_of(header).is_none() {
                return Err(Refusal::unsupported("pedit with offset at a place of the frame is not supported"));
            }
            let at = images.iter().position(|(own, ..)| *own == place).unwrap_or_else(|| {
                images.push((place, vec![0; 64], vec![0; 64]));
                images.len() - 1
            });
            let (_, values, masks) = &mut images[at];
            for n in 0..4 {
                let bits = !keep[n];
                if masks[offset + n] & bits != 0 {
                    return Err(Refusal::unsupported("disallow acting twice on same offset"));
                }
                masks[offset + n] |= bits;
                values[offset + n] |= value[n] & bits;
            }
        }
        for ((header, command), values, mut masks) in images {
            for field in EditField::ALL {
                let (of, start, size) = field.place();
                let range = start..start + size;
                if header_of(header) != Some(of) || masks[range.clone()].iter().all(|byte| *byte == 0) {
                    continue;
                }
                let (value, mask) = (values[range.clone()].to_vec(), masks[range.clone()].to_vec());
                masks[range].fill(0);
                let change = match command {
                    0 => Change::Set { value, mask },
                    _ if size > 4 => return Err(Refusal::unsupported("this field can only be set")),
                    _ => Change::Add(value.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))),
                };
                self.actions.push(FlowAction::Edit(Edit { field, change }));
            }
            if masks.iter().any(|byte| *byte != 0) {
                return Err(Refusal::unsupported("attempt to offload an unsupported field"));
            }
        }
        Ok(())
    }

    fn ct(&mut self, action: &Action) -> Result<(), Refusal> {
        let flags = action.number_u16(3).unwrap_or(0);
        if flags & ct::CLEAR != 0 {
            self.actions.push(FlowAction::CtClear);
            return Ok(());
        }
        let label =
            |kind| action.attribute(kind).and_then(|bytes| bytes.first_chunk()).map(|b| u128::from_be_bytes(*b));
        let nat = match (flags & ct::NAT != 0, flags & (ct::NAT_SRC | ct::NAT_DST)) {
            (false, _) => None,
            (true, 0) => Some(Nat::Restore),
            (true, which) => {
                let range = nat_range(action)?;
                Some(if which & ct::NAT_SRC != 0 { Nat::Src(range) } else { Nat::Dst(range) })
            }
        };
        self.actions.push(FlowAction::Ct(Ct {
            zone: action.number_u16(4).unwrap_or(0),
            commit: flags & ct::COMMIT != 0,
            force: flags & ct::FORCE != 0,
            mark: action.number_u32(5).map(|mark| (mark, action.number_u32(6).unwrap_or(u32::MAX))),
            label: label(7).map(|value| (value, label(8).unwrap_or(u128::MAX))),
            nat,
        }));
        Ok(())
    }

    fn police(&mut self, action: &Action) -> Result<(), Refusal> {
        let parms = action.police();
        let rate = action.number_u64(8).unwrap_or(parms.rate.into());
        let packets = action.number_u64(10);
        if parms.peak_rate != 0 {
            return Err(Refusal::unsupported("Offload not supported when peakrate is set"));
        }
        let meter = match packets {
            Some(packets) => {
                Meter { rate: Rate::Packets(packets), burst: packets_in(packets, action.number_u64(11).unwrap_or(0)) }
            }
            None if rate == 0 && parms.mtu != 0 => Meter { rate: Rate::Mtu(parms.mtu), burst: 0 },
            None => {
                let time = Duration::from_nanos(u64::from(parms.burst) * TICK_NS);
                let burst = u128::from(rate) * time.as_nanos() / 1_000_000_000;
                Meter { rate: Rate::Bytes(rate), burst: burst as u64 }
            }
        };
        let id = MeterId(action.index);
        self.meters.push((id, meter));
        // TCA_POLICE_RESULT: what follows if the frame conforms; it is what follows if it exceeds that stands in the
        // parameters.
        let conform = action.number_u32(5).map_or(control::OK, u32::cast_signed);
        let exceed = outcome(action.control())?;
        let conform = match conform {
            // mlx5 takes `ok` for `pipe` (`tc_act_can_offload_police`).
            control::OK => Control::Pipe,
            code => outcome(code)?,
        };
        self.actions.push(FlowAction::Police(Police { meter: id, conform, exceed }));
        Ok(())
    }

    /// Makes jumps to actions of tc jumps to actions of the card.
    fn place_jumps(&mut self) {
        let (starts, end) = (&self.starts, self.actions.len());
        let place = |control: &mut Control| {
            if let Control::Jump(to) = control {
                *to = starts.get(*to).copied().unwrap_or(end);
            }
        };
        for action in &mut self.actions {
            if let FlowAction::Police(police) = action {
                place(&mut police.conform);
                place(&mut police.exceed);
            }
        }
    }
}

/// What follows from a measurement.
fn outcome(code: i32) -> Result<Control, Refusal> {
    match code {
        control::PIPE => Ok(Control::Pipe),
        control::SHOT => Ok(Control::Drop),
        // Counted in actions of tc from the first one, until `place_jumps` (`tcf_action_exec`).
        code if code & !control::EXT_VALUE == control::JUMP => Ok(Control::Jump((code & control::EXT_VALUE) as usize)),
        _ => {
            Err(Refusal::unsupported("Offload not supported when conform-exceed action is not pipe, drop, ok or jump"))
        }
    }
}

/// The header of TCA_PEDIT_KEY_EX_HTYPE.
fn header_of(number: u16) -> Option<Header> {
    Some(match number {
        1 => Header::Eth,
        2 => Header::Ip4,
        3 => Header::Ip6,
        4 => Header::Tcp,
        5 => Header::Udp,
        _ => return None,
    })
}

fn nat_range(action: &Action) -> Result<NatRange, Refusal> {
    let first = action.address(9, 11);
    let last = action.address(10, 12).or(first);
    let unspecified = IpAddr::from([0, 0, 0, 0]);
    let (first, last) = (first.unwrap_or(unspecified), last.unwrap_or(unspecified));
    if first.is_ipv4() != last.is_ipv4() {
        return Err(Refusal::unsupported("a range of addresses has both versions of IP"));
    }
    let port = |kind| action.number_u16(kind).map(u16::from_be);
    let ports = port(13).map(|first| first..=port(14).unwrap_or(first));
    Ok(NatRange { addresses: first..=last, ports })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_packets_is_the_one_that_was_asked_for() {
        // As iproute2 says it: microseconds, rounded up, in ticks of 64 ns.
        let ticks = |rate: u64, burst: u64| (burst as f64 * 1e6 / rate as f64).ceil() as u64 * 1_000 / TICK_NS;
        for (rate, burst) in [(1_000, 10), (3, 1), (7, 100), (100_000, 1_000), (1_000, 0)] {
            assert_eq!(packets_in(rate, ticks(rate, burst)), burst, "{burst} packets at {rate} a second");
        }
        assert_eq!(packets_in(u64::MAX, u64::MAX), u64::MAX);
    }
}
