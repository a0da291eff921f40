//! The grammar of generated stories: families of commands, with the objects of a small card as their arguments.

use super::random::Random;

/// A small card: its objects are the arguments of commands.
#[derive(Clone, Debug)]
pub(super) struct SmallCard {
    pub pfs: u32,
    pub vfs: u32,
    pub dpu: bool,
    pub switchdev: bool,
    pub rdma: bool,
    pub shared_fdb: bool,
    pub multiport_roce: bool,
}

/// The most VFs of a PF, and the most SFs.
pub(super) const TOTAL_VFS: u32 = 2;
pub(super) const MAX_SFS: u32 = 2;

impl SmallCard {
    /// Draws a card.
    pub(super) fn draw(random: &mut Random) -> Self {
        let dpu = random.percent(12);
        let pfs = if dpu { 1 } else { random.one_of(&[1, 1, 2, 2, 2, 3]) };
        Self {
            pfs,
            vfs: random.one_of(&[0, 1, 1, TOTAL_VFS]),
            dpu,
            switchdev: random.percent(60),
            rdma: random.percent(60),
            shared_fdb: !random.percent(15),
            multiport_roce: pfs == 2 && random.percent(6),
        }
    }

    /// Returns the `[card]` of a scenario file.
    pub(super) fn to_toml(&self) -> String {
        let Self { pfs, vfs, dpu, .. } = self;
        let mut text = format!(
            "[card]\naddress = \"{}\"\npfs = {pfs}\ntotal_vfs = {TOTAL_VFS}\nvfs = {vfs}\nmax_sfs = {MAX_SFS}\nvf_msix = 64\n",
            self.address(0)
        );
        if self.switchdev {
            text += "mode = \"switchdev\"\n";
        }
        if self.rdma {
            text += "modules = [\"mlx5_ib\"]\n";
        }
        for (key, differs) in [("dpu", *dpu), ("multiport_roce", self.multiport_roce)] {
            if differs {
                text += &format!("{key} = true\n");
            }
        }
        if !self.shared_fdb {
            text += "shared_fdb = false\n";
        }
        text
    }

    fn address(&self, pf: u32) -> String {
        format!("0000:{}:00.{pf}", if self.dpu { "03" } else { "08" })
    }

    fn bus(&self) -> u32 {
        if self.dpu { 3 } else { 8 }
    }

    fn vf_address(&self, pf: u32, vf: u32) -> String {
        let function = self.pfs + pf * TOTAL_VFS + vf;
        format!("0000:08:{:02x}.{}", function / 8, function % 8)
    }

    fn device(&self, pf: u32) -> String {
        format!("pci/{}", self.address(pf))
    }

    fn port(&self, pf: u32, vport: u32) -> String {
        format!("{}/{}", self.device(pf), pf * 65_536 + vport)
    }

    fn sf(&self, random: &mut Random) -> String {
        let pf = self.pf(random);
        self.port(pf, 32_768 + random.below(MAX_SFS))
    }

    /// Draws a PF, the first one most often.
    fn pf(&self, random: &mut Random) -> u32 {
        if random.percent(40) { 0 } else { random.below(self.pfs) }
    }

    fn function(&self, random: &mut Random) -> String {
        let pf = self.pf(random);
        if self.dpu || random.percent(35) { self.address(pf) } else { self.vf_address(pf, random.below(TOTAL_VFS)) }
    }

    fn netdev(&self, pf: u32) -> String {
        format!("enp{}s0f{pf}np{pf}", self.bus())
    }

    fn representor(&self, random: &mut Random) -> String {
        let pf = self.pf(random);
        if self.dpu || random.percent(15) {
            return self.netdev(pf);
        }
        format!("enp8s0f{pf}npf{pf}vf{}", random.below(TOTAL_VFS))
    }
}

/// A family of commands that work on the same objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    Mode,
    Reload,
    Sf,
    SfDriver,
    Vfs,
    Functions,
    Bus,
    Rdma,
    Core,
    Bond,
    Multiport,
    Rules,
    Tunnels,
    Settings,
    Namespaces,
    Host,
    Failures,
    Rest,
    Looks,
}

use Family::*;

/// The families, those that change most more often.
const DRAWN: &[Family] = &[
    Mode, Mode, Mode, Reload, Sf, Sf, Sf, SfDriver, Vfs, Vfs, Functions, Bus, Rdma, Rdma, Rdma, Core, Bond, Bond, Bond,
    Multiport, Multiport, Rules, Rules, Rules, Tunnels, Settings, Namespaces, Host, Failures, Failures, Failures, Rest,
    Looks,
];

const FRAME: &str = "eth src 02:00:00:00:00:ff dst 02:00:00:00:00:02 / data 46";
const TUNNEL: &str = "action tunnel_key set src_ip 192.0.2.1 dst_ip 192.0.2.2 id 5 dst_port 4789 kind vxlan";

impl Family {
    /// Draws the families of one story. Most are left out, so that those that are left meet often.
    pub(super) fn draw_some(random: &mut Random, card: &SmallCard) -> Vec<Self> {
        let count = random.one_of(&[2, 2, 3, 3, 4, 5]);
        let mut families: Vec<Self> = Vec::new();
        while families.len() < count {
            let family = random.one_of(DRAWN);
            if family.fits(card) && !families.contains(&family) {
                families.push(family);
            }
        }
        families
    }

    /// Returns whether the card has the objects of these commands.
    fn fits(self, card: &SmallCard) -> bool {
        match self {
            Bond | Multiport => card.pfs > 1,
            Host => card.dpu,
            Vfs | Functions | Bus | Settings => !card.dpu,
            _ => true,
        }
    }

    /// Draws a step.
    pub(super) fn step(self, card: &SmallCard, random: &mut Random) -> String {
        let pf = card.pf(random);
        let (device, address, netdev) = (card.device(pf), card.address(pf), card.netdev(pf));
        match self {
            Mode => mode(&device, random),
            Reload => format!("devlink dev reload {device}"),
            Sf => sf(card, pf, random),
            SfDriver => format!(
                "echo mlx5_core.sf.{} > /sys/bus/auxiliary/drivers/mlx5_core.sf/{}",
                random.below(MAX_SFS),
                random.one_of(&["bind", "unbind"])
            ),
            Vfs => format!("echo {} > /sys/bus/pci/devices/{address}/sriov_numvfs", random.below(TOTAL_VFS + 1)),
            Functions => function(card, &address, random),
            Bus => match random.below(3) {
                0 => "echo 1 > /sys/bus/pci/rescan".to_owned(),
                1 => format!("echo 1 > /sys/bus/pci/devices/{}/remove", card.function(random)),
                _ => format!("echo 1 > /sys/bus/pci/devices/{}/reset", card.function(random)),
            },
            Rdma => random
                .one_of(&[
                    "modprobe mlx5_ib",
                    "modprobe mlx5_ib",
                    "rmmod mlx5_ib",
                    "modprobe -r mlx5_ib",
                    "insmod mlx5_ib",
                ])
                .to_owned(),
            Core => random.one_of(&["rmmod mlx5_core", "modprobe mlx5_core", "insmod mlx5_core"]).to_owned(),
            Bond => bond(card, random),
            Multiport => format!(
                "devlink dev param set {device} name esw_multiport value {} cmode runtime",
                random.one_of(&["true", "true", "false"])
            ),
            Rules => rule(card, random),
            Tunnels => tunnel(card, &netdev, random),
            Settings => {
                let setting = ["mac 00:11:22:33:44:55", "vlan 5", "max_tx_rate 100", "spoofchk on", "state disable"];
                format!("ip link set {netdev} vf {} {}", random.below(TOTAL_VFS), random.one_of(&setting))
            }
            Namespaces => format!("ip link set {netdev} netns {}", random.one_of(&["blue", "home"])),
            Host => format!("host {address} sriov_numvfs {}", random.below(TOTAL_VFS + 1)),
            Failures => failure(card, &device, random),
            Rest => random.one_of(&["wait settled", "wait retries"]).to_owned(),
            Looks => match random.below(3) {
                0 => "devlink port show".to_owned(),
                1 => format!("devlink dev eswitch show {device}"),
                _ => format!("devlink dev show {device}"),
            },
        }
    }

    /// Draws steps that bring the objects of the family into a state in which its commands do something.
    pub(super) fn preparation(self, card: &SmallCard, random: &mut Random) -> Vec<String> {
        match self {
            Sf | SfDriver => (0..=random.below(MAX_SFS))
                .flat_map(|sf| {
                    let add = format!("devlink port add {} flavour pcisf pfnum 0 sfnum {}", card.device(0), 88 + sf);
                    let port = card.port(0, 32_768 + sf);
                    let activate = format!("devlink port function set {port} state active");
                    if random.percent(60) { vec![add, activate] } else { vec![add] }
                })
                .collect(),
            Bond => vec![bond_made(card, random)],
            Multiport => {
                vec![format!("devlink dev param set {} name esw_multiport value true cmode runtime", card.device(0))]
            }
            Rules => vec![rule_added(card, random)],
            Tunnels => vec![tunnel_rule(card), Tunnels.step(card, random)],
            Functions | Bus => vec![self.step(card, random)],
            _ => Vec::new(),
        }
    }
}

fn mode(device: &str, random: &mut Random) -> String {
    match random.below(12) {
        0 => format!("devlink dev eswitch set {device} mode switchdev_inactive"),
        1 => format!("devlink dev eswitch set {device} encap-mode {}", random.one_of(&["none", "basic"])),
        2 => format!("devlink dev eswitch set {device} inline-mode none"),
        n => format!("devlink dev eswitch set {device} mode {}", if n % 2 == 0 { "legacy" } else { "switchdev" }),
    }
}

fn sf(card: &SmallCard, pf: u32, random: &mut Random) -> String {
    let port = card.sf(random);
    match random.below(9) {
        0 | 1 => {
            let number = 88 + random.below(MAX_SFS);
            format!("devlink port add {} flavour pcisf pfnum {pf} sfnum {number}", card.device(pf))
        }
        2 | 3 => format!("devlink port del {port}"),
        4 | 5 => format!("devlink port function set {port} state active"),
        6 => format!("devlink port function set {port} state inactive"),
        7 => format!("devlink port function set {port} hw_addr 00:11:22:33:44:55"),
        _ => format!("devlink port function set {port} roce {}", random.one_of(&["enable", "disable"])),
    }
}

fn function(card: &SmallCard, pf: &str, random: &mut Random) -> String {
    let function = card.function(random);
    match random.below(10) {
        0..=2 => format!("echo {function} > /sys/bus/pci/drivers/mlx5_core/unbind"),
        3..=5 => format!("echo {function} > /sys/bus/pci/drivers/mlx5_core/bind"),
        6 => format!("echo {function} > /sys/bus/pci/drivers_probe"),
        7 => {
            let driver = random.one_of(&["vfio-pci", "mlx5_core", "\"\""]);
            format!("echo {driver} > /sys/bus/pci/devices/{function}/driver_override")
        }
        8 => format!("echo {} > /sys/bus/pci/devices/{pf}/sriov_drivers_autoprobe", random.below(2)),
        _ => format!("echo {} > /sys/bus/pci/devices/{function}/sriov_vf_msix_count", random.one_of(&[0, 8, 60])),
    }
}

fn bond(card: &SmallCard, random: &mut Random) -> String {
    if random.percent(35) { "bond bond0 del".to_owned() } else { bond_made(card, random) }
}

fn bond_made(card: &SmallCard, random: &mut Random) -> String {
    let members = if card.pfs > 2 && random.percent(70) { card.pfs } else { 2 };
    let members: Vec<String> = (0..members).map(|pf| card.device(pf)).collect();
    let mode = random.one_of(&["802.3ad", "802.3ad", "active-backup", "balance-rr"]);
    let flap = random.one_of(&["", "", "", " flap 1", " flap 2"]);
    format!("bond bond0 mode {mode} {}{flap}", members.join(" "))
}

fn rule_added(card: &SmallCard, random: &mut Random) -> String {
    let (from, to) = (card.representor(random), card.representor(random));
    let matched = random.one_of(&["", "", "dst_mac 02:00:00:00:00:02 "]);
    let action = match random.below(8) {
        0 => "drop".to_owned(),
        1 => format!("mirred egress mirror dev {to} action mirred egress redirect dev {}", card.netdev(0)),
        _ => format!("mirred egress redirect dev {to}"),
    };
    let prio = random.one_of(&[1, 1, 1, 2]);
    format!("tc filter add dev {from} ingress protocol all prio {prio} flower {matched}action {action}")
}

fn rule(card: &SmallCard, random: &mut Random) -> String {
    let dev = card.representor(random);
    match random.below(8) {
        0..=3 => rule_added(card, random),
        4 => format!("tc filter del dev {dev} ingress prio 1"),
        5 => format!("tc filter del dev {dev} ingress"),
        6 => format!("tc -s filter show dev {dev} ingress"),
        _ => {
            let pf = card.pf(random);
            let vport = random.one_of(&[1, 1, 2, 65_535]);
            format!("send {} {FRAME}", card.port(pf, vport))
        }
    }
}

fn tunnel_rule(card: &SmallCard) -> String {
    let from = if card.dpu { card.netdev(0) } else { "enp8s0f0npf0vf0".to_owned() };
    format!(
        "tc filter add dev {from} ingress protocol all prio 1 flower {TUNNEL} action mirred egress redirect dev {}",
        card.netdev(0)
    )
}

fn tunnel(card: &SmallCard, netdev: &str, random: &mut Random) -> String {
    match random.below(4) {
        0 => tunnel_rule(card),
        1 => format!("ip neigh del 192.0.2.2 dev {netdev}"),
        _ => format!("ip neigh replace 192.0.2.2 lladdr 02:00:00:00:01:0{} dev {netdev}", 1 + random.below(2)),
    }
}

fn failure(card: &SmallCard, device: &str, random: &mut Random) -> String {
    if random.percent(10) {
        return format!("fail alloc {device} times {}", 1 + random.below(2));
    }
    if random.percent(10) {
        return "fail clear".to_owned();
    }
    let kinds = [
        "eth", "eth", "ib", "ib", "port", "fdb", "netdev", "ibdev", "ibdev", "function", "lag", "metadata", "pair",
        "pair",
    ];
    let mut text = format!("fail {}", random.one_of(&kinds));
    if random.percent(35) {
        text += &format!(" pf {}", card.pf(random));
    }
    if random.percent(35) {
        text += random.one_of(&[" uplink", " vf 0", " vf 1", " sf 0", " sf 1"]);
    }
    if random.percent(30) {
        text += &format!(" after {}", 1 + random.below(2));
    }
    text + random.one_of(&["", " times 1", " times 2", " times 3", " always"])
}
