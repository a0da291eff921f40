//! The names of the invariants, and what each says: the source of the table in `docs/verification.md`.

/// A statement that must hold, with its name in reports, scenarios and the documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invariant {
    /// The name in reports, as in `load-once`.
    pub name: &'static str,
    /// The statement, as the rest of a sentence that begins with "It holds when".
    pub holds_when: &'static str,
    /// When it is checked.
    pub checked: &'static str,
    /// Whether only a run whose locks are checked checks it: one with `--lockdep`, a debug build, or an exploration.
    pub needs_lockdep: bool,
}

/// Every invariant. [`Violation::invariant`](super::Violation::invariant) is one of their names. An exploration finds
/// `lock-order` and `progress` without the engine, in any program.
pub const INVARIANTS: [Invariant; 16] = [
    Invariant {
        name: "loaded-implies-registered",
        holds_when: "a representor is loaded only while ops of its type are registered",
        checked: "each time a representor lock is released; at rest",
        needs_lockdep: true,
    },
    Invariant {
        name: "ops-quiesced",
        holds_when: "after unregister has returned, none of its callbacks runs or will run",
        checked: "at the start of every callback; when ops are unregistered",
        needs_lockdep: true,
    },
    Invariant {
        name: "load-once",
        holds_when: "a loaded representor is never loaded again, and one that is not loaded is never unloaded",
        checked: "at each load, unload and event; at each request to the card",
        needs_lockdep: false,
    },
    Invariant {
        name: "unwind-own",
        holds_when: "a load that fails leaves what was loaded before it; a command that fails leaves everything as it was, \
                     MAC addresses included",
        checked: "at the end of each load and of each command that failed",
        needs_lockdep: true,
    },
    Invariant {
        name: "switchdev-complete",
        holds_when: "at rest in switchdev mode, each representor that should be loaded is loaded, or is listed with its error \
                     and the time of its next retry, and nothing else is listed; in both modes, a queue without a pending \
                     retry has no back-off",
        checked: "after strict commands; at rest",
        needs_lockdep: false,
    },
    Invariant {
        name: "legacy-empty",
        holds_when: "at rest in legacy mode, no representor is loaded",
        checked: "at the end of each command; at rest",
        needs_lockdep: false,
    },
    Invariant {
        name: "no-leak",
        holds_when: "the card has exactly the resources of what is loaded; a resource exists as long as another depends on \
                     it; after take-down no resource is left",
        checked: "each time a representor lock is released (the table against the card); at each request to the card; at \
                  rest; after take-down",
        needs_lockdep: false,
    },
    Invariant {
        name: "stale-work",
        holds_when: "work that was queued in an older generation changes nothing",
        checked: "in the work handler, with the lock held; at any reconcile after teardown has begun",
        needs_lockdep: true,
    },
    Invariant {
        name: "lag-consistent",
        holds_when: "a LAG transition is complete or undone; only paired E-Switches share a forwarding database; at rest, an \
                     evaluation would change nothing, nothing holds LAG off, rules send to uplinks as the LAG transmits, and \
                     no back-off remains after a failure that is repaired",
        checked: "at the end of each evaluation and transition; at rest",
        needs_lockdep: false,
    },
    Invariant {
        name: "told-once",
        holds_when: "every change that a reader can see of devices, ports, modes, VF counts, SFs, modules and pairs is \
                     published exactly once, before the command is answered",
        checked: "at each event; at the end of each command under the devlink lock; at rest",
        needs_lockdep: true,
    },
    Invariant {
        name: "pairing-told",
        holds_when: "every loaded representor has been notified of exactly the peers that its E-Switch is paired with",
        checked: "each time a table of representors is released; at rest",
        needs_lockdep: false,
    },
    Invariant {
        name: "flows-owned",
        holds_when: "a rule is installed only while the representors of its port and of every port that it names are loaded; the \
                     data plane has exactly the rules of which their owners were told; in legacy mode there is none",
        checked: "each time the lock of rules is released; at rest (the tables against the data plane)",
        needs_lockdep: false,
    },
    Invariant {
        name: "counters-grow",
        holds_when: "the counter of a rule begins at zero, never goes back, and never comes to another rule",
        checked: "when a rule is installed; each time a counter is read",
        needs_lockdep: true,
    },
    Invariant {
        name: "lock-order",
        holds_when: "the order of locks has no cycle, no lock is taken twice by one thread, and every assertion holds",
        checked: "each time a lock is taken",
        needs_lockdep: true,
    },
    Invariant {
        name: "progress",
        holds_when: "every command ends: no deadlock, no lost wake-up, no livelock",
        checked: "in every schedule",
        needs_lockdep: false,
    },
    Invariant {
        name: "true-success",
        holds_when: "what a command reported as done was done when it returned; the modules that a loaded module depends on \
                     are loaded",
        checked: "at the end of every command, under its lock; when a module has been loaded or unloaded; when rules have been changed",
        needs_lockdep: false,
    },
];
