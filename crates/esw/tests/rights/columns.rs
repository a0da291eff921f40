//! The users: each column of the matrix, with the rights that the kernel gives them.

use crate::rows::{Attempt, Change, Row, Rule};

/// The rights of a user.
#[derive(Clone, Copy)]
pub struct Rights {
    /// CAP_NET_ADMIN over the network namespace, and over the user namespace of the lab.
    pub network: bool,
    pub initial: bool,
    /// CAP_SYS_MODULE over the user namespace of the lab.
    pub module: bool,
    /// CAP_SYS_ADMIN over it.
    pub admin: bool,
    /// Is the owner of the card's files, and of the machine's.
    pub files: bool,
    pub machine_files: bool,
}

const ALL: Rights =
    Rights { network: true, initial: true, module: true, admin: true, files: true, machine_files: true };
const NONE: Rights =
    Rights { network: false, initial: false, module: false, admin: false, files: false, machine_files: false };

/// A process: the words it is started with, and whether that is done in the lab.
#[derive(Clone, Copy)]
pub struct Who {
    pub inside: bool,
    pub words: &'static [&'static str],
}

/// How an actor comes to its sockets.
#[derive(Clone, Copy)]
pub enum Sockets {
    /// It opens them.
    Own,
    /// They are passed on by somebody else over a socket of AF_UNIX.
    Passed(Who),
    /// Who opened them became the actor.
    Inherited,
}

/// A column.
pub struct Column {
    /// In the head of the table.
    pub title: &'static str,
    /// Whether the lab is an ordinary user's own.
    pub own: bool,
    pub who: Who,
    pub sockets: Sockets,
    pub rights: Rights,
    /// Whether it is in a network namespace of its own, where none of the netdevs is.
    pub apart: bool,
}

const fn inside(words: &'static [&'static str]) -> Who {
    Who { inside: true, words }
}

const fn outside(words: &'static [&'static str]) -> Who {
    Who { inside: false, words }
}

const ROOT: &[&str] = &[];
const WITHOUT_NET_ADMIN: &[&str] = &["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
const WITHOUT_SYS_MODULE: &[&str] = &["setpriv", "--bounding-set", "-sys_module", "--inh-caps", "-sys_module"];
const NAMESPACE: &[&str] = &["unshare", "-Ur"];
const USER: &[&str] = &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
const USER_NAMESPACE: &[&str] =
    &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "-Ur"];
const USER_APART: &[&str] = &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "-Urn"];
const USER_NO_NEW: &[&str] = &[
    "setpriv",
    "--reuid",
    "65534",
    "--regid",
    "65534",
    "--clear-groups",
    "--no-new-privs",
    "--bounding-set=-all",
    "unshare",
    "-Ur",
];

/// The columns of users that are one process.
pub fn processes() -> Vec<Column> {
    let column = |title, own, words, rights| Column {
        title,
        own,
        who: inside(words),
        sockets: Sockets::Own,
        rights,
        apart: false,
    };
    let files = Rights { files: true, machine_files: true, ..NONE };
    vec![
        column("root", false, ROOT, ALL),
        column("root without NET_ADMIN", false, WITHOUT_NET_ADMIN, Rights { network: false, initial: false, ..ALL }),
        column("root without SYS_MODULE", false, WITHOUT_SYS_MODULE, Rights { module: false, ..ALL }),
        column("root, user namespace", false, NAMESPACE, files),
        column("user", false, USER, NONE),
        column("user, user namespace", false, USER_NAMESPACE, NONE),
        column("user, user namespace, no_new_privs", false, USER_NO_NEW, NONE),
        Column { apart: true, ..column("user, user and network namespace", false, USER_APART, NONE) },
        column("own lab: root", true, ROOT, Rights { machine_files: false, ..ALL }),
        column("own lab: user namespace", true, NAMESPACE, Rights { files: true, ..NONE }),
    ]
}

/// The columns of users that use sockets that another process has opened.
pub fn passed() -> Vec<Column> {
    let column = |title, own, opener, who, may| {
        let rights = if may { ALL } else { NONE };
        Column { title, own, who, sockets: Sockets::Passed(opener), rights, apart: false }
    };
    vec![
        column("root → root", false, inside(ROOT), inside(ROOT), true),
        column("root → user", false, inside(ROOT), inside(USER), false),
        Column {
            sockets: Sockets::Inherited,
            ..column("root, becomes user", false, inside(ROOT), inside(USER), false)
        },
        column("user → root", false, inside(USER), inside(ROOT), false),
        column("user, user namespace → root", false, inside(USER_NAMESPACE), inside(ROOT), false),
        column("root → root outside", false, inside(ROOT), outside(ROOT), true),
        column("root → user outside", false, inside(ROOT), outside(USER), false),
        column("user → root outside", false, inside(USER), outside(ROOT), false),
        column("root outside → root", false, outside(ROOT), inside(ROOT), true),
        column("root outside → user", false, outside(ROOT), inside(USER), false),
        column("user outside → root", false, outside(USER), inside(ROOT), false),
        column("own lab: root → user namespace", true, inside(ROOT), inside(NAMESPACE), false),
        column("own lab: user namespace → root", true, inside(NAMESPACE), inside(ROOT), false),
    ]
}

impl Column {
    /// Whether it can try this at all. A socket that was opened outside is the kernel's alone.
    pub fn tries(&self, row: &Row) -> bool {
        match self.sockets {
            Sockets::Own => true,
            Sockets::Passed(Who { inside: false, .. }) => row.attempt.is_message() && row.outside,
            Sockets::Passed(_) | Sockets::Inherited => row.attempt.is_message(),
        }
    }

    /// What the rule says: an error number, 0 if it is done.
    pub fn expected(&self, row: &Row) -> i32 {
        let Rights { network, initial, module, admin, files, machine_files } = self.rights;
        let allowed = row.allowed_own.filter(|_| self.own).unwrap_or(row.allowed);
        let unless = |may, errno| if may { allowed } else { errno };
        match row.rule {
            Rule::Anyone => allowed,
            // The netdev is not there, and that is said before rights are asked for, as it has those over its own.
            Rule::Network if self.apart && matches!(row.attempt, Attempt::Route(_)) => libc::ENODEV,
            // It has them over its own, where nothing of the card is published.
            Rule::Network if self.apart && matches!(row.attempt, Attempt::Psample(_)) => allowed,
            Rule::Network => unless(network, libc::EPERM),
            Rule::Initial => unless(initial, libc::EPERM),
            Rule::Module => unless(module, libc::EPERM),
            Rule::File => unless(files, libc::EACCES),
            Rule::MachineFile => unless(machine_files, libc::EACCES),
            Rule::FileThenNetwork if files => unless(network, libc::EPERM),
            Rule::FileThenAdmin if files => unless(admin, libc::EPERM),
            Rule::FileThenMachine if files => unless(network && machine_files, libc::EPERM),
            Rule::FileThenNetwork | Rule::FileThenMachine | Rule::FileThenAdmin => libc::EACCES,
        }
    }

    /// Whether those who look must see a change when this came of it.
    pub fn change(&self, row: &Row, errno: i32) -> Change {
        if errno == 0 && row.change != Change::None { row.change } else { Change::None }
    }
}
