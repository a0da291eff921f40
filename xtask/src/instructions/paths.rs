//! The paths whose instructions are counted, and what one round of each does.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use card_memory::MemoryCard;
use devlink::numbers::{attribute, command};
use devlink::{DEVLINK, Peer, Served, Sink, answer};
use eswitch::{CardConfig, Engine, Mode, Touched, hot_paths};
use lab::sysfs::tree::{AttributeContext, Kernel, Names, Tree};
use lockdep::{
    Domain, EventCount, Explore, Locked, Mutex, OnReport, RwLock, Threads, Unlocked, enter, lock_classes, lock_order,
};
use netlink::{Flags, Header};
use shuttle::scheduler::RoundRobinScheduler;

use crate::memory_card;

lock_classes! {
    class Outer = "counted, outer";
    class Inner = "counted, inner";
    leaf Last = "counted, leaf";
}

lock_order! {
    root Outer;
    Outer => Inner;
}

/// A frequent path through the code.
pub struct Path {
    /// `WHERE: WHAT`.
    pub name: &'static str,
    /// Runs it this number of times.
    pub walk: fn(usize) -> Result<()>,
    /// The number of rounds that are counted.
    pub rounds: usize,
    /// How often the rounds are counted: more than once for a path with several threads.
    pub runs: usize,
}

const fn path(name: &'static str, walk: fn(usize) -> Result<()>, rounds: usize) -> Path {
    Path { name, walk, rounds, runs: 1 }
}

/// All paths.
pub const PATHS: &[Path] = &[
    path("lock: a mutex", mutex, 10_000),
    path("lock: a mutex that is tried", tried, 10_000),
    path("lock: a leaf mutex", leaf, 10_000),
    path("lock: reading", reading, 10_000),
    path("lock: writing", writing, 10_000),
    path("lock: an event count without waiters", event_count, 10_000),
    path("lock: two mutexes, one in the other, checked", checked, 5_000),
    path("lock: a mutex, explored", explored, 1_000),
    path("engine: an event without subscribers", event, 10_000),
    path("engine: an item through a queue", item, 10_000),
    Path { runs: 3, ..path("engine: 64 VFs to switchdev mode and back", there_and_back, 20) },
    Path { runs: 3, ..path("devlink: eswitch show", eswitch_show, 1_000) },
    Path { runs: 3, ..path("devlink: port show of a card with 8 VFs", port_show, 200) },
    Path { runs: 3, ..path("devlink: a request for a device that does not exist", no_device, 1_000) },
    path("sysfs: sriov_numvfs of a PF", sriov_numvfs, 5_000),
    path("sysfs: phys_port_name of a netdev", phys_port_name, 5_000),
];

/// The first PF of a card.
const PF: &str = "0000:08:00.0";

fn unchecked(walk: impl FnOnce(&mut Locked<'_, Unlocked>)) -> Result<()> {
    enter(&Domain::unchecked(), "main", walk);
    Ok(())
}

fn mutex(n: usize) -> Result<()> {
    let lock = Mutex::<Outer, u64>::new(0);
    unchecked(|cx| (0..n).for_each(|_| *black_box(&lock).lock(cx).0 += 1))
}

fn tried(n: usize) -> Result<()> {
    let lock = Mutex::<Outer, u64>::new(0).with_try_lock();
    unchecked(|cx| {
        for _ in 0..n {
            if let Some((mut value, _)) = black_box(&lock).try_lock(cx) {
                *value += 1;
            }
        }
    })
}

fn leaf(n: usize) -> Result<()> {
    let lock = Mutex::<Last, u64>::new(0);
    unchecked(|cx| (0..n).for_each(|_| *black_box(&lock).lock_leaf(cx) += 1))
}

fn reading(n: usize) -> Result<()> {
    let lock = RwLock::<Outer, u64>::new(0);
    unchecked(|cx| {
        (0..n).for_each(|_| {
            black_box(*black_box(&lock).read(cx).0);
        });
    })
}

fn writing(n: usize) -> Result<()> {
    let lock = RwLock::<Outer, u64>::new(0);
    unchecked(|cx| (0..n).for_each(|_| *black_box(&lock).write(cx).0 += 1))
}

fn event_count(n: usize) -> Result<()> {
    let count = EventCount::<Last>::new();
    unchecked(|cx| (0..n).for_each(|_| count.advance(cx)))
}

fn checked(n: usize) -> Result<()> {
    let (outer, inner) = (Mutex::<Outer, u64>::new(0), Mutex::<Inner, u64>::new(0));
    enter(&Domain::checked(OnReport::Record), "main", |cx| {
        for _ in 0..n {
            let (_held, mut cx) = black_box(&outer).lock(cx);
            *black_box(&inner).lock(&mut cx).0 += 1;
        }
    });
    Ok(())
}

/// One schedule of a thread that takes a lock repeatedly.
fn explored(n: usize) -> Result<()> {
    let story = move || {
        let lock = Mutex::<Outer, u64>::new(0);
        enter(&Domain::exploring(None), "main", |cx| (0..n).for_each(|_| *lock.lock(cx).0 += 1));
    };
    let explored = Explore::default().until_failure(RoundRobinScheduler::new(1), story);
    explored.map(|_| ()).map_err(|halt| anyhow!("{halt:?}"))
}

fn event(n: usize) -> Result<()> {
    let of = PF.parse().map_err(|error| anyhow!("{error}"))?;
    unchecked(|cx| hot_paths::emit_without_subscribers(cx, of, n))
}

fn item(n: usize) -> Result<()> {
    enter(&Domain::unchecked(), "main", |cx| Ok(hot_paths::items_through_a_queue(cx, n)?))
}

/// Sets one PF to switchdev mode and back, with `mlx5_ib` loaded: both representors of each vport are loaded and unloaded.
/// The queues come to rest after each command.
fn there_and_back(n: usize) -> Result<()> {
    let domain = Domain::unchecked();
    enter(&domain, "main", |cx| {
        let modules = vec!["mlx5_ib".to_owned()];
        let config = CardConfig { total_vfs: 64, vfs: 64, modules, ..CardConfig::default() };
        let card = Arc::new(MemoryCard::new(config.clone()));
        let engine = Engine::start(cx, config, card, Arc::new(Threads(Arc::clone(&domain))))?;
        engine.settle(cx, true);
        let address = *engine.addresses().first().context("a card without PFs")?;
        for mode in [Mode::Switchdev, Mode::Legacy].into_iter().cycle().take(2 * n) {
            engine.set_mode(cx, address, mode)?;
            engine.settle(cx, true);
        }
        engine.shutdown(cx);
        Ok(())
    })
}

/// Runs `work` with a card in memory that has 8 VFs and is in switchdev mode.
fn with_card(work: impl FnOnce(&Served, &mut Locked<'_, Unlocked>) -> Result<()>) -> Result<()> {
    memory_card::with_served(|served, cx| {
        let engine = served.card.engine();
        for address in engine.addresses() {
            engine.set_mode(cx, address, Mode::Switchdev)?;
        }
        engine.settle(cx, true);
        work(served, cx)
    })
}

/// Receives answers, and counts their bytes.
#[derive(Default)]
struct Bytes(usize);

impl Sink for Bytes {
    fn send(&mut self, datagram: &[u8]) {
        self.0 += black_box(datagram).len();
    }

    fn done(&mut self, _: devlink::Cx<'_, '_>, _: Touched) {}
}

fn asked(n: usize, number: u8, flags: Flags, device: Option<&str>) -> Result<()> {
    let request = netlink::message(Header::new(DEVLINK, Flags::REQUEST | flags, 1, 0), |to| {
        to.genl(number, 1);
        if let Some(device) = device {
            to.text(attribute::BUS_NAME, "pci").text(attribute::DEV_NAME, device);
        }
    })?;
    with_card(|served, cx| {
        let (peer, mut answers) = (Peer { may_change: true, ..Peer::default() }, Bytes::default());
        (0..n).for_each(|_| answer(served, cx, &peer, black_box(&request[..]), &mut answers));
        ensure!(answers.0 > 0, "no answer");
        Ok(())
    })
}

fn eswitch_show(n: usize) -> Result<()> {
    asked(n, command::ESWITCH_GET, Flags::ACK, Some(PF))
}

fn port_show(n: usize) -> Result<()> {
    asked(n, command::PORT_GET, Flags::DUMP, None)
}

fn no_device(n: usize) -> Result<()> {
    asked(n, command::ESWITCH_GET, Flags::ACK, Some("0000:ff:00.0"))
}

/// A kernel without files.
struct NoKernel;

impl Kernel for NoKernel {
    fn read(&self, _: &str) -> Option<Vec<u8>> {
        None
    }

    fn proc_modules(&self) -> Option<Vec<u8>> {
        None
    }
}

/// Reads an attribute in the card's `/sys`, without a file system.
fn read(n: usize, path: impl FnOnce(&Tree) -> Option<String>, name: &str) -> Result<()> {
    with_card(|served, cx| {
        let tree = Tree::new(vec![Some(served.view(cx))], "6.1", &Names::AS_IN_VIEW);
        let path = path(&tree).context("no such directory")?;
        for _ in 0..n {
            let dir = tree.dir_at(black_box(&path)).context("no such directory")?;
            let attribute = dir.template.attribute(black_box(name)).context("no such attribute")?;
            let read = attribute.read.context("it cannot be read")?;
            let text = read(&AttributeContext { cards: &tree.cards, dir, kernel: &NoKernel });
            black_box(text.map_err(|error| anyhow!("{error}"))?);
        }
        Ok(())
    })
}

fn sriov_numvfs(n: usize) -> Result<()> {
    read(n, |tree| link_of(tree, "bus/pci/devices", PF), "sriov_numvfs")
}

fn phys_port_name(n: usize) -> Result<()> {
    let path = |tree: &Tree| {
        let netdevs = tree.cards.iter().flatten().flat_map(|card| &card.netdevs);
        let named: BTreeMap<_, _> = netdevs.filter(|n| n.port_name.is_some()).map(|n| (&n.name, ())).collect();
        tree.netdev(named.keys().next()?).map(str::to_owned)
    };
    read(n, path, "phys_port_name")
}

/// The target of a link in a directory.
fn link_of(tree: &Tree, dir: &str, name: &str) -> Option<String> {
    match tree.dir_at(dir)?.entries.get(name)? {
        lab::sysfs::tree::Entry::Link(target) => Some(lab::sysfs::tree::follow(dir, target)),
        _ => None,
    }
}
