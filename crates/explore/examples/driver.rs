//! A small driver whose teardown can deadlock, and how the explorer finds that.
//!
//! The device raises events. Its event handler may not wait, so it puts them into a queue. A worker thread takes them out and
//! handles them with the device lock held. To remove the device, the driver stops the worker and waits for its end. If it
//! does so with the device lock held, it waits for a worker that may be waiting for the device lock.
//!
//! In most schedules nothing happens: the worker has handled everything before the removal begins, or finds that it shall
//! stop. The two deadlock only if the worker has taken an event out of the queue, and not yet the device lock, when the
//! removal takes that lock.
//! Run it with `cargo run -p explore --example driver`.

use std::process::ExitCode;
use std::sync::Arc;

use explore::{Closure, Options, Program, Report, Watch, campaign, columns};
use lockdep::{Condvar, JoinHandle, Locked, Mutex, Unlocked, lock_classes, lock_order};

lock_classes! {
    /// The state of the device. It is held during requests to the device.
    class Device = "device";
    /// The events that wait to be handled. The event handler takes this lock, so no lock is taken under it.
    leaf Events = "events";
}

lock_order! {
    root Device;
}

/// The driver's view of the device.
#[derive(Default)]
struct State {
    handled: u32,
    removed: bool,
}

#[derive(Default)]
struct Queue {
    waiting: u32,
    stopped: bool,
}

struct Driver {
    device: Mutex<Device, State>,
    events: Mutex<Events, Queue>,
    changed: Condvar,
}

impl Driver {
    /// Binds the driver to a device, and starts its worker.
    fn probe(cx: &Locked<'_, Unlocked>) -> (Arc<Self>, JoinHandle<()>) {
        let driver = Arc::new(Self {
            device: Mutex::new(State::default()),
            events: Mutex::new(Queue::default()),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&driver);
        let worker = cx.spawn("worker", move |cx| theirs.work(cx));
        (driver, worker)
    }

    /// Handles an event. In the kernel this is an interrupt handler: it may take leaf locks, and may not wait.
    fn event(&self, cx: &mut Locked<'_, Unlocked>) {
        cx.atomic(|cx| self.events.lock_leaf(cx).waiting += 1);
        self.changed.notify_all();
    }

    fn work(&self, cx: &mut Locked<'_, Unlocked>) {
        loop {
            let mut queue = self.events.lock_leaf(cx);
            while queue.waiting == 0 && !queue.stopped {
                self.changed.wait(&mut queue);
            }
            if queue.waiting == 0 {
                return;
            }
            queue.waiting -= 1;
            drop(queue);
            let (mut device, cx) = self.device.lock(cx);
            // This must hold at this step. The explorer checks it in every schedule.
            cx.ensure("no-use-after-remove", || !device.removed, || "an event of a device that has gone".to_owned());
            device.handled += 1;
        }
    }

    fn stop<L>(&self, cx: &mut Locked<'_, L>) {
        self.events.lock_leaf(cx).stopped = true;
        self.changed.notify_all();
    }

    /// Unbinds with the lock held. It looks safe: no other thread can use the device while it is removed.
    fn remove_under_the_lock(&self, cx: &mut Locked<'_, Unlocked>, worker: JoinHandle<()>) {
        let (mut device, mut cx) = self.device.lock(cx);
        self.stop(&mut cx);
        worker.join(&mut cx).expect("the worker does not panic");
        device.removed = true;
    }

    /// Unbinds: stops all use of the device first, and then removes it.
    fn remove(&self, cx: &mut Locked<'_, Unlocked>, worker: JoinHandle<()>) {
        self.stop(cx);
        worker.join(cx).expect("the worker does not panic");
        self.device.lock(cx).0.removed = true;
    }
}

/// Raises events while the device is removed.
fn story(name: &str, remove: fn(&Driver, &mut Locked<'_, Unlocked>, JoinHandle<()>)) -> impl Program {
    Closure::new(name, move |cx| {
        let (driver, worker) = Driver::probe(cx);
        let hardware = Arc::clone(&driver);
        let hardware = cx.spawn("hardware", move |cx| {
            hardware.event(cx);
            hardware.event(cx);
        });
        remove(&driver, cx, worker);
        hardware.join(cx).expect("the hardware does not panic");
    })
}

/// Explores every schedule with at most two preemptions.
fn explored(program: &impl Program) -> Report {
    campaign(program, &Options::default(), &Arc::new(Watch::default()))
}

/// Explores the driver with its teardown under the lock, and the one without.
pub fn both() -> [Report; 2] {
    [
        explored(&story("removal under the device lock", Driver::remove_under_the_lock)),
        explored(&story("removal after the worker's end", Driver::remove)),
    ]
}

fn main() -> ExitCode {
    let [wrong, right] = both();
    for report in [&wrong, &right] {
        match report.violations.first() {
            Some(violation) => println!("{}", columns(&violation.story, 120)),
            None => println!(
                "{}: held in {} schedules, every one with at most {} preemptions",
                report.program,
                report.schedules,
                report.exhaustive_preemptions.unwrap_or_default()
            ),
        }
    }
    // The explorer must find the first.
    if wrong.violations.is_empty() || !right.violations.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
