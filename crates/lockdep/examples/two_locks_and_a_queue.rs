//! Two locks, and a queue whose worker takes one of them. Run it with `cargo run -p lockdep --example two_locks_and_a_queue`.
//!
//! The order of the locks is a type: the line that is commented out in `print_both` does not compile. The checker finds at run
//! time what types cannot express: the queue is drained with a lock held that the worker takes. This is a deadlock
//! whenever the queue is not empty. The checker reports it, although nothing hangs here.

use std::sync::Arc;

use lockdep::{Condvar, Domain, Locked, Mutex, OnReport, Unlocked, WaitMap, enter, lock_classes, lock_order};

lock_classes! {
    /// Stands for "until the worker has finished".
    class Work = "print queue";
    /// The printer's settings.
    class Settings = "settings";
    /// The printer itself.
    class Printer = "printer";
    /// The texts to print.
    leaf Jobs = "jobs";
}

// Outer to inner: a thread that holds one may take those to the right of it.
lock_order! {
    root Work;
    Work => Settings;
    Settings => Printer;
}

#[derive(Default)]
struct Queue {
    jobs: Vec<String>,
    busy: bool,
    closed: bool,
}

struct Office {
    settings: Mutex<Settings, String>,
    printer: Mutex<Printer, Vec<String>>,
    queue: Mutex<Jobs, Queue>,
    changed: Condvar,
    /// The kernel's work queues have such a map, too: a thread that drains a queue waits for everything for which the
    /// queue's handlers wait.
    map: WaitMap<Work>,
}

impl Office {
    /// Takes both locks, in their order.
    fn print_both(&self, cx: &mut Locked<'_, Unlocked>, job: &str) {
        let (settings, mut cx) = self.settings.lock(cx);
        let (mut printer, _cx) = self.printer.lock(&mut cx);
        // self.settings.lock(&mut _cx);  // error: `Settings: LockAfter<Printer>` is not satisfied
        printer.push(format!("{job} ({})", *settings));
    }

    fn work(&self, cx: &mut Locked<'_, Unlocked>) {
        loop {
            let mut queue = self.queue.lock_leaf(cx);
            while queue.jobs.is_empty() && !queue.closed {
                self.changed.wait(&mut queue);
            }
            let Some(job) = queue.jobs.pop() else { return };
            queue.busy = true;
            drop(queue);
            let (inside, mut handler) = self.map.run(cx);
            let (settings, mut handler) = self.settings.lock(&mut handler);
            self.printer.lock(&mut handler).0.push(format!("{job} ({})", *settings));
            drop((settings, handler, inside));
            self.queue.lock_leaf(cx).busy = false;
            self.changed.notify_all();
        }
    }

    /// Waits until everything is printed. The type of `cx` says which locks the caller may hold: none that comes after the
    /// queue.
    fn drain<L: lockdep::LockBefore<Work>>(&self, cx: &mut Locked<'_, L>) {
        self.map.drain(cx);
        let mut queue = self.queue.lock_leaf(cx);
        while !queue.jobs.is_empty() || queue.busy {
            self.changed.wait(&mut queue);
        }
    }
}

fn main() {
    let domain = Domain::checked(OnReport::Keep);
    let office = Arc::new(Office {
        settings: Mutex::new("in colour".to_owned()),
        printer: Mutex::new(Vec::new()),
        queue: Mutex::new(Queue::default()),
        changed: Condvar::new(),
        map: WaitMap::new(),
    });
    enter(&domain, "main", |cx| {
        let theirs = Arc::clone(&office);
        let worker = cx.spawn("worker", move |cx| theirs.work(cx));
        office.print_both(cx, "a letter");
        office.queue.lock_leaf(cx).jobs.push("a poster".to_owned());
        office.changed.notify_all();
        office.drain(cx);
        println!("printed: {}", office.printer.lock(cx).0.join(", "));
        assert_eq!(domain.take_reports(), []);

        // A second root inside the first, such as in a callback from a library without tokens. The types are bypassed.
        let (settings, mut held) = office.settings.lock(cx);
        callback(&office, &mut held);
        drop((settings, held));
        for report in domain.take_reports() {
            println!("\n{report}");
        }

        office.queue.lock_leaf(cx).closed = true;
        office.changed.notify_all();
        worker.join(cx).expect("the worker does not panic");
    });
}

/// Drains the queue with the settings held. A try is allowed anywhere, and returns a token at the place of the tried lock. So
/// the types do not see which other locks are held.
fn callback(office: &Office, cx: &mut Locked<'_, Settings>) {
    let outer: Mutex<Outermost, ()> = Mutex::new(());
    let (_outer, mut cx) = outer.try_lock(cx).expect("nobody else knows it");
    office.drain(&mut cx);
}

lock_classes! {
    /// A lock of a library, which comes before all others.
    class Outermost = "library";
}

impl lockdep::LockAfter<Outermost> for Work {}
