//! Which class may be taken under which, for every pair: what the compiler has worked out of the
//! edges, beside what the picture in `lock_order` says.

use eswitch::lock_order::*;
use lockdep::{AtomicContext, Class, LeafOnly, LockBefore, MayWait, Unlocked};

/// Asks the compiler whether a bound holds, where either answer compiles: a method of the type itself,
/// which has the bound, is preferred over one of a trait, which has none.
struct Ask<T>(std::marker::PhantomData<T>);

trait Otherwise {
    fn answer(&self) -> bool {
        false
    }
}
impl<T> Otherwise for Ask<T> {}

impl<Outer: LockBefore<Inner>, Inner> Ask<(Outer, Inner)> {
    fn answer(&self) -> bool {
        true
    }
}

/// Asks whether a thread may wait at a place.
struct AskWait<T>(std::marker::PhantomData<T>);
impl<T> Otherwise for AskWait<T> {}
impl<T: MayWait> AskWait<T> {
    fn answer(&self) -> bool {
        true
    }
}

/// The rows and columns of the whole relation: `(outer, [(inner, may it be taken)])`.
macro_rules! relation {
    ($($outer:ident)*; $inner:tt) => { vec![$((stringify!($outer), relation!(@row $outer $inner))),*] };
    (@row $outer:ident [$($inner:ident)*]) => {
        vec![$((stringify!($inner), Ask::<($outer, $inner)>(std::marker::PhantomData).answer())),*]
    };
}

/// One line of locks from the root down, and what hangs off it.
const TRUNK: [&str; 17] = [
    "Unlocked",
    "Device",
    "Devlink",
    "WorkQueue",
    "SfQueue",
    "LagQueue",
    "Devcom",
    "Module",
    "Auxiliary",
    "SfDevlink",
    "SfAuxiliary",
    "Probe",
    "Representors",
    "RepresentorsNested",
    "RepCallback",
    "RepOps",
    "Lag",
];

fn may(outer: &str, inner: &str) -> bool {
    let place = |name| TRUNK.iter().chain(&["CardCall"]).position(|c| *c == name);
    match (place(outer), place(inner)) {
        (Some(outer), Some(inner)) => outer < inner,
        // The mode is a branch of its own: it comes after devlink, and nothing comes after it.
        (Some(outer), None) => inner == "Mode" && outer <= place("Devlink").unwrap(),
        (None, _) => false,
    }
}

#[test]
fn every_pair_of_classes_stands_as_the_picture_has_it() {
    let relation = relation! {
        Unlocked Device Devlink Mode WorkQueue SfQueue LagQueue Devcom Module Auxiliary SfDevlink SfAuxiliary Probe
        Representors RepresentorsNested RepCallback RepOps Lag CardCall
        DeviceSlot DevlinkMoved QueueItems BusLists SfWanted LagHolds Events LentOps CardState
        AtomicContext LeafOnly;
        [
            Device Devlink Mode WorkQueue SfQueue LagQueue Devcom Module Auxiliary SfDevlink SfAuxiliary Probe
            Representors RepresentorsNested RepCallback RepOps Lag CardCall
            DeviceSlot DevlinkMoved QueueItems BusLists SfWanted LagHolds Events LentOps CardState
        ]
    };
    let mut wrong = Vec::new();
    for (outer, row) in &relation {
        for (inner, answer) in row {
            if *answer != may(outer, inner) {
                wrong.push(format!("{inner} under {outer}: {answer}"));
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
    let pairs: usize = relation.iter().flat_map(|(_, row)| row).filter(|(_, may)| *may).count();
    // The trunk's 18 places in order, and the mode under three of them.
    assert_eq!(pairs, 18 * 17 / 2 + 3);
}

#[test]
fn a_thread_may_wait_everywhere_but_in_an_atomic_context() {
    assert!(AskWait::<Unlocked>(std::marker::PhantomData).answer());
    assert!(AskWait::<LeafOnly>(std::marker::PhantomData).answer());
    assert!(AskWait::<CardCall>(std::marker::PhantomData).answer());
    assert!(!AskWait::<AtomicContext>(std::marker::PhantomData).answer());
}

#[test]
fn every_class_has_a_name_of_its_own() {
    macro_rules! names {
        ($($class:ident)*) => { [$($class::key().name()),*] };
    }
    let names = names!(
        Device Devlink Mode WorkQueue SfQueue LagQueue Devcom Module Auxiliary SfDevlink SfAuxiliary
        Representors RepresentorsNested RepOps Lag
        DeviceSlot DevlinkMoved QueueItems BusLists SfWanted LagHolds Events LentOps CardState
    );
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
}
