//! What the tests share: namespaces of their own, a card, and functions that change it.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod frames;

use std::io::{BufRead, BufReader};
use std::panic::Location;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use card_linux::{LinuxCard, Place};
use eswitch::card::{Card, CardError, Create, Resource};
use eswitch::lock_order::CardCall;
use eswitch::{CardConfig, PfIndex, RepType, Vport};
use lockdep::{Domain, Locked, OnReport};

/// Set in the process that is inside.
const INSIDE: &str = "CARD_LINUX_TEST_INSIDE";

/// The name by which this test binary knows a test in the caller's file: with its module, which is named after the file. A name
/// that has its module is that already.
#[track_caller]
pub fn path_of(name: &str) -> String {
    if name.contains("::") {
        return name.to_owned();
    }
    let module = Path::new(Location::caller().file()).file_stem().unwrap();
    format!("{}::{name}", module.to_str().unwrap())
}

/// Runs `test`, which is in the function `name` of the caller's file, in a process with network, mount
/// and process namespaces of its own: nothing of the machine is touched, and what a test leaves
/// is deleted with them.
#[track_caller]
pub fn in_own_namespaces(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        sh("mount -t tmpfs tmpfs /run && mkdir /run/netns && mount -t sysfs sysfs /sys && ip link set lo up");
        return test();
    }
    if let Some(missing) = missing() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI lacks {missing}");
        eprintln!("{name} skipped: {missing}");
        return;
    }
    let me = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(me)
        .args(["--exact", &path_of(name), "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    print!("{printed}");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && printed.contains("1 passed"), "{name}: {}", output.status);
}

fn missing() -> Option<&'static str> {
    let works = |command: &str| {
        let status = Command::new("sh").args(["-c", command]).output();
        status.is_ok_and(|output| output.status.success())
    };
    if !works("ip netns list") {
        return Some("`ip netns` (iproute2)");
    }
    if !works("unshare --net --mount --pid --fork --mount-proc true") {
        return Some("root: CAP_SYS_ADMIN and CAP_NET_ADMIN");
    }
    None
}

/// Runs a shell command, which must succeed; returns what it prints.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let (stdout, stderr) = (output.stdout, output.stderr);
    assert!(output.status.success(), "`{command}`: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// Waits for a shell command to succeed, for a minute at most.
pub fn eventually(command: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !Command::new("sh").args(["-c", command]).status().unwrap().success() {
        assert!(Instant::now() < deadline, "`{command}` never succeeded:\n{}", sh("ip -o link | head -30"));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for something to be so, for a minute at most.
#[track_caller]
pub fn eventually_that(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "it never was so");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The netdevs of this namespace, but the loopback.
pub fn netdevs() -> Vec<String> {
    let mut names: Vec<String> = sh("ip -o link")
        .lines()
        .filter_map(|line| line.split([':', '@']).nth(1))
        .map(|name| name.trim().to_owned())
        .filter(|name| name != "lo")
        .collect();
    names.sort();
    names
}

pub const PF: PfIndex = PfIndex(0);

/// A card, its configuration, and the lockdep domain of those who use it.
pub struct Rig {
    pub card: LinuxCard,
    pub config: CardConfig,
    domain: Arc<Domain>,
}

impl Rig {
    pub fn new(config: CardConfig) -> Self {
        let place = Place::prepare().unwrap();
        Self::at(&place, config)
    }

    pub fn at(place: &Place, config: CardConfig) -> Self {
        let domain = Domain::checked(OnReport::Panic);
        let card = LinuxCard::new(place, config.clone(), &domain).unwrap_or_else(|e| panic!("{e}"));
        Self { card, config, domain }
    }

    /// A card that takes over what a dead process has left; `make` requests what that process had.
    pub fn taking_over(config: CardConfig, make: impl FnOnce(&Self)) -> Self {
        let domain = Domain::checked(OnReport::Panic);
        let place = Place::prepare().unwrap();
        let card = LinuxCard::taking_over(&place, config.clone(), &domain).unwrap_or_else(|e| panic!("{e}"));
        let rig = Self { card, config, domain };
        make(&rig);
        rig.with(|card, cx| {
            card.hold().taken_over(cx);
            card.hold().may_go();
        });
        rig
    }

    /// A card with a PF and some VFs, in legacy mode.
    pub fn with_vfs(vfs: u16) -> Self {
        let rig = Self::new(CardConfig::default());
        rig.make(&[Resource::Function(PF), Resource::PfNetdev(PF)]);
        rig.make(&vf_ports(vfs));
        rig
    }

    pub fn with<R>(&self, f: impl FnOnce(&LinuxCard, &mut Locked<'_, CardCall>) -> R) -> R {
        lockdep::enter(&self.domain, "test", |cx| f(&self.card, &mut cx.narrow()))
    }

    pub fn create(&self, resources: &[Resource]) -> Vec<Result<(), CardError>> {
        let request = |resource: &Resource| {
            let vport = resource.vport().unwrap_or(Vport::Uplink);
            let mac = match resource {
                Resource::Representor(..) => self.config.rep_mac(resource.pf(), vport),
                _ => self.config.mac(resource.pf(), vport),
            };
            let sfnum = match vport {
                Vport::Sf(place) => Some(88 + u32::from(place)),
                _ => None,
            };
            Create { resource: *resource, mac, sfnum }
        };
        let batch: Vec<Create> = resources.iter().map(request).collect();
        let mut outcomes = vec![Ok(()); batch.len()];
        for refusal in self.with(|card, cx| card.create(cx, &batch)) {
            outcomes[refusal.at] = Err(refusal.error);
        }
        outcomes
    }

    pub fn make(&self, resources: &[Resource]) {
        for (resource, outcome) in resources.iter().zip(self.create(resources)) {
            outcome.unwrap_or_else(|error| panic!("{resource}: {error}"));
        }
    }

    pub fn unmake(&self, resources: &[Resource]) {
        self.with(|card, cx| card.destroy(cx, resources));
    }

    /// Makes what the engine makes when it changes the mode.
    pub fn to_switchdev(&self, vfs: u16) {
        self.make(&[Resource::SwitchdevFdb(PF)]);
        self.make(&[rep(Vport::Uplink)]);
        self.make(&vf_reps(vfs));
    }

    pub fn to_legacy(&self, vfs: u16) {
        self.unmake(&vf_reps(vfs));
        self.unmake(&[rep(Vport::Uplink)]);
        self.unmake(&[Resource::SwitchdevFdb(PF)]);
    }

    pub fn name(&self, resource: Resource) -> String {
        self.with(|card, cx| card.name(cx, &resource)).unwrap()
    }

    pub fn resources(&self) -> Vec<Resource> {
        let mut resources = self.with(|card, cx| card.resources(cx));
        resources.sort();
        resources
    }

    pub fn complaints(&self) -> Vec<String> {
        self.with(|card, cx| card.take_complaints(cx))
    }
}

pub fn rep(vport: Vport) -> Resource {
    Resource::Representor(PF, vport, RepType::Eth)
}

pub fn vf(n: u16) -> Resource {
    Resource::VfNetdev(PF, Vport::Vf(n))
}

pub fn vf_ports(n: u16) -> Vec<Resource> {
    (0..n).map(vf).collect()
}

pub fn vf_reps(n: u16) -> Vec<Resource> {
    (0..n).map(|n| rep(Vport::Vf(n))).collect()
}

/// Set in the process that runs the test `owner` of a file, which makes a card, says that it is ready, and waits.
pub const OWNER: &str = "ESW_TEST_OWNER";

/// Starts the test `owner` of the caller's file in a process of its own, which is to be killed, and waits until it has its card.
#[track_caller]
pub fn start_owner() -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &path_of("owner"), "--nocapture", "--test-threads=1"])
        .env(OWNER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map(Result::unwrap).any(|line| line.ends_with("READY")));
    child
}
