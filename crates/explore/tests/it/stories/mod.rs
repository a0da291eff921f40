//! Stories written by hand, for the tests of the forms in which they are shown.
#![allow(dead_code, reason = "each test tells some of them")]

use explore::{Row, RowKind, Story, Tool};

/// Builds a story.
pub struct Writer {
    story: Story,
    held: Vec<Vec<&'static str>>,
    step: usize,
}

impl Writer {
    /// Begins a story with these threads.
    pub fn new(threads: &[&str]) -> Self {
        let story = Story {
            tool: Tool {
                name: "esw",
                program: "scenario",
                replay_command: ["esw check --replay ", ""],
                categories: ["card", "representor"],
                ..Tool::default()
            },
            ordered: vec!["device", "devlink", "mode", "module", "auxiliary device", "representors", "rep ops"],
            program: "registration against a mode change".to_owned(),
            invariant: "representors".to_owned(),
            token: "1.registration-against-mode-change.2b7e.5-41-6".to_owned(),
            threads: threads.iter().map(|&name| name.to_owned()).collect(),
            ..Story::default()
        };
        Self { story, held: vec![Vec::new(); threads.len()], step: 0 }
    }

    /// Returns the story, with its header.
    pub fn end(mut self, detail: &str, faults: &[&str]) -> Story {
        self.story.detail = detail.to_owned();
        self.story.faults = faults.iter().map(|&fault| fault.to_owned()).collect();
        self.story.preemptions = self.story.rows.iter().filter(|row| row.kind == RowKind::Preempted).count();
        self.story
    }

    /// Takes a lock, as a step of the schedule.
    pub fn take(&mut self, thread: usize, class: &'static str, object: usize, at: &str) -> &mut Self {
        self.step += 1;
        self.held[thread].push(class);
        self.row(thread, RowKind::Acquire, class, Some(object), at)
    }

    /// Releases a lock.
    pub fn drop(&mut self, thread: usize, class: &'static str, object: usize) -> &mut Self {
        let place = self.held[thread].iter().rposition(|held| *held == class).unwrap();
        self.held[thread].remove(place);
        self.row(thread, RowKind::Release, class, Some(object), "crates/lockdep/src/model.rs:599")
    }

    /// Takes and releases a lock.
    pub fn touch(&mut self, thread: usize, class: &'static str, object: usize, at: &str) -> &mut Self {
        self.take(thread, class, object, at).drop(thread, class, object)
    }

    /// Adds a row without an object.
    pub fn say(&mut self, thread: usize, kind: RowKind, what: &str) -> &mut Self {
        self.row(thread, kind, what, None, "")
    }

    /// Adds an operation on an object that is not a lock.
    pub fn does(&mut self, thread: usize, kind: RowKind, what: &str, object: usize, at: &str) -> &mut Self {
        self.step += 1;
        self.row(thread, kind, what, Some(object), at)
    }

    fn row(&mut self, thread: usize, kind: RowKind, what: &str, object: Option<usize>, at: &str) -> &mut Self {
        let held = self.held[thread].iter().map(|&class| class.to_owned()).collect();
        let (what, at) = (what.to_owned(), at.to_owned());
        self.story.rows.push(Row { step: self.step, thread, kind, what, object, at, held });
        self
    }
}

const MODE: &str = "crates/eswitch/src/eswitch/mode.rs";
const REGISTER: &str = "crates/eswitch/src/eswitch/representor.rs";

/// Two threads load the same representors, which the representor lock prevents.
pub fn race() -> Story {
    let mut w = Writer::new(&["main", "esw-0000:08:00.0", "orchestrator", "admin"]);
    w.does(0, RowKind::Start, "thread", 1, "").take(0, "device", 2, "crates/eswitch/src/device.rs:98");
    w.say(0, RowKind::Make, "function pf0").say(0, RowKind::Make, "netdev pf0").drop(0, "device", 2);
    w.does(0, RowKind::Spawn, "thread", 7, "").does(0, RowKind::Spawn, "thread", 8, "");
    w.does(2, RowKind::Start, "thread", 7, "").does(3, RowKind::Start, "thread", 8, "");
    w.say(2, RowKind::StepBegin, "devlink dev eswitch set pci/0000:08:00.0 mode switchdev");
    w.take(2, "devlink", 3, "crates/eswitch/src/engine.rs:222").touch(2, "mode", 4, &format!("{MODE}:54"));
    w.touch(2, "card state", 5, "crates/card-memory/src/lib.rs:129").say(2, RowKind::Make, "fdb pf0");
    w.take(2, "representors", 6, &format!("{MODE}:198")).say(2, RowKind::Make, "eth pf0 uplink");
    for vf in ["eth pf0 vf0", "eth pf0 vf1", "eth pf0 vf2"] {
        w.say(2, RowKind::Make, vf);
    }
    w.does(2, RowKind::Read, "generation", 9, "crates/eswitch/src/eswitch/work_queue.rs:117");
    w.say(2, RowKind::Preempted, "admin");
    w.say(3, RowKind::StepBegin, "modprobe mlx5_ib");
    w.take(3, "module", 10, "crates/eswitch/src/module.rs:63");
    w.take(3, "auxiliary device", 11, "crates/eswitch/src/auxiliary.rs:109");
    w.touch(3, "bus lists", 12, "crates/eswitch/src/auxiliary.rs:70");
    w.say(3, RowKind::Fault, "making ib pf0 vf1: no memory");
    w.drop(2, "representors", 6).touch(2, "mode", 4, &format!("{MODE}:66"));
    w.take(3, "representors", 6, &format!("{REGISTER}:89")).touch(3, "rep ops", 13, &format!("{REGISTER}:91"));
    w.say(3, RowKind::Make, "ib pf0 uplink").say(3, RowKind::Make, "ib pf0 vf0");
    w.say(3, RowKind::Preempted, "orchestrator");
    w.does(2, RowKind::Write, "generation", 9, "crates/eswitch/src/eswitch/work_queue.rs:78");
    w.say(2, RowKind::Unmake, "eth pf0 vf2");
    w.say(2, RowKind::Violation, "pf0 vf2 has an RDMA representor and no netdev of its own");
    w.drop(2, "devlink", 3).say(2, RowKind::StepEnd, "devlink dev eswitch set pci/0000:08:00.0 mode switchdev: EBUSY");
    w.drop(3, "representors", 6).drop(3, "auxiliary device", 11).drop(3, "module", 10);
    w.say(3, RowKind::StepEnd, "modprobe mlx5_ib").does(3, RowKind::Exit, "thread", 8, "");
    w.end("pf0 vf2 has an RDMA representor and no netdev of its own", &["making ib pf0 vf1: no memory"])
}

/// Two threads wait for each other.
pub fn deadlock() -> Story {
    let mut w = Writer::new(&["main", "orchestrator", "admin"]);
    w.say(1, RowKind::StepBegin, "devlink dev reload pci/0000:08:00.0");
    w.take(1, "devlink", 1, "crates/eswitch/src/engine.rs:222").say(1, RowKind::Preempted, "admin");
    w.say(2, RowKind::StepBegin, "rmmod mlx5_ib").take(2, "representors", 2, &format!("{REGISTER}:120"));
    let detail = "deadlock! orchestrator waits for representors, which admin holds, at crates/eswitch/src/eswitch/mode.rs:198; \
         admin waits for devlink, which orchestrator holds, at crates/eswitch/src/engine.rs:222";
    let mut story = w.end(detail, &[]);
    story.invariant = "progress".to_owned();
    story
}

/// A story with text that would break out of a page or move a terminal's cursor if it were not escaped.
pub fn hostile() -> Story {
    const TEXT: &str = "</script><img src=x onerror=\"document.title='owned'\"><!--<script>{{data}}\u{2028}\u{1b}[2J";
    let mut w = Writer::new(&[TEXT, "it's"]);
    w.say(0, RowKind::StepBegin, TEXT).take(0, "devlink", 1, TEXT).say(0, RowKind::Make, TEXT);
    w.say(1, RowKind::Violation, TEXT).drop(0, "devlink", 1).say(0, RowKind::StepEnd, TEXT);
    let mut story = w.end(TEXT, &[TEXT]);
    (story.program, story.invariant, story.token) = (TEXT.to_owned(), TEXT.to_owned(), TEXT.to_owned());
    story
}

/// A story with as many rows as the longest ones.
pub fn long() -> Story {
    let mut w = Writer::new(&["orchestrator", "admin", "work"]);
    for round in 0..200 {
        let thread = round % 3;
        w.say(thread, RowKind::StepBegin, "echo 4 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs");
        w.take(thread, "devlink", 1, "crates/eswitch/src/engine.rs:222").take(thread, "representors", 2, REGISTER);
        for vf in 0..4 {
            w.touch(thread, "card state", 3, "crates/card-memory/src/lib.rs:74");
            w.say(thread, if round % 2 == 0 { RowKind::Make } else { RowKind::Unmake }, &format!("eth pf0 vf{vf}"));
        }
        w.drop(thread, "representors", 2).drop(thread, "devlink", 1);
        w.say(thread, RowKind::StepEnd, "echo 4 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs");
    }
    w.end("it took too long", &[])
}
