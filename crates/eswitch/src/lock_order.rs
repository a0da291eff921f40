//! The order of every lock of the engine, in one place. The compiler enforces it.
//!
//! The outermost lock is first. A thread may take a lock only if the lock's class is below, on the same branch, every
//! class that the thread holds:
//!
//! ```text
//! CoreModule              loading and unloading of modules: the dependencies of a module stay loaded meanwhile
//! Device                  bind, unbind, reload and sriov_numvfs of one PF
//! └─ Devlink              one per PF; devlink commands run under it
//!    ├─ Mode              the E-Switch mode and its operation-in-progress mark; no class is below it
//!    └─ WorkQueue    (map) what the E-Switch's work queue runs; its handler only *tries* Devlink
//!       └─ SfQueue, LagQueue (maps) what the SF queue and the LAG queue run
//!          └─ Devcom      the component that connects the PFs of a card; written by every rescan and LAG transition
//!             └─ Module   loading or unloading one module
//!                └─ Auxiliary        one auxiliary device of a PF, or the auxiliary device that is an SF
//!                   └─ SfDevlink     the devlink instance of an SF
//!                      └─ SfAuxiliary    one auxiliary device that an SF publishes
//!                         └─ Probe  (place) where the probe and remove functions of drivers run
//!                            └─ Representors         one per E-Switch: its representor table
//!                               └─ RepresentorsNested   the table of a peer, taken while the master's is held
//!                                  └─ RepCallback (place) where callbacks run that may be called for a peer
//!                                     └─ RepOps     the representor ops of one E-Switch; read by lookups
//!                                        └─ Lag     members and mode of the LAG
//!                                           └─ ResourceCall (place) where resources are made and unmade
//!                                              └─ Flows   the flow rules of all E-Switches of a card
//!                                                 └─ CardCall (place) where calls to the card run
//! ```
//!
//! A *map* is not a lock. Like a lock map of the kernel's lockdep (`lockdep_map`) it makes waiting for a queue visible
//! to the order: the handler of a queue runs inside the queue's map, and a thread that waits for the queue takes it.
//!
//! A *place* is not a lock either. It is a position in the order at which callbacks run, so that the type of the token
//! which a callback receives says which locks the callback may take.
//!
//! *Leaf* locks are outside the tree: a thread may take one whatever it holds, and may take no lock while it holds one.
//!
//! Four parts of the order are less obvious:
//!
//! * `Mode` and `Representors` are on different branches, so no code can hold both. An operation on the E-Switch marks
//!   itself as in progress under `Mode`, releases `Mode`, and only then takes `Representors`.
//! * The handler of the work queue needs `Devlink`, which is *above* the queue's map because teardown drains the queue
//!   while it holds `Devlink`. So the handler only tries `Devlink`, and otherwise waits until `Devlink` has been
//!   released or the generation has changed (`devlink::Devlink::with_unless`). A try adds nothing to the order.
//! * A rescan probes and removes drivers on the calling thread, and drivers take `Representors`. So the caller of a
//!   rescan cannot hold `Representors`: the rescan takes a token that the caller cannot use while it holds that lock.
//! * `Flows` is the last lock before the card. Representors come and go under `Representors`, and take their rules along,
//!   so it is below that. Adding a rule takes none of the locks above it, so that it waits for no command: what it needs
//!   to know of ports, it finds under its own lock.

use lockdep::{lock_classes, lock_order};

lock_classes! {
    /// The classes that have a place in the order, outermost first.
    pub list ordered;

    /// Orders all loading and unloading of modules. Loading the core module binds every PF, unloading it unbinds them.
    pub class CoreModule = "core module";
    /// Binding, unbinding, reloading and `sriov_numvfs` of one PF.
    pub class Device = "device";
    /// The devlink instance of one PF.
    pub class Devlink = "devlink";
    /// The mode of one E-Switch and its operation-in-progress mark.
    pub class Mode = "mode";
    /// The wait map of one E-Switch's work queue.
    pub class WorkQueue = "work queue";
    /// The wait map of one PF's SF queue.
    pub class SfQueue = "SF queue";
    /// The wait map of the LAG queue.
    pub class LagQueue = "LAG queue";
    /// The devcom component, which connects the PFs of one card.
    pub class Devcom = "devcom component";
    /// Loading or unloading one module.
    pub class Module = "module";
    /// An auxiliary device of a PF, or the auxiliary device that is an SF (`mlx5_core.sf.N`).
    pub class Auxiliary = "auxiliary device";
    /// The devlink instance of an SF.
    pub class SfDevlink = "devlink of an SF";
    /// An auxiliary device that an SF publishes.
    pub class SfAuxiliary = "auxiliary device of an SF";
    /// Not a lock: the place at which the probe and remove functions of all drivers on the auxiliary bus run.
    pub place Probe;
    /// The representor table of one E-Switch.
    pub class Representors = "representors";
    /// The representor table of a peer, taken while the master's is held: nesting that is declared, ordered by rank.
    pub class RepresentorsNested = "representors, nested" nested in Representors;
    /// Not a lock: the place at which those callbacks of representors run that may be called for a peer.
    pub place RepCallback;
    /// The representor ops of one E-Switch: written while `Representors` is held, read by lookups.
    pub class RepOps = "rep ops";
    /// Members and mode of the LAG.
    pub class Lag = "lag";
    /// Not a lock: the place at which resources are made and unmade.
    pub place ResourceCall;
    /// The flow rules of all E-Switches of a card, and which ports they may name.
    pub class Flows = "flows";
    /// Not a lock: the place at which calls to the card run.
    pub place CardCall;

    /// Which PF is bound at a device slot, and what the PCI bus keeps about the slot. Also the handle of the LAG
    /// thread.
    pub leaf DeviceSlot = "device slot";
    /// Counts releases of `Devlink` and changes of the generation, for which work handlers wait.
    pub leaf DevlinkMoved = "devlink moved";
    /// The items of a queue. Taken in interrupts too, because the notifier of the host's VF count queues work.
    pub leaf irq QueueItems = "queue items";
    /// The devices and drivers on the auxiliary bus.
    pub leaf BusLists = "bus lists";
    /// The requested state of an SF's function, and the list of the SFs that an SF queue serves.
    pub leaf SfWanted = "SF wanted";
    /// The number of operations that hold evaluations of the LAG off.
    pub leaf LagHolds = "LAG holds";
    /// The subscribers to events, and the events that are kept for each.
    pub leaf Events = "events";
    /// The peers on which a master's uplink has registered ops.
    pub leaf LentOps = "lent ops";
    /// The internal state of a card, and the plan of a card that fails on demand.
    pub leaf CardState = "card state";
}

lock_order! {
    root CoreModule;
    CoreModule => Device;
    Device => Devlink;
    Devlink => Mode;
    Devlink => WorkQueue;
    WorkQueue => SfQueue;
    SfQueue => LagQueue;
    LagQueue => Devcom;
    Devcom => Module;
    Module => Auxiliary;
    Auxiliary => SfDevlink;
    SfDevlink => SfAuxiliary;
    SfAuxiliary => Probe;
    Probe => Representors;
    Representors => RepresentorsNested;
    RepresentorsNested => RepCallback;
    RepCallback => RepOps;
    RepOps => Lag;
    Lag => ResourceCall;
    ResourceCall => Flows;
    Flows => CardCall;
}

/// Code that violates the order and does not compile.
///
/// Each example is followed by the most similar code that compiles, which shows that the first fails for the reason
/// given and no other. `tests/it/lock_order.rs` checks every pair of classes.
///
/// `Representors` cannot be taken while `Mode` is held:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Devlink>, mode: &Mutex<Mode, ()>, table: &Mutex<Representors, ()>) {
///     let (_mode, mut cx) = mode.lock(cx);
///     let _table = table.lock(&mut cx);
/// }
/// ```
///
/// This compiles:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Devlink>, mode: &Mutex<Mode, ()>, table: &Mutex<Representors, ()>) {
///     drop(mode.lock(cx));
///     drop(table.lock(cx));
///     drop(mode.lock(cx));
/// }
/// ```
///
/// `Mode` cannot be taken while `Representors` is held either:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Devlink>, mode: &Mutex<Mode, ()>, table: &Mutex<Representors, ()>) {
///     let (_table, mut cx) = table.lock(cx);
///     let _mode = mode.lock(&mut cx);
/// }
/// ```
///
/// This compiles:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Devlink>, lag: &Mutex<Lag, ()>, table: &Mutex<Representors, ()>) {
///     let (_table, mut cx) = table.lock(cx);
///     let _lag = lag.lock(&mut cx);
/// }
/// ```
///
/// A driver's probe cannot take the devlink lock:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn probe(cx: &mut Locked<'_, Probe>, devlink: &Mutex<Devlink, ()>) {
///     let _devlink = devlink.lock(cx);
/// }
/// ```
///
/// This compiles:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn probe(cx: &mut Locked<'_, Probe>, table: &Mutex<Representors, ()>) {
///     let _table = table.lock(cx);
/// }
/// ```
///
/// Nor can it take the devcom component, so it cannot rescan:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn probe(cx: &mut Locked<'_, Probe>, component: &Mutex<Devcom, ()>) {
///     let _component = component.lock(cx);
/// }
/// ```
///
/// This compiles:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn command(cx: &mut Locked<'_, Devlink>, component: &Mutex<Devcom, ()>) {
///     let _component = component.lock(cx);
/// }
/// ```
///
/// The handler of a queue cannot wait for the devlink lock, which is held while the queue is drained:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn handler(cx: &mut Locked<'_, WorkQueue>, devlink: &Mutex<Devlink, ()>) {
///     let _devlink = devlink.lock(cx);
/// }
/// ```
///
/// This compiles:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn handler(cx: &mut Locked<'_, WorkQueue>, devlink: &Mutex<Devlink, ()>) {
///     let _devlink = devlink.try_lock(cx);
/// }
/// ```
///
/// While a peer's table is held, no other table can be taken, neither in the ordinary way:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, RepresentorsNested>, table: &Mutex<Representors, ()>) {
///     let _table = table.lock(cx);
/// }
/// ```
///
/// This compiles:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Probe>, table: &Mutex<Representors, ()>) {
///     let _table = table.lock(cx);
/// }
/// ```
///
/// nor nested a second time:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, RepresentorsNested>, table: &Mutex<Representors, ()>) {
///     let _table = table.lock_nested::<RepresentorsNested, _>(cx);
/// }
/// ```
///
/// This compiles:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Representors>, table: &Mutex<Representors, ()>) {
///     let _table = table.lock_nested::<RepresentorsNested, _>(cx);
/// }
/// ```
///
/// Two tables can be held together only by the declared nesting:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Representors>, table: &Mutex<Representors, ()>) {
///     let _table = table.lock(cx);
/// }
/// ```
///
/// This compiles:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Probe>, master: &Mutex<Representors, ()>, peer: &Mutex<Representors, ()>) {
///     let (_master, mut cx) = master.lock(cx);
///     let _peer = peer.lock_nested::<RepresentorsNested, _>(&mut cx);
/// }
/// ```
///
/// What changes flow rules cannot take the LAG lock:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Flows>, lag: &Mutex<Lag, ()>) {
///     let _lag = lag.lock(cx);
/// }
/// ```
///
/// This compiles:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Lag>, flows: &Mutex<Flows, ()>) {
///     let _flows = flows.lock(cx);
/// }
/// ```
///
/// A card cannot call back into the engine:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn create(cx: &mut Locked<'_, CardCall>, lag: &Mutex<Lag, ()>) {
///     let _lag = lag.lock(cx);
/// }
/// ```
///
/// This compiles:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn create(cx: &mut Locked<'_, CardCall>, books: &Mutex<CardState, ()>) {
///     let _books = books.lock_leaf(cx);
/// }
/// ```
///
/// No lock can be taken while a leaf is held:
///
/// ```compile_fail,E0499
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Devlink>, holds: &Mutex<LagHolds, u32>, events: &Mutex<Events, ()>) {
///     let held = holds.lock_leaf(cx);
///     let _events = events.lock_leaf(cx);
///     drop(held);
/// }
/// ```
///
/// This compiles:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Devlink>, holds: &Mutex<LagHolds, u32>, events: &Mutex<Events, ()>) {
///     let held = *holds.lock_leaf(cx);
///     let _events = events.lock_leaf(cx);
///     drop(held);
/// }
/// ```
///
/// The notifier, which runs in atomic context, can queue work only by the function that does not wait:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn push<L: MayWait>(_: &mut Locked<'_, L>) {}
/// fn push_atomic<L>(_: &mut Locked<'_, L>) {}
/// fn notifier(cx: &mut Locked<'_, AtomicContext>) {
///     push(cx);
/// }
/// ```
///
/// This compiles:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn push<L: MayWait>(_: &mut Locked<'_, L>) {}
/// fn push_atomic<L>(_: &mut Locked<'_, L>) {}
/// fn notifier(cx: &mut Locked<'_, AtomicContext>) {
///     push_atomic(cx);
/// }
/// ```
///
/// The notifier cannot take the devlink lock:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn notifier(cx: &mut Locked<'_, AtomicContext>, devlink: &Mutex<Devlink, ()>) {
///     let _devlink = devlink.lock(cx);
/// }
/// ```
///
/// This compiles:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn notifier(cx: &mut Locked<'_, AtomicContext>, items: &Mutex<QueueItems, ()>) {
///     let _items = items.lock_leaf(cx);
/// }
/// ```
#[cfg(doctest)]
struct DoesNotCompile;
