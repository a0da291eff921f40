//! Where it is all tried: a card with a lab of root's, another with a lab of an ordinary user's, and the same
//! netdevs without either.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use devlink::{Client, DEVLINK};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::actor::{hear, tell};
use crate::columns::{Column, Sockets, Who};
use crate::look;
use crate::rows::{Change, ELSEWHERE, Fill, Row, Step};

/// How long anything may take before the test gives up.
const LONG: Duration = Duration::from_secs(60);
/// How long it may take until a change is undone.
const BACK: Duration = Duration::from_secs(10);

/// Makes the netdevs that are not the card's.
pub const HOST_NETDEVS: &str = "ip link add host0 address 02:00:00:00:aa:00 type veth peer name host1 address \
                                02:00:00:00:aa:01; ip link set host0 up";
/// Makes what stands for a VF's netdev where there is no card. A card makes it again by itself.
pub const VF_AGAIN: &str = "test -z \"$ESW_RIGHTS_PLAIN\" || ip link add enp8s0f0v0 address 02:e5:08:00:00:01 type veth \
                            peer name peer1 address 02:00:00:00:bb:01";
/// What stands for the other netdevs of a card.
const PLAIN_NETDEVS: &str = "ip link add enp8s0f0np0 address 02:e5:08:00:ff:ff type veth peer name peer0; \
                             ip link add enp8s0f0npf0vf0 address 02:e6:08:00:00:01 type veth peer name peer2";

/// An ordinary user who becomes the owner of namespaces.
const USER: &[&str] = &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];

/// A process that carries out requests.
pub struct Actor {
    /// Ours, unless another started it.
    child: Option<Child>,
    socket: OwnedFd,
    /// Whoever opened its sockets.
    opener: Option<Box<Actor>>,
}

/// What a process is told by, and its end.
fn pair() -> (OwnedFd, OwnedFd) {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.expect("a pair of sockets");
    set_socket_timeout(&ours, Timeout::Recv, Some(LONG)).expect("a limit of time");
    (ours, theirs)
}

impl Actor {
    /// Starts one by these words.
    fn start(words: &[String], plain: bool) -> Self {
        let (socket, theirs) = pair();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env(crate::PART, "1").stdin(Stdio::from(theirs)).stdout(Stdio::null());
        if plain {
            command.env("ESW_RIGHTS_PLAIN", "1");
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("{words:?}: {error}"));
        drop(command);
        Self { child: Some(child), socket, opener: None }.greeted(words)
    }

    /// Has it start one by these words.
    fn spawn(&self, words: &[String]) -> Self {
        let (socket, theirs) = pair();
        let (answer, _) = self.ask_with(&format!("spawn {}", words.join(" ")), &[theirs]);
        assert_eq!(answer, "started", "{words:?}");
        Self { child: None, socket, opener: None }.greeted(words)
    }

    fn greeted(self, words: &[String]) -> Self {
        assert_eq!(self.ask("hello"), "here", "{words:?}");
        self
    }

    fn ask_with(&self, text: &str, fds: &[OwnedFd]) -> (String, Vec<OwnedFd>) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        tell(self.socket.as_fd(), text, &fds).unwrap_or_else(|error| panic!("`{text}`: {error}"));
        hear(self.socket.as_fd()).unwrap_or_else(|error| panic!("`{text}`: {error}"))
    }

    /// Tells it something; its answer.
    pub fn ask(&self, text: &str) -> String {
        self.ask_with(text, &[]).0
    }

    /// Runs a line of a shell; what it prints, if it does well.
    fn shell(&self, line: &str) -> Result<String, String> {
        let answer = self.ask(&format!("shell {line}"));
        match answer.strip_prefix("0 ") {
            Some(said) => Ok(said.trim().to_owned()),
            None => Err(format!("`{line}`: {answer}")),
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // It ends when nobody is left to tell it anything; a lab around it ends with it.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        let until = Instant::now() + BACK;
        let Some(child) = &mut self.child else { return };
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Programs that everybody may run, and folders.
pub struct Tools {
    pub folder: PathBuf,
    pub esw: String,
    pub this: String,
}

/// Where something is tried.
pub struct World {
    pub name: &'static str,
    this: String,
    /// Root of where the netdevs are, in no lab: it looks, and starts those who are in none.
    looker: Actor,
    /// Root in the lab, if there is one: it starts those who are in it.
    lab: Option<Actor>,
    card: Option<Client>,
    home: u32,
    elsewhere: u32,
    base: String,
    /// The device of the SF that is active.
    sf: String,
    /// The last of all to go.
    down: Option<Down>,
}

/// The outcome of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub errno: i32,
    /// What a program said that nobody understood, or what went wrong beside.
    pub said: String,
    /// Whether something was changed, and what.
    pub changed: Option<String>,
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn run(words: &[String]) {
    let output = Command::new(&words[0]).args(&words[1..]).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{words:?}: {error}"));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl World {
    /// A card, and the labs of whoever has these words put before.
    pub fn with_card(name: &'static str, tools: &Tools, user: &[&str]) -> Self {
        let own = !user.is_empty();
        let folder = tools.folder.join(name);
        std::fs::create_dir(&folder).expect("a folder");
        let (config, socket) = (folder.join("config.toml"), folder.join("a.sock"));
        let text = format!(
            "state_dir = \"{}\"\n[cards.a]\nkind = \"linux\"\nsocket = \"{}\"\n[cards.a.card]\npfs = 2\ntotal_vfs = 4\nvf_msix = 256\n\
             modules = [\"mlx5_ib\"]\n",
            folder.display(),
            socket.display()
        );
        std::fs::write(&config, text).expect("a configuration");
        std::os::unix::fs::chown(&folder, own.then_some(65534), own.then_some(65534)).expect("an owner");
        let (config, socket_text) = (config.to_string_lossy().into_owned(), socket.to_string_lossy().into_owned());
        let esw = |rest: &[&str]| [words(user), vec![tools.esw.clone()], words(rest)].concat();
        run(&esw(&["up", "--daemon", "--detach", "--config", &config]));
        let down = Down(esw(&["down", "--socket", &socket_text]));
        let client = Client::connect(&socket).expect("the card's socket");
        let daemon = rustix::net::sockopt::socket_peercred(client.socket()).expect("who serves").pid;
        let there = format!("{}", daemon.as_raw_nonzero());
        let enter = ["nsenter", "-t", &there, "-U", "-m", "-n", "--preserve-credentials"];
        let enter = if own { [words(user), words(&enter)].concat() } else { Vec::new() };
        let mut world = Self::around(name, tools, &enter, Some(client));
        // The card takes orders from the one who runs it: from there, not from here.
        let (_, mut connected) = world.looker.ask_with(&format!("connect {socket_text}"), &[]);
        world.card = Some(Client::over(connected.remove(0)));
        world.down = Some(down);
        let lab = [esw(&["exec", "--socket", &socket_text, "--"]), vec![tools.this.clone()]].concat();
        world.lab = Some(Actor::start(&lab, false));
        for line in [
            "echo 2 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs",
            "echo 1 > /sys/bus/pci/devices/0000:08:00.1/sriov_numvfs",
            "devlink dev eswitch set pci/0000:08:00.0 mode switchdev",
            "devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88",
            "devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 89",
            "devlink port function set pci/0000:08:00.0/32769 state active",
        ] {
            world.perform(line).unwrap_or_else(|error| panic!("{name}: {line}: {error}"));
        }
        let until = Instant::now() + LONG;
        while look::sf_of(&world.look()).is_none() {
            assert!(Instant::now() < until, "{name}: the SF has no device");
            std::thread::sleep(Duration::from_millis(5));
        }
        world.begin();
        world.sf = look::sf_of(&world.base).expect("the SF's device");
        world
    }

    /// The same netdevs, without a card or a lab.
    pub fn plain(name: &'static str, tools: &Tools, user: &[&str]) -> Self {
        let unshare: &[&str] = if user.is_empty() {
            &["unshare", "--net", "--mount", "--propagation", "private"]
        } else {
            &["unshare", "-Ur", "--net", "--mount", "--propagation", "private"]
        };
        let mut world = Self::around(name, tools, &[words(user), words(unshare)].concat(), None);
        for line in
            ["mount -t tmpfs none /run", "mount -t sysfs none /sys", "ip link set lo up", PLAIN_NETDEVS, VF_AGAIN]
        {
            world.looker.shell(line).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        world.begin();
        world
    }

    fn around(name: &'static str, tools: &Tools, words: &[String], card: Option<Client>) -> Self {
        let looker = Actor::start(&[words, std::slice::from_ref(&tools.this)].concat(), card.is_none());
        let home = looker.child.as_ref().map_or(0, Child::id);
        let this = tools.this.clone();
        Self {
            name,
            this,
            looker,
            lab: None,
            card,
            home,
            elsewhere: 0,
            base: String::new(),
            sf: "none".to_owned(),
            down: None,
        }
    }

    /// Makes what every world has, and takes it as what everything is to come back to.
    fn begin(&mut self) {
        self.elsewhere = self.looker.ask("hold").parse().expect("a process");
        let named = format!(
            "until ip netns attach {ELSEWHERE} {} && ip -n {ELSEWHERE} link set lo up; do sleep 0.01; done",
            self.elsewhere
        );
        // The process is in its namespace when that is not ours any more.
        let there = format!(
            "while [ \"$(readlink /proc/self/ns/net)\" = \"$(readlink /proc/{}/ns/net)\" ]; do sleep 0.01; done",
            self.elsewhere
        );
        for line in [
            &there,
            &named,
            HOST_NETDEVS,
            "ip link add hostbr address 02:00:00:00:aa:02 type bridge",
            "ip link set enp8s0f0np0 up",
        ] {
            self.looker.shell(line).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        }
        self.base = self.settled();
    }

    /// All there is now.
    fn look(&mut self) -> String {
        let card = self.card.as_mut().map(|client| look::card(client).expect("the card answers"));
        self.looker.ask("look") + "\n" + &card.unwrap_or_default()
    }

    /// All there is, once it does not change any more.
    fn settled(&mut self) -> String {
        let until = Instant::now() + BACK;
        let mut last = self.look();
        loop {
            std::thread::sleep(Duration::from_millis(10));
            let now = self.look();
            if now == last || Instant::now() > until {
                return now;
            }
            last = now;
        }
    }

    fn perform(&mut self, words: &str) -> Result<(), String> {
        let Some(card) = &mut self.card else { return Ok(()) };
        crate::steps::perform(card, words).map(drop)
    }

    fn command(&mut self, command: u8, fill: Fill) -> Result<(), String> {
        let Some(card) = &mut self.card else { return Ok(()) };
        card.ask(DEVLINK, command, fill).map(drop).map_err(|error| error.to_string())
    }

    fn steps(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            match step {
                Step::Shell(line) => self.looker.shell(&line.replace("$RIGHTS", &self.this)).map(drop),
                Step::Card(words) => self.perform(&words.replace("SF", &self.sf)),
                Step::Devlink(command, fill) => self.command(*command, *fill),
            }?;
        }
        Ok(())
    }

    /// Starts whoever a column is of.
    pub fn start(&self, column: &Column) -> Actor {
        let start = |who: &Who| {
            let starter = self.lab.as_ref().filter(|_| who.inside).unwrap_or(&self.looker);
            starter.spawn(&[words(who.words), vec![self.this.clone()]].concat())
        };
        match column.sockets {
            Sockets::Own => start(&column.who),
            Sockets::Inherited => {
                let actor = start(&Who { words: &[], ..column.who });
                let become_user = format!("become {} {}", column.who.words.join(" "), self.this);
                tell(actor.socket.as_fd(), &become_user, &[]).expect("it hears");
                actor.greeted(&words(column.who.words))
            }
            Sockets::Passed(opener) => {
                let opener = start(&opener);
                let (_, sockets) = opener.ask_with("open", &[]);
                assert_eq!(sockets.len(), 3);
                let mut actor = start(&column.who);
                assert_eq!(actor.ask_with("use", &sockets).0, "uses");
                actor.opener = Some(Box::new(opener));
                actor
            }
        }
    }

    /// Makes an attempt, looks whether something was changed, and makes it as it was.
    pub fn attempt(&mut self, actor: &Actor, row: &Row, number: usize, column: &Column) -> Outcome {
        let mut said = String::new();
        let before = if row.setup.is_empty() {
            self.base.clone()
        } else {
            if let Err(error) = self.steps(row.setup) {
                said += &error;
            }
            self.settled()
        };
        let answer = actor.ask(&format!("try {number} {} {} {}", self.home, self.elsewhere, self.sf));
        let (errno, rest) = answer.split_once(' ').unwrap_or((&answer, ""));
        let errno = errno.parse().unwrap_or(crate::netlink::NO_ANSWER);
        said += rest;
        let until = Instant::now() + Duration::from_secs(2);
        let mut after = self.look();
        while after == before && column.change(row, errno) == Change::Seen && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
            after = self.look();
        }
        let changed = (after != before).then(|| difference(&before, &after));
        if changed.is_some() || !row.setup.is_empty() || errno == 0 && row.change == Change::Passing {
            // What was refused after a setup may leave less to be undone than there is.
            let undone = self.steps(row.undo);
            let until = Instant::now() + BACK;
            let mut now = self.look();
            while now != self.base && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
                now = self.look();
            }
            if now != self.base {
                said += &format!(" not as it was ({undone:?}): {}", difference(&self.base, &now));
                self.base = now;
            }
        }
        Outcome { errno, said, changed }
    }

    /// Every file of the card's that somebody may write, as root in the lab sees it.
    pub fn writable(&self) -> Vec<String> {
        let lab = self.lab.as_ref().expect("a lab");
        let folders = "/sys/devices/pci0000:08 /sys/bus/pci/drivers/mlx5_core /sys/bus/auxiliary";
        lab.ask(&format!("writable {folders}")).lines().map(str::to_owned).collect()
    }
}

/// Takes a card down.
struct Down(Vec<String>);

impl Drop for Down {
    fn drop(&mut self) {
        let ended = Command::new(&self.0[0]).args(&self.0[1..]).stdin(Stdio::null()).stdout(Stdio::null()).status();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("{:?} failed: the card is still there", self.0);
        }
    }
}

/// Lines that are in one and not in the other.
fn difference(before: &str, after: &str) -> String {
    let mut lines: BTreeMap<&str, i32> = BTreeMap::new();
    before.lines().for_each(|line| *lines.entry(line).or_default() -= 1);
    after.lines().for_each(|line| *lines.entry(line).or_default() += 1);
    let sign = |count: i32| if count < 0 { "-" } else { "+" };
    let different = lines.into_iter().filter(|(_, count)| *count != 0);
    different.map(|(line, count)| format!("{} {line}", sign(count))).collect::<Vec<_>>().join("\n        ")
}

/// What is asked for by an ordinary user.
pub fn user() -> &'static [&'static str] {
    USER
}

/// A folder that everybody can reach, with programs that everybody can run.
pub fn tools(folder: &Path, esw: &Path) -> Tools {
    let this = folder.join("rights");
    for (from, to) in [(std::env::current_exe().expect("this program"), &this), (esw.to_owned(), &folder.join("esw"))] {
        // By a process of its own: what is being written and open elsewhere cannot be run.
        run(&words(&["cp", &from.to_string_lossy(), &to.to_string_lossy()]));
    }
    run(&words(&["chmod", "-R", "a+rX", &folder.to_string_lossy()]));
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    Tools { folder: folder.to_owned(), esw: text(folder.join("esw")), this: text(this) }
}
