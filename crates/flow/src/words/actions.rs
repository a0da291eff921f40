//! The actions of a filter: `vlan pop action mirred egress redirect dev NAME`.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::action::{Action, Change, Control, Csum, Ct, Edit, EditField, Nat, NatRange, Police, Sample, VlanTag};
use crate::meter::{Meter, MeterId, Rate};
use crate::parse::{ethertype as types, is_vlan};
use crate::rule::Port;
use crate::tunnel::{Encap, Neighbour, TunnelDevice, TunnelKind};

use super::values::{self, ethertype, ethertype_word, hex, number, number_of, u8_of, u16_of, u32_of};
use super::{Device, Names, Parsed, Words, matches, tunnel_name};

/// The kinds of action.
const KINDS: [&str; 14] = [
    "mirred",
    "drop",
    "trap",
    "goto",
    "vlan",
    "pedit",
    "csum",
    "tunnel_key",
    "ct",
    "police",
    "sample",
    "dec_ttl",
    "shot",
    "gact",
];

/// The highest chain and the highest count of a control (TC_ACT_EXT_VAL_MASK).
const MAX_EXTENDED: u32 = 0x0fff_ffff;

/// What is written as it stands for what follows from an action.
const CONTROLS: [&str; 10] = ["pipe", "drop", "shot", "pass", "ok", "continue", "reclassify", "goto", "jump", "trap"];

/// A tunnel whose kind is not said yet.
#[derive(Debug)]
struct OpenTunnel {
    /// The place of its action.
    place: usize,
    /// The place of its word.
    word: usize,
    /// Whether its port was said.
    has_port: bool,
}

/// Actions as they are read.
struct Reader<'w, 't, 'n> {
    words: &'w mut Words<'t>,
    names: &'n Names<'n>,
    actions: Vec<Action>,
    meters: Vec<(MeterId, Meter)>,
    next_meter: u32,
    /// At which place each action of tc begins. One of tc can be several here.
    starts: Vec<usize>,
    open_tunnel: Option<OpenTunnel>,
}

/// Actions, and the meters that they bring.
type ActionsAndMeters = (Vec<Action>, Vec<(MeterId, Meter)>);

/// Reads `action …`, to the end of the words.
pub(super) fn read(words: &mut Words<'_>, names: &Names<'_>) -> Parsed<ActionsAndMeters> {
    let next_meter = names.free_meter;
    let (actions, meters, starts) = Default::default();
    let mut reader = Reader { words, names, actions, meters, next_meter, starts, open_tunnel: None };
    while reader.words.peek().is_some() {
        // Only the first one needs the word (parse_action).
        if !reader.words.take("action") && reader.starts.is_empty() {
            reader.words.expect("action")?;
        }
        reader.starts.push(reader.actions.len());
        reader.action()?;
    }
    if let Some(open) = &reader.open_tunnel {
        let mut wrong = reader.words.wrong("");
        wrong.place = open.word;
        wrong.word = "tunnel_key".into();
        wrong.why = "no output follows to a tunnel device".into();
        return Err(wrong);
    }
    reader.place_jumps();
    Ok((reader.actions, reader.meters))
}

impl Reader<'_, '_, '_> {
    fn action(&mut self) -> Parsed<()> {
        let is_gact = self.words.take("gact");
        let kind = self.words.value("the kind of action")?;
        match kind {
            "drop" | "shot" => self.actions.push(Action::Drop),
            "trap" => self.actions.push(Action::Trap),
            "goto" => self.goto()?,
            "pass" | "ok" => {
                let why = "the card has no such action: a frame that no rule carries on goes to the representor";
                return Err(self.words.wrong(why));
            }
            "pipe" | "continue" | "reclassify" | "jump" => {
                return Err(self.words.wrong("this cannot stand alone here: drop, trap or goto chain N can"));
            }
            _ if is_gact => return Err(self.words.unknown(["drop", "trap", "goto"].into_iter())),
            "mirred" => return self.mirred(),
            "vlan" => self.vlan()?,
            "pedit" => return self.pedit(),
            "csum" => return self.csum(),
            "tunnel_key" => self.tunnel_key()?,
            "ct" => self.ct()?,
            "police" => return self.police(),
            "sample" => self.sample()?,
            "dec_ttl" => self.actions.push(Action::DecTtl),
            _ => return Err(self.words.unknown(KINDS.into_iter())),
        }
        match kind {
            "drop" | "shot" | "trap" | "goto" => Ok(()),
            _ => self.control(true),
        }
    }

    fn goto(&mut self) -> Parsed<()> {
        self.words.expect("chain")?;
        let number = |word: &str| u32_of(word, 10).filter(|number| *number <= MAX_EXTENDED);
        let chain = self.words.read("the number of a chain, 0 to 268435455,", number)?;
        self.actions.push(Action::Goto(chain));
        Ok(())
    }

    /// Reads what follows from the action, if it is said; else it is the next action, or passing the frame on.
    fn control(&mut self, pipes: bool) -> Parsed<()> {
        let Some(word) = self.words.peek().filter(|word| CONTROLS.contains(word)) else {
            if pipes || self.words.peek().is_none() {
                return Ok(());
            }
            return Err(self.words.wrong_next("\"pipe\" must stand before: without it, tc ends the rule here"));
        };
        self.words.next();
        match word {
            "pipe" => {}
            "drop" | "shot" => self.actions.push(Action::Drop),
            "trap" => self.actions.push(Action::Trap),
            "goto" => self.goto()?,
            "jump" => return Err(self.words.wrong("only police can jump")),
            _ => return Err(self.words.wrong("the card can do pipe, drop, trap and goto chain N only")),
        }
        Ok(())
    }

    /// `mirred egress redirect|mirror dev NAME` (`parse_direction`).
    fn mirred(&mut self) -> Parsed<()> {
        if self.words.take("ingress") {
            return Err(self.words.wrong("the card sends to ports: egress"));
        }
        self.words.expect("egress")?;
        let word = self.words.value("redirect or mirror")?;
        let mirrors = match word {
            "mirror" => true,
            "redirect" => false,
            _ => return Err(self.words.unknown(["redirect", "mirror"].into_iter())),
        };
        self.words.expect("dev")?;
        let name = self.words.value("the name of a device")?;
        let port = match self.names.find(name) {
            Some(Device::Port(port)) if self.open_tunnel.is_some() => {
                let why = format!(
                    "a tunnel is set, and {name} is {port}, no tunnel device. Else say \"tunnel_key set kind KIND\""
                );
                return Err(self.words.wrong(why));
            }
            Some(Device::Port(port)) => port,
            Some(Device::Tunnel(device)) => self.tunnel_output(device)?,
            None => return Err(self.words.wrong(format!("Cannot find device \"{name}\""))),
        };
        self.actions.push(if mirrors { Action::Mirror(port) } else { Action::Redirect(port) });
        if mirrors {
            return self.control(true);
        }
        match self.words.peek() {
            Some(word) if CONTROLS.contains(&word) => Err(self.words.wrong_next("a redirect ends the rule")),
            _ => Ok(()),
        }
    }

    /// An output to a tunnel device, whose kind and port the tunnel that was set takes.
    fn tunnel_output(&mut self, device: TunnelDevice) -> Parsed<Port> {
        let Some(open) = self.open_tunnel.take() else {
            return Err(self.words.wrong("tunnel_key set must say before where the tunnel goes"));
        };
        if let Some(Action::TunnelSet(encap)) = self.actions.get_mut(open.place) {
            encap.kind = device.kind;
            if !open.has_port {
                encap.dst_port = device.udp_port;
            }
        }
        Ok(self.names.uplink)
    }

    /// `vlan pop|push|modify` (`parse_vlan`).
    fn vlan(&mut self) -> Parsed<()> {
        let kind = self.words.value("pop, push or modify")?;
        match kind {
            "pop" => self.actions.push(Action::VlanPop),
            "push" | "modify" => {
                let (mut id, mut tpid, mut priority) = (None, types::VLAN, None);
                while let Some(word) = self.words.peek() {
                    match word {
                        "id" | "protocol" | "priority" => self.words.next(),
                        _ => break,
                    };
                    let vlan = |word: &str| u16_of(word, 0).filter(|id| *id <= 4095);
                    let tag = |word: &str| ethertype(word).filter(|tpid| is_vlan(*tpid));
                    match word {
                        "id" => id = Some(self.words.read("a VLAN from 0 to 4095", vlan)?),
                        "protocol" => tpid = self.words.read("802.1Q or 802.1ad", tag)?,
                        _ => {
                            let number = |word: &str| u8_of(word, 0).filter(|priority| *priority <= 7);
                            priority = Some(self.words.read("a priority from 0 to 7", number)?);
                        }
                    }
                }
                let id = id.ok_or_else(|| self.words.wrong_next(format!("id needs to be set for {kind}")))?;
                self.actions.push(match kind {
                    "push" => Action::VlanPush(VlanTag { tpid, id, priority: priority.unwrap_or(0) }),
                    _ => Action::VlanModify { tpid, id, priority },
                });
            }
            _ => return Err(self.words.unknown(["pop", "push", "modify"].into_iter())),
        }
        Ok(())
    }

    /// `pedit ex munge HEADER FIELD set|add VALUE [retain BITS] [munge …]` (`parse_pedit`).
    fn pedit(&mut self) -> Parsed<()> {
        self.words.expect("ex")?;
        self.words.expect("munge")?;
        loop {
            let edit = self.munge()?;
            self.actions.push(Action::Edit(edit));
            if !self.words.take("munge") {
                return self.control(false);
            }
        }
    }

    fn munge(&mut self) -> Parsed<Edit> {
        let header = self.words.value("eth, ip, ip6, tcp or udp")?;
        if !EDITS.iter().any(|(own, ..)| *own == header) {
            return Err(self.words.unknown(["eth", "ip", "ip6", "tcp", "udp"].into_iter()));
        }
        let name = self.words.value("a field")?;
        let of_header = EDITS.iter().filter(|(own, ..)| *own == header);
        let Some((.., field, format)) = of_header.clone().find(|(_, own, ..)| *own == name) else {
            return Err(self.words.unknown(of_header.map(|(_, name, ..)| *name)));
        };
        let command = self.words.value("set, add, clear or decrement")?;
        let size = field.size();
        let whole = format.whole(size);
        match command {
            "set" => {
                let value = self.words.read(format.wanted(), |word| format.read(word, size))?;
                let mask = self.retain(*format, size)?.unwrap_or(whole);
                let value = value.iter().zip(&mask).map(|(value, mask)| value & mask).collect();
                Ok(Edit { field: *field, change: Change::Set { value, mask } })
            }
            "clear" => {
                let mask = self.retain(*format, size)?.unwrap_or(whole);
                Ok(Edit { field: *field, change: Change::Set { value: vec![0; size], mask } })
            }
            "add" if size <= 4 => {
                let value = self.words.read(format.wanted(), |word| format.read(word, size))?;
                let value = value.iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
                Ok(Edit { field: *field, change: Change::Add(value) })
            }
            "decrement" if matches!(field, EditField::Ip4Ttl | EditField::Ip6HopLimit) => {
                Ok(Edit { field: *field, change: Change::Add(0xff) })
            }
            "add" | "decrement" => Err(self.words.wrong(format!("the field {name} can be set only"))),
            "invert" | "preserve" => Err(self.words.wrong("the card can set and add only")),
            _ => Err(self.words.unknown(["set", "add", "clear", "decrement"].into_iter())),
        }
    }

    fn retain(&mut self, format: EditFormat, size: usize) -> Parsed<Option<Vec<u8>>> {
        if !self.words.take("retain") {
            return Ok(None);
        }
        let format = if format == EditFormat::Ip4 { EditFormat::Ip4Bits } else { format };
        self.words.read(format.wanted(), |word| format.read(word, size)).map(Some)
    }

    /// `csum iph and tcp …` (`parse_csum_args`).
    fn csum(&mut self) -> Parsed<()> {
        let mut bits = 0;
        while let Some(word) = self.words.peek() {
            let named = CSUMS.iter().find(|(own, _)| *own == word);
            match (named, word) {
                (Some((_, bit)), _) => bits |= bit.0,
                (None, "i" | "ip" | "ip4" | "ip4h" | "ipv4" | "ipv4h") => bits |= Csum::IP4_HEADER.0,
                (None, "and" | "or" | "+") => {}
                (None, _) => break,
            }
            self.words.next();
        }
        if bits == 0 {
            return Err(self
                .words
                .wrong_next("a checksum must stand here: iph, icmp, igmp, tcp, udp, udplite or sctp"));
        }
        self.actions.push(Action::Csum(Csum(bits)));
        self.control(false)
    }

    /// `tunnel_key set|unset` (`parse_tunnel_key`).
    fn tunnel_key(&mut self) -> Parsed<()> {
        let word = self.words.next;
        if self.words.take("unset") {
            self.actions.push(Action::TunnelUnset);
            return Ok(());
        }
        self.words.expect("set")?;
        let (mut kind, mut id, mut src, mut dst, mut dst_port) = (None, None, None, None, None);
        let (mut tos, mut ttl, mut options, mut neighbour) = (0, DEFAULT_TTL, Vec::new(), None);
        let byte = |word: &str| u8_of(word, 10).or_else(|| u8_of(word, 16));
        while let Some(word) = self.words.peek().filter(|word| TUNNEL_WORDS.contains(word)) {
            self.words.next();
            match word {
                "kind" => kind = Some(self.words.read("vxlan, geneve or gre", tunnel_kind)?),
                "id" => id = Some(self.words.read("an identifier in decimal", |word| u32_of(word, 10))?),
                "src_ip" => src = Some(self.words.read::<IpAddr>("an address", |word| word.parse().ok())?),
                "dst_ip" => dst = Some(self.words.read::<IpAddr>("an address", |word| word.parse().ok())?),
                "dst_port" => dst_port = Some(self.words.read("a port in decimal", |word| u16_of(word, 10))?),
                "tos" => tos = self.words.read("a number from 0 to 255", byte)?,
                "ttl" => {
                    let ttl_or_default = self.words.read("a number from 0 to 255", byte)?;
                    ttl = if ttl_or_default == 0 { DEFAULT_TTL } else { ttl_or_default };
                }
                "geneve_opts" => {
                    options = self.words.read("options as 0102:80:00112233, parted by commas,", read_options)?;
                }
                "neighbour" => neighbour = Some(self.words.read("two MAC addresses: DST/SRC", read_neighbour)?),
                "nofrag" => return Err(self.words.wrong("the card's outer header may be fragmented")),
                // Without a word tc asks for a checksum of UDP, which mlx5 does not make (mlx5e_gen_ip_tunnel_header_*).
                _ => {}
            }
        }
        let (Some(src), Some(dst)) = (src, dst) else {
            return Err(self.words.wrong_next("set needs tunnel_key parameters: src_ip and dst_ip"));
        };
        if kind.is_none() {
            self.open_tunnel = Some(OpenTunnel { place: self.actions.len(), word, has_port: dst_port.is_some() });
        }
        let (kind, dst_port) = (kind.unwrap_or(TunnelKind::Vxlan), dst_port.unwrap_or(0));
        self.actions.push(Action::TunnelSet(Encap { kind, id, src, dst, dst_port, tos, ttl, options, neighbour }));
        Ok(())
    }

    /// `ct [commit [force]] [zone N] [mark M/B] [label L/B] [nat [src|dst addr A-B [port P-Q]]]`, `ct clear` (`parse_ct`).
    fn ct(&mut self) -> Parsed<()> {
        if self.words.take("clear") {
            self.actions.push(Action::CtClear);
            return Ok(());
        }
        let mut ct = Ct::default();
        while let Some(word) = self.words.peek().filter(|word| CT_WORDS.contains(word)) {
            self.words.next();
            match word {
                "commit" => ct.commit = true,
                "force" => ct.force = true,
                "zone" => ct.zone = self.words.read("a zone from 0 to 65535", |word| u16_of(word, 0))?,
                "mark" => {
                    let read = |word: &str| masked(word, u32::MAX, |part| u32_of(part, 0));
                    ct.mark = Some(self.words.read("a mark, as 5 or 0x5/0xff,", read)?);
                }
                "label" => {
                    let part = |part: &str| Some(u128::from_be_bytes(matches::label(part)?.try_into().ok()?));
                    let read = |word: &str| masked(word, u128::MAX, part);
                    ct.label = Some(self.words.read("at most 32 hexadecimal digits, two for a byte,", read)?);
                }
                "nat" => ct.nat = Some(self.nat()?),
                "clear" => return Err(self.words.wrong("ct: clear can only be used alone")),
                _ => return Err(self.words.wrong("the card has no helpers")),
            }
        }
        if matches!(ct.nat, Some(Nat::Src(_) | Nat::Dst(_))) && !ct.commit {
            return Err(self.words.wrong("ct: src or dst is only valid if commit is set"));
        }
        self.actions.push(Action::Ct(ct));
        Ok(())
    }

    fn nat(&mut self) -> Parsed<Nat> {
        let is_src = match self.words.peek() {
            Some("src") => true,
            Some("dst") => false,
            _ => return Ok(Nat::Restore),
        };
        self.words.next();
        self.words.expect("addr")?;
        let addresses = self
            .words
            .read("an address, or two as 10.0.0.1-10.0.0.9,", |word| range(word, |part| part.parse::<IpAddr>().ok()))?;
        let ports = match self.words.take("port") {
            true => Some(self.words.read("a port, or two as 1000-2000,", |word| range(word, |part| u16_of(part, 10)))?),
            false => None,
        };
        let range = NatRange { addresses, ports };
        Ok(if is_src { Nat::Src(range) } else { Nat::Dst(range) })
    }

    /// `police [index N] [rate R burst B | pkts_rate R pkts_burst B | mtu N] [conform-exceed EXCEED[/CONFORM]]`
    /// (`act_parse_police`).
    fn police(&mut self) -> Parsed<()> {
        let (mut index, mut rate, mut burst, mut packets, mut packet_burst) = (None, None, None, None, None);
        let (mut mtu, mut conform, mut exceed) = (None, Control::Pipe, None);
        while let Some(word) = self.words.peek().filter(|word| *word != "action" && !is_other_kind(word)) {
            self.words.next();
            match word {
                "index" => {
                    let number = |word: &str| u32_of(word, 10).filter(|number| *number != 0);
                    index = Some(self.words.read("the number of a meter from 1 on", number)?);
                }
                "rate" => rate = Some(self.words.read("a rate, as 10mbit,", values::rate)?),
                "burst" | "buffer" | "maxburst" => burst = Some(self.words.read("a size, as 10k,", values::size)?),
                "pkts_rate" => packets = Some(self.words.read("a number of packets", u64_of)?),
                "pkts_burst" => packet_burst = Some(self.words.read("a number of packets", u64_of)?),
                "conform-exceed" => (exceed, conform) = self.conform_exceed()?,
                "mtu" | "minburst" => {
                    let size = |word: &str| u32::try_from(values::size(word)?).ok().filter(|size| *size != 0);
                    mtu = Some(self.words.read("a size, as 1514,", size)?);
                }
                "mpu" | "avrate" | "peakrate" | "overhead" | "linklayer" => {
                    return Err(self.words.wrong(format!("the card's meters have no {word}")));
                }
                _ => exceed = Some(self.police_control(word)?),
            }
        }
        if mtu.is_some() && (rate.is_some() || packets.is_some()) {
            return Err(self
                .words
                .wrong_next("a meter has a rate or an mtu: mlx5 does not look at the mtu of one with a rate"));
        }
        let rate = match (rate, packets) {
            (Some(_), Some(_)) => {
                return Err(self.words.wrong_next("'rate' and 'pkts_rate' are not allowed in same action."));
            }
            (Some(rate), None) => {
                let burst = burst.ok_or_else(|| self.words.wrong_next("'burst' requires 'rate'."))?;
                Some((Rate::Bytes(rate), burst))
            }
            (None, Some(rate)) => {
                let burst = packet_burst.ok_or_else(|| self.words.wrong_next("'pkts_burst' requires 'pkts_rate'."))?;
                Some((Rate::Packets(rate), burst))
            }
            (None, None) => mtu.map(|mtu| (Rate::Mtu(mtu), 0)),
        };
        let meter = rate.map(|(rate, burst)| Meter { rate, burst });
        if meter.is_none() && index.is_none() {
            let why = "'rate' or 'mtu' or 'pkts_rate' MUST be specified, or the 'index' of a meter.";
            return Err(self.words.wrong_next(why));
        }
        let index = index.unwrap_or_else(|| {
            self.next_meter += 1;
            self.next_meter - 1
        });
        self.meters.extend(meter.map(|meter| (MeterId(index), meter)));
        // A meter that is there has, in tc, what follows from it too, and Open vSwitch's drop.
        let exceed = exceed.or(meter.is_none().then_some(Control::Drop)).ok_or_else(|| {
            self.words
                .wrong_next("\"conform-exceed drop\" must say what follows: without it, tc reclassifies the frame")
        })?;
        self.actions.push(Action::Police(Police { meter: MeterId(index), conform, exceed }));
        Ok(())
    }

    /// What follows from exceeding, and what from conforming: `drop/pipe`, also with spaces.
    fn conform_exceed(&mut self) -> Parsed<(Option<Control>, Control)> {
        let text = self.words.value("what follows, as drop/pipe,")?;
        let (exceed, conform) = match text.split_once('/') {
            Some((exceed, conform)) => (exceed, Some(conform)),
            None => (text, None),
        };
        let exceed = self.police_control(exceed)?;
        let conform = match conform {
            Some(conform) => self.police_control(conform)?,
            None if self.words.take("/") => {
                let word = self.words.value("what follows from conforming")?;
                self.police_control(word)?
            }
            None => Control::Pipe,
        };
        Ok((Some(exceed), conform))
    }

    /// What follows from a measurement. A jump has tc's number of the action until [`Reader::place_jumps`].
    fn police_control(&mut self, word: &str) -> Parsed<Control> {
        match word {
            // mlx5 takes ok for pipe.
            "pipe" | "pass" | "ok" => Ok(Control::Pipe),
            "drop" | "shot" => Ok(Control::Drop),
            "jump" => {
                let number = |word: &str| u32_of(word, 10).filter(|number| *number <= MAX_EXTENDED);
                Ok(Control::Jump(self.words.read("the number of an action, counted from 0,", number)? as usize))
            }
            "reclassify" | "continue" | "goto" => {
                Err(self.words.wrong("the card can do pipe, drop and jump N after a measurement"))
            }
            _ => Err(self.words.unknown(
                ["index", "rate", "burst", "pkts_rate", "pkts_burst", "mtu", "conform-exceed", "drop", "pipe", "jump"]
                    .into_iter(),
            )),
        }
    }

    /// Makes the numbers of tc's actions those of the actions here.
    fn place_jumps(&mut self) {
        let (starts, end) = (&self.starts, self.actions.len());
        let place = |control: &mut Control| {
            if let Control::Jump(number) = control {
                *number = starts.get(*number).copied().unwrap_or(end + *number - starts.len());
            }
        };
        for action in &mut self.actions {
            if let Action::Police(police) = action {
                place(&mut police.conform);
                place(&mut police.exceed);
            }
        }
    }

    /// `sample rate N group G [trunc T]` (`parse_sample`).
    fn sample(&mut self) -> Parsed<()> {
        let (mut rate, mut group, mut truncate) = (None, None, None);
        while let Some(word) = self.words.peek().filter(|word| ["rate", "group", "trunc"].contains(word)) {
            self.words.next();
            let value = Some(self.words.read("a decimal number", |word| u32_of(word, 10))?);
            match word {
                "rate" => rate = value,
                "group" => group = value,
                _ => truncate = value,
            }
        }
        let rate = rate.ok_or_else(|| self.words.wrong_next("param \"rate\" not set"))?;
        let group = group.ok_or_else(|| self.words.wrong_next("param \"group\" not set"))?;
        self.actions.push(Action::Sample(Sample { rate, group, truncate }));
        Ok(())
    }
}

/// What mlx5 takes if no time to live is said (`mlx5e_tc_tun_create_header_ipv4`: that of the route, by default 64).
const DEFAULT_TTL: u8 = 64;

const TUNNEL_WORDS: [&str; 12] = [
    "kind",
    "id",
    "src_ip",
    "dst_ip",
    "dst_port",
    "tos",
    "ttl",
    "geneve_opts",
    "neighbour",
    "csum",
    "nocsum",
    "nofrag",
];

const CT_WORDS: [&str; 8] = ["commit", "force", "zone", "mark", "label", "nat", "clear", "helper"];

const CSUMS: [(&str, Csum); 7] = [
    ("iph", Csum::IP4_HEADER),
    ("icmp", Csum::ICMP),
    ("igmp", Csum::IGMP),
    ("tcp", Csum::TCP),
    ("udp", Csum::UDP),
    ("udplite", Csum::UDPLITE),
    ("sctp", Csum::SCTP),
];

/// How the value of a rewritten field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EditFormat {
    Number,
    Mac,
    Ip4,
    /// The bits of an address of IPv4, as a number.
    Ip4Bits,
    Ip6,
    /// The bits 0x0ff0 of the field, as a number of 8 bits.
    TrafficClass,
}

/// The fields of `pedit` (`p_eth.c`, `p_ip.c`, `p_ip6.c`, `p_tcp.c`, `p_udp.c`).
const EDITS: &[(&str, &str, EditField, EditFormat)] = &[
    ("eth", "dst", EditField::EthDst, EditFormat::Mac),
    ("eth", "src", EditField::EthSrc, EditFormat::Mac),
    ("eth", "type", EditField::EthType, EditFormat::Number),
    ("ip", "src", EditField::Ip4Src, EditFormat::Ip4),
    ("ip", "dst", EditField::Ip4Dst, EditFormat::Ip4),
    ("ip", "tos", EditField::Ip4Tos, EditFormat::Number),
    ("ip", "dsfield", EditField::Ip4Tos, EditFormat::Number),
    ("ip", "ttl", EditField::Ip4Ttl, EditFormat::Number),
    ("ip6", "src", EditField::Ip6Src, EditFormat::Ip6),
    ("ip6", "dst", EditField::Ip6Dst, EditFormat::Ip6),
    ("ip6", "traffic_class", EditField::Ip6TrafficClass, EditFormat::TrafficClass),
    ("ip6", "first_bytes", EditField::Ip6TrafficClass, EditFormat::Number),
    ("ip6", "hoplimit", EditField::Ip6HopLimit, EditFormat::Number),
    ("tcp", "sport", EditField::TcpSrc, EditFormat::Number),
    ("tcp", "dport", EditField::TcpDst, EditFormat::Number),
    ("tcp", "flags", EditField::TcpFlags, EditFormat::Number),
    ("udp", "sport", EditField::UdpSrc, EditFormat::Number),
    ("udp", "dport", EditField::UdpDst, EditFormat::Number),
];

impl EditFormat {
    fn read(self, word: &str, size: usize) -> Option<Vec<u8>> {
        let last = |number: u128| number.to_be_bytes()[16 - size..].to_vec();
        match self {
            EditFormat::Mac => values::mac(word).map(|mac| mac.to_vec()),
            EditFormat::Ip4 | EditFormat::Ip6 => {
                Some(values::octets(word.parse().ok()?)).filter(|own| own.len() == size)
            }
            EditFormat::Number | EditFormat::Ip4Bits => number_of(word, 0, size).map(last),
            EditFormat::TrafficClass => {
                number(word, 0).filter(|number| *number <= 0xff).map(|number| last(number << 4))
            }
        }
    }

    /// The bits that change if none are said.
    fn whole(self, size: usize) -> Vec<u8> {
        if self == EditFormat::TrafficClass { vec![0x0f, 0xf0] } else { vec![0xff; size] }
    }

    fn show(self, bytes: &[u8]) -> String {
        let number = bytes.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte));
        match self {
            EditFormat::Mac => values::mac_word(bytes),
            EditFormat::Ip4 | EditFormat::Ip6 => values::address(bytes).to_string(),
            EditFormat::Ip4Bits => format!("{number:#x}"),
            EditFormat::Number => number.to_string(),
            EditFormat::TrafficClass => (number >> 4).to_string(),
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            EditFormat::Mac => "a MAC address",
            EditFormat::Ip4 => "an address of IPv4",
            EditFormat::Ip6 => "an address of IPv6",
            EditFormat::Ip4Bits => "bits as a number, as 0xff,",
            EditFormat::Number => "a number that fits into the field",
            EditFormat::TrafficClass => "a number from 0 to 255",
        }
    }
}

/// Whether the word begins another action than the one that is read.
fn is_other_kind(word: &str) -> bool {
    KINDS.contains(&word) && !CONTROLS.contains(&word)
}

fn u64_of(word: &str) -> Option<u64> {
    u64::try_from(number(word, 10)?).ok()
}

fn tunnel_kind(word: &str) -> Option<TunnelKind> {
    match word {
        "vxlan" => Some(TunnelKind::Vxlan),
        "geneve" => Some(TunnelKind::Geneve),
        "gre" => Some(TunnelKind::Gre),
        _ => None,
    }
}

/// Options parted by commas, or bytes in hexadecimal.
fn read_options(word: &str) -> Option<Vec<u8>> {
    match word.strip_prefix("0x") {
        Some(digits) => values::bytes(digits),
        None => Some(word.split(',').map(values::geneve_option).collect::<Option<Vec<_>>>()?.concat()),
    }
}

fn read_neighbour(word: &str) -> Option<Neighbour> {
    let (dst, rest) = word.split_once('/')?;
    let (src, from) = rest.split_once('/').map_or((rest, None), |(src, from)| (src, Some(from)));
    let from = from.map(|from| from.parse().ok()).map_or(Some(None), |from| from.map(Some))?;
    Some(Neighbour { dst: values::mac(dst)?, src: values::mac(src)?, from })
}

/// A value and its bits, `all` if none are said.
fn masked<T>(word: &str, all: T, part: impl Fn(&str) -> Option<T>) -> Option<(T, T)> {
    match word.split_once('/') {
        Some((value, mask)) => Some((part(value)?, part(mask)?)),
        None => Some((part(word)?, all)),
    }
}

/// A range, or a range of one.
fn range<T: Copy>(word: &str, part: impl Fn(&str) -> Option<T>) -> Option<RangeInclusive<T>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    Some(part(first)?..=part(last)?)
}

/// Actions as they are written, one after the other.
pub(super) fn show(actions: &[Action], meters: &[(MeterId, Meter)], names: &Names<'_>) -> Vec<String> {
    let outputs = |place: usize| actions[place..].iter().find_map(Action::port);
    // The tunnel that the next output uses.
    let mut pending: Option<TunnelDevice> = None;
    let mut words = Vec::new();
    for (place, action) in actions.iter().enumerate() {
        let device = |port: Port, pending: Option<TunnelDevice>| match pending {
            Some(device) => tunnel_name(device),
            None => (names.port)(port),
        };
        words.push(match action {
            Action::Drop => "drop".into(),
            Action::Trap => "trap".into(),
            Action::Goto(chain) => format!("goto chain {chain}"),
            Action::Redirect(port) => format!("mirred egress redirect dev {}", device(*port, pending.take())),
            Action::Mirror(port) => format!("mirred egress mirror dev {}", device(*port, pending.take())),
            Action::VlanPush(VlanTag { tpid, id, priority }) => {
                format!("vlan push id {id} protocol {} priority {priority} pipe", ethertype_word(*tpid))
            }
            Action::VlanPop => "vlan pop pipe".into(),
            Action::VlanModify { tpid, id, priority } => {
                let priority = priority.map(|priority| format!(" priority {priority}")).unwrap_or_default();
                format!("vlan modify id {id} protocol {}{priority} pipe", ethertype_word(*tpid))
            }
            Action::Edit(edit) => format!("pedit ex munge {} pipe", show_edit(edit)),
            Action::Csum(which) => {
                let named = CSUMS.iter().filter(|(_, bit)| which.has(*bit)).map(|(word, _)| *word);
                format!("csum {} pipe", named.collect::<Vec<_>>().join(" and "))
            }
            Action::DecTtl => "dec_ttl".into(),
            Action::TunnelSet(encap) => {
                let device = TunnelDevice { kind: encap.kind, udp_port: encap.dst_port };
                pending = Some(device).filter(|_| outputs(place) == Some(names.uplink));
                show_tunnel(encap, pending.is_some())
            }
            Action::TunnelUnset => "tunnel_key unset pipe".into(),
            Action::Ct(ct) => show_ct(ct),
            Action::CtClear => "ct clear pipe".into(),
            Action::Police(police) => {
                let meter = meters.iter().find(|(id, _)| *id == police.meter).map(|(_, meter)| meter);
                show_police(police, meter)
            }
            Action::Sample(Sample { rate, group, truncate }) => {
                let truncate = truncate.map(|bytes| format!(" trunc {bytes}")).unwrap_or_default();
                format!("sample rate {rate} group {group}{truncate} pipe")
            }
        });
    }
    words
}

fn show_edit(edit: &Edit) -> String {
    let fits = |format: &EditFormat| match (format, &edit.change) {
        (EditFormat::TrafficClass, Change::Set { mask, .. }) => mask[..] == [mask[0] & 0x0f, mask[1] & 0xf0],
        (EditFormat::TrafficClass, Change::Add(value)) => value & !0x0ff0 == 0,
        _ => true,
    };
    let named = EDITS.iter().find(|(.., field, format)| *field == edit.field && fits(format));
    let Some((header, name, _, format)) = named else { return String::new() };
    let size = edit.field.size();
    match &edit.change {
        Change::Add(value) => {
            let bytes = value.to_be_bytes();
            format!("{header} {name} add {}", format.show(&bytes[4 - size.min(4)..]))
        }
        Change::Set { value, mask } if *mask == format.whole(size) => {
            format!("{header} {name} set {}", format.show(value))
        }
        Change::Set { value, mask } => {
            let bits = if *format == EditFormat::Ip4 { EditFormat::Ip4Bits } else { *format };
            format!("{header} {name} set {} retain {}", format.show(value), bits.show(mask))
        }
    }
}

fn show_tunnel(encap: &Encap, to_device: bool) -> String {
    let kind = match encap.kind {
        _ if to_device => "",
        TunnelKind::Vxlan => " kind vxlan",
        TunnelKind::Geneve => " kind geneve",
        TunnelKind::Gre => " kind gre",
    };
    let mut words = format!("tunnel_key set{kind} src_ip {} dst_ip {}", encap.src, encap.dst);
    words += &encap.id.map(|id| format!(" id {id}")).unwrap_or_default();
    if encap.dst_port != 0 {
        words += &format!(" dst_port {}", encap.dst_port);
    }
    let options = values::geneve_options(&encap.options).map(|ranges| {
        let options = ranges.into_iter().map(|range| values::geneve_option_word(&encap.options[range]));
        options.collect::<Vec<_>>().join(",")
    });
    match options {
        Some(options) if options.is_empty() => {}
        Some(options) => words += &format!(" geneve_opts {options}"),
        None => words += &format!(" geneve_opts 0x{}", hex(&encap.options)),
    }
    if encap.tos != 0 {
        words += &format!(" tos {:#x}", encap.tos);
    }
    if let Some(Neighbour { dst, src, from }) = &encap.neighbour {
        words += &format!(" neighbour {}/{}", values::mac_word(dst), values::mac_word(src));
        words += &from.map(|from| format!("/{from}")).unwrap_or_default();
    }
    format!("{words} ttl {} nocsum pipe", encap.ttl)
}

fn show_ct(ct: &Ct) -> String {
    let mut words = "ct".to_owned();
    words += if ct.commit { " commit" } else { "" };
    words += if ct.force { " force" } else { "" };
    words += &format!(" zone {}", ct.zone);
    if let Some((mark, mask)) = ct.mark {
        words += &format!(" mark {mark:#x}");
        words += &if mask == u32::MAX { String::new() } else { format!("/{mask:#x}") };
    }
    if let Some((label, mask)) = ct.label {
        words += &format!(" label {}", hex(&label.to_be_bytes()));
        words += &if mask == u128::MAX { String::new() } else { format!("/{}", hex(&mask.to_be_bytes())) };
    }
    match &ct.nat {
        None => {}
        Some(Nat::Restore) => words += " nat",
        Some(Nat::Src(range)) => words += &format!(" nat src {}", show_range(range)),
        Some(Nat::Dst(range)) => words += &format!(" nat dst {}", show_range(range)),
    }
    words + " pipe"
}

fn show_range(range: &NatRange) -> String {
    let (first, last) = (range.addresses.start(), range.addresses.end());
    let last = if first == last { String::new() } else { format!("-{last}") };
    let ports = range.ports.as_ref().map(|ports| match (ports.start(), ports.end()) {
        (first, last) if first == last => format!(" port {first}"),
        (first, last) => format!(" port {first}-{last}"),
    });
    format!("addr {first}{last}{}", ports.unwrap_or_default())
}

fn show_police(police: &Police, meter: Option<&Meter>) -> String {
    let rate = match meter {
        None => String::new(),
        Some(Meter { rate: Rate::Bytes(rate), burst }) => format!(" rate {rate}Bps burst {burst}b"),
        Some(Meter { rate: Rate::Packets(rate), burst }) => format!(" pkts_rate {rate} pkts_burst {burst}"),
        Some(Meter { rate: Rate::Mtu(mtu), .. }) => format!(" mtu {mtu}b"),
    };
    let control = |control| match control {
        Control::Pipe => "pipe".into(),
        Control::Drop => "drop".into(),
        Control::Jump(place) => format!("jump {place}"),
    };
    let (exceed, conform) = (control(police.exceed), control(police.conform));
    // With a number, the slash stands alone.
    let parted = if exceed.contains(' ') || conform.contains(' ') { " / " } else { "/" };
    format!("police index {}{rate} conform-exceed {exceed}{parted}{conform}", police.meter.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Header;

    const HEADERS: [(Header, &str); 5] =
        [(Header::Eth, "eth"), (Header::Ip4, "ip"), (Header::Ip6, "ip6"), (Header::Tcp, "tcp"), (Header::Udp, "udp")];

    #[test]
    fn every_field_has_words_of_its_header() {
        for field in EditField::ALL {
            let (header, ..) = EDITS.iter().find(|(.., own, _)| *own == field).expect("words");
            assert!(HEADERS.contains(&(field.place().0, header)), "{field:?}");
        }
    }
}
