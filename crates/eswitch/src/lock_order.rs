//! The order of every lock, in one place.
//!
//! Outer to inner; take only what stands further down than what you hold:
//!
//! ```text
//! CoreModule              loading or unloading modules: what one depends on stays meanwhile
//! Device                  bind, unbind, reload, sriov_numvfs of one PF
//! └─ Devlink              one per PF; devlink commands run under it
//!    ├─ Mode              the E-Switch mode and its operation-in-progress mark; nothing under it
//!    └─ WorkQueue    (map) what the E-Switch's work queue runs; the handler *tries* Devlink
//!       └─ SfQueue, LagQueue (maps) what these queues run
//!          └─ Devcom      the component that ties the PFs of a card; written by every rescan
//!             └─ Module   loading or unloading one module
//!                └─ Auxiliary        one auxiliary device of a PF, or an SF's own
//!                   └─ SfDevlink     the devlink instance of an SF
//!                      └─ SfAuxiliary    one auxiliary device of an SF
//!                         └─ Probe  (no lock) where drivers' probe and remove stand
//!                            └─ Representors         one per E-Switch: its representor table
//!                               └─ RepresentorsNested   a peer's, from the master's
//!                                  └─ RepCallback (no lock), RepOps     the ops of one E-Switch; read by lookups
//!                                     └─ Lag     members and mode of the LAG
//!                                        └─ CardCall (no lock) where calls to the card stand
//! ```
//!
//! Leaf locks stand outside the tree: they may be taken anywhere, and nothing under them.
//!
//! Three places need a second look:
//!
//! * `Mode` and `Representors` are on different branches, so no code can hold both: an operation
//!   marks itself in progress under `Mode`, lets go, and takes `Representors` then.
//! * The work queue's handler needs `Devlink`, which stands *above* its map, because teardown drains
//!   the queue with `Devlink` held. So it only tries, and waits for "devlink free or generation
//!   moved" (`devlink::Devlink::with_unless`). A try adds no order.
//! * A rescan probes and removes drivers on the calling thread, and drivers take `Representors`. So
//!   whoever rescans cannot hold `Representors`: it would need a token it no longer has.

use lockdep::{lock_classes, lock_order};

lock_classes! {
    /// The classes that have a place in the order, outermost first.
    pub list ordered;

    /// Loading or unloading modules, in an order; that of the core binds and unbinds every PF.
    pub class CoreModule = "core module";
    /// Binding, unbinding, reloading and `sriov_numvfs` of one PF.
    pub class Device = "device";
    /// One devlink instance (a PF).
    pub class Devlink = "devlink";
    /// The mode of one E-Switch and its operation-in-progress mark.
    pub class Mode = "mode";
    /// The wait map of one E-Switch's work queue.
    pub class WorkQueue = "work queue";
    /// The wait map of one PF's SF queue.
    pub class SfQueue = "SF queue";
    /// The wait map of LAG's queue.
    pub class LagQueue = "LAG queue";
    /// The component that ties the PFs of one card together.
    pub class Devcom = "devcom component";
    /// Loading or unloading one module.
    pub class Module = "module";
    /// An auxiliary device of a PF, or of the SF itself.
    pub class Auxiliary = "auxiliary device";
    /// The devlink instance of an SF.
    pub class SfDevlink = "devlink of an SF";
    /// An auxiliary device that an SF publishes.
    pub class SfAuxiliary = "auxiliary device of an SF";
    /// Not a lock: where a driver's probe and remove stand, whichever bus called them.
    pub place Probe;
    /// The representor table of one E-Switch.
    pub class Representors = "representors";
    /// A peer's representor table, from the master's: declared nesting, by rank.
    pub class RepresentorsNested = "representors, nested" nested in Representors;
    /// Not a lock: where the callbacks of representors stand that may be called for a peer.
    pub place RepCallback;
    /// The representor ops of one E-Switch: written under `Representors`, read by lookups.
    pub class RepOps = "rep ops";
    /// Members and mode of the LAG.
    pub class Lag = "lag";
    /// Not a lock: where calls to the card stand.
    pub place CardCall;

    /// Which PF a device slot has bound.
    pub leaf DeviceSlot = "device slot";
    /// "Devlink free, or generation moved": what work handlers wait for.
    pub leaf DevlinkMoved = "devlink moved";
    /// The items of a queue. The notifier of the host's VF count, which is an interrupt, queues work.
    pub leaf irq QueueItems = "queue items";
    /// The devices and drivers on the auxiliary bus.
    pub leaf BusLists = "bus lists";
    /// Whether an SF's function is wanted.
    pub leaf SfWanted = "SF wanted";
    /// How many operations hold LAG off.
    pub leaf LagHolds = "LAG holds";
    /// Who watches events.
    pub leaf Events = "events";
    /// The peers on which a master's uplink has registered ops.
    pub leaf LentOps = "lent ops";
    /// A card's own books.
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
    Lag => CardCall;
}

/// What does not compile, each beside its nearest relative that does, so that it fails for its own
/// reason; `tests/lock_order.rs` has every pair of classes.
///
/// The mode and a representor table are never held together, whichever comes first:
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
/// This does:
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
/// Nor the other way round:
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
/// This does:
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
/// This does:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn probe(cx: &mut Locked<'_, Probe>, table: &Mutex<Representors, ()>) {
///     let _table = table.lock(cx);
/// }
/// ```
///
/// Nor can a driver that rescans in its probe get at the devcom component:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn probe(cx: &mut Locked<'_, Probe>, component: &Mutex<Devcom, ()>) {
///     let _component = component.lock(cx);
/// }
/// ```
///
/// This does:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn command(cx: &mut Locked<'_, Devlink>, component: &Mutex<Devcom, ()>) {
///     let _component = component.lock(cx);
/// }
/// ```
///
/// The handler of a queue cannot wait for devlink, which is held while its queue is drained:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn handler(cx: &mut Locked<'_, WorkQueue>, devlink: &Mutex<Devlink, ()>) {
///     let _devlink = devlink.lock(cx);
/// }
/// ```
///
/// This does:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn handler(cx: &mut Locked<'_, WorkQueue>, devlink: &Mutex<Devlink, ()>) {
///     let _devlink = devlink.try_lock(cx);
/// }
/// ```
///
/// From a peer's table no further table can be taken, neither plainly:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, RepresentorsNested>, table: &Mutex<Representors, ()>) {
///     let _table = table.lock(cx);
/// }
/// ```
///
/// This does:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Probe>, table: &Mutex<Representors, ()>) {
///     let _table = table.lock(cx);
/// }
/// ```
///
/// Nor nested again:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, RepresentorsNested>, table: &Mutex<Representors, ()>) {
///     let _table = table.lock_nested::<RepresentorsNested, _>(cx);
/// }
/// ```
///
/// This does:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Representors>, table: &Mutex<Representors, ()>) {
///     let _table = table.lock_nested::<RepresentorsNested, _>(cx);
/// }
/// ```
///
/// And two tables side by side only as declared:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn f(cx: &mut Locked<'_, Representors>, table: &Mutex<Representors, ()>) {
///     let _table = table.lock(cx);
/// }
/// ```
///
/// This does:
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
/// This does:
///
/// ```
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn create(cx: &mut Locked<'_, CardCall>, books: &Mutex<CardState, ()>) {
///     let _books = books.lock_leaf(cx);
/// }
/// ```
///
/// Under a leaf nothing is taken:
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
/// This does:
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
/// The notifier, in its atomic context, can queue only in the way that does not wait:
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
/// This does:
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
/// And cannot take devlink:
///
/// ```compile_fail,E0277
/// # use eswitch::lock_order::*;
/// # use lockdep::{AtomicContext, EventCount, Locked, Mutex, MayWait};
/// fn notifier(cx: &mut Locked<'_, AtomicContext>, devlink: &Mutex<Devlink, ()>) {
///     let _devlink = devlink.lock(cx);
/// }
/// ```
///
/// This does:
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
