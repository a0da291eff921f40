//! A process may have any number of lock classes.

use lockdep::{Domain, Locked, Mutex, OnReport, ReportKind, Unlocked, enter, lock_classes, lock_order};

lock_classes! {
    class Root = "root";
}

/// Classes directly under the root, and a function that takes a lock of each.
macro_rules! many {
    ($($class:ident)*) => {
        lock_classes! { $(class $class = "one of many";)* }
        lock_order! { root Root; $(Root => $class;)* }

        fn take_one_of_each(cx: &mut Locked<'_, Unlocked>, root: &Mutex<Root, ()>) -> u32 {
            let (_root, mut cx) = root.lock(cx);
            let mut taken = 0;
            $(
                drop(Mutex::<$class, ()>::new(()).lock(&mut cx));
                taken += 1;
            )*
            taken
        }
    };
}

many! {
    C0 C1 C2 C3 C4 C5 C6 C7 C8 C9 C10 C11 C12 C13 C14 C15 C16 C17 C18 C19 C20 C21 C22 C23 C24 C25 C26 C27 C28 C29 C30
    C31 C32 C33 C34 C35 C36 C37 C38 C39 C40 C41 C42 C43 C44 C45 C46 C47 C48 C49 C50 C51 C52 C53 C54 C55 C56 C57 C58
    C59 C60 C61 C62 C63 C64 C65 C66 C67 C68 C69 C70 C71 C72 C73 C74 C75 C76 C77 C78 C79 C80 C81 C82 C83 C84 C85 C86
    C87 C88 C89 C90 C91 C92 C93 C94 C95 C96 C97 C98 C99
}

#[test]
fn the_order_of_more_than_64_classes_is_checked() {
    let domain = Domain::checked(OnReport::Keep);
    let (root, one, other) = (Mutex::<Root, _>::new(()), Mutex::<C98, _>::new(()), Mutex::<C99, _>::new(()));
    let taken = enter(&domain, "main", |cx| take_one_of_each(cx, &root));
    assert_eq!((taken, domain.edge_count(), domain.edges().len()), (100, 100, 100));
    assert_eq!(domain.take_reports(), []);
    enter(&domain, "main", |cx| {
        let (_one, mut cx) = one.lock(cx);
        // A try is allowed anywhere, and its token is at the root.
        let (_root, mut cx) = root.try_lock(&mut cx).expect("nobody has it");
        let (_other, _cx) = other.lock(&mut cx);
    });
    enter(&domain, "main", |cx| {
        let (_other, mut cx) = other.lock(cx);
        let (_root, mut cx) = root.try_lock(&mut cx).expect("nobody has it");
        let (_one, _cx) = one.lock(&mut cx);
    });
    let reports = domain.take_reports();
    assert!(matches!(&reports[..], [report] if matches!(report.kind, ReportKind::Cycle { .. })), "{reports:#?}");
}
