//! Checks for every pair of classes that the compiler derives the same answer to "may one be taken under the other"
//! from the declared edges as the picture in `lock_order` gives.

use eswitch::lock_order::*;
use lockdep::{AtomicContext, Class, LeafOnly, LockBefore, MayWait, Unlocked};

/// Finds out whether a bound holds, in code that compiles in both cases: a method of the type itself, which has the
/// bound, is preferred over a method of a trait, which has none.
struct Bound<T>(std::marker::PhantomData<T>);

trait Otherwise {
    fn answer(&self) -> bool {
        false
    }
}
impl<T> Otherwise for Bound<T> {}

impl<Outer: LockBefore<Inner>, Inner> Bound<(Outer, Inner)> {
    fn answer(&self) -> bool {
        true
    }
}

/// Finds out whether a thread may wait at a place in the order.
struct Waits<T>(std::marker::PhantomData<T>);
impl<T> Otherwise for Waits<T> {}
impl<T: MayWait> Waits<T> {
    fn answer(&self) -> bool {
        true
    }
}

/// The rows and columns of the whole relation: `(outer, [(inner, whether it may be taken)])`.
macro_rules! relation {
    ($($outer:ident)*; $inner:tt) => { vec![$((stringify!($outer), relation!(@row $outer $inner))),*] };
    (@row $outer:ident [$($inner:ident)*]) => {
        vec![$((stringify!($inner), Bound::<($outer, $inner)>(std::marker::PhantomData).answer())),*]
    };
}

/// The main line of the order, from the root down.
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
        // The mode is a branch of its own after devlink, and no class is after it.
        (Some(outer), None) => inner == "Mode" && outer <= place("Devlink").unwrap(),
        (None, _) => false,
    }
}

#[test]
fn every_pair_of_classes_is_ordered_as_in_the_picture() {
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
    // The 18 classes of the trunk in order, and the mode under three of them.
    assert_eq!(pairs, 18 * 17 / 2 + 3);
}

#[test]
fn a_thread_may_wait_everywhere_but_in_an_atomic_context() {
    assert!(Waits::<Unlocked>(std::marker::PhantomData).answer());
    assert!(Waits::<LeafOnly>(std::marker::PhantomData).answer());
    assert!(Waits::<CardCall>(std::marker::PhantomData).answer());
    assert!(!Waits::<AtomicContext>(std::marker::PhantomData).answer());
}

#[test]
fn every_class_has_its_own_name() {
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
