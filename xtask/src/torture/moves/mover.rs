//! A process in a lab that moves and renames netdevs, tries to move representors and to delete all of them, and deletes the
//! namespaces that they are in. After each operation it looks at the netdev in one of the ways in which a program can
//! look at one.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use netlink::rtnl::{
    IFINFOMSG, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_LINKINFO, IFLA_NET_NS_FD,
    IFLA_PARENT_DEV_NAME, IFLA_PHYS_PORT_NAME, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, RTM_SETLINK, VETH_INFO_PEER,
};
use netlink::{Builder, Errno, Flags, Header, find, messages, u32_at};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use crate::torture::random::Random;

/// What a mover is to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    /// Its number, which its namespaces' names have.
    pub number: usize,
    pub seed: u64,
    /// How many operations.
    pub operations: usize,
    pub netdevs: Vec<Owned>,
}

/// A netdev that only this mover moves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Owned {
    /// Its name at home, at first.
    pub name: String,
    /// Its parent device.
    pub parent: String,
    /// `phys_port_name`, if it has one.
    pub port_name: Option<String>,
    /// Its devlink port, if it has one.
    pub port: Option<String>,
    /// The driver that ethtool names.
    pub driver: String,
}

impl Owned {
    /// Whether the kernel keeps it in its network namespace, as mlx5 has it of representors (`mlx5e_build_rep_netdev`).
    fn stays(&self) -> bool {
        self.driver == "mlx5e_rep"
    }
}

/// Names that all movers use.
const NAMES: [&str; 6] = ["eth0", "eth1", "net1", "net2", "rep0", "dev7"];
/// How long a netdev may take to come home from a namespace that was deleted, with a daemon that is killed meanwhile.
const HOME: Duration = Duration::from_secs(30);

/// A network namespace, with sockets in it.
struct Net {
    /// `None`: it is home, or one without a name.
    name: Option<String>,
    file: File,
    route: OwnedFd,
    any: OwnedFd,
}

impl Net {
    /// The namespace of the calling thread.
    fn current(name: Option<String>) -> Result<Self> {
        let route = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        let any = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self { name, file: File::open("/proc/thread-self/ns/net")?, route, any })
    }

    /// Makes one with a name.
    fn make(name: &str) -> Result<Self> {
        ensure!(Command::new("ip").args(["netns", "add", name]).status()?.success(), "ip netns add {name}");
        let file = File::open(format!("/run/netns/{name}"))?;
        within(&file, || Self::current(Some(name.to_owned())))?
    }

    /// Makes one without a name.
    fn make_nameless() -> Result<Self> {
        let make = || {
            #[expect(deprecated, reason = "its successor is unsafe, for the sake of a flag that is not used here")]
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET)?;
            Self::current(None)
        };
        thread::spawn(make).join().map_err(|_| anyhow!("a thread has panicked"))?
    }

    /// Sends a request about a link, and returns the attributes of the answer, if there is one.
    fn ask(
        &self,
        kind: u16,
        flags: Flags,
        index: u32,
        fill: impl FnOnce(&mut Builder),
    ) -> Result<Option<Vec<u8>>, Errno> {
        let request = netlink::message(Header::new(kind, Flags::REQUEST | Flags::ACK | flags, 1, 0), |to| {
            let mut info = [0; IFINFOMSG];
            info[4..8].copy_from_slice(&index.to_ne_bytes());
            to.raw(&info);
            fill(to);
        });
        send(&self.route, &request.map_err(Errno::from)?, SendFlags::empty())?;
        let mut answer = None;
        loop {
            let mut buffer = vec![0; 64 << 10];
            let (_, length) = rustix::io::retry_on_intr(|| recv(&self.route, &mut buffer[..], RecvFlags::empty()))?;
            for message in messages(&buffer[..length]) {
                match message.outcome() {
                    Some(outcome) => return outcome.result.map(|()| answer),
                    None => answer = message.after(IFINFOMSG).map(<[u8]>::to_vec),
                }
            }
        }
    }
}

/// Runs `work` in a thread in a network namespace.
fn within<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let entered = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        });
        entered.join().map_err(|_| anyhow!("a thread has panicked"))?
    })
}

/// A netdev, and where it is.
struct Netdev {
    owned: Owned,
    /// The index of its namespace; 0 is home.
    at: usize,
    index: u32,
    name: String,
}

/// The mover.
struct Mover {
    task: Task,
    random: Random,
    nets: Vec<Net>,
    netdevs: Vec<Netdev>,
    course: Vec<String>,
}

/// Carries the task out, and brings every netdev home under its first name. Returns the number of operations.
///
/// # Errors
/// Something was not as it should be; the error has the last operations.
pub fn run(task: Task) -> Result<usize> {
    let random = Random::new(task.seed);
    let home = Net::current(None)?;
    let mut netdevs = Vec::new();
    for owned in &task.netdevs {
        let index = name_to_index(&home.any, &owned.name).with_context(|| owned.name.clone())?;
        netdevs.push(Netdev { owned: owned.clone(), at: 0, index, name: owned.name.clone() });
    }
    let mut mover = Mover { random, nets: vec![home], netdevs, course: Vec::new(), task };
    for pod in ["a", "b"] {
        let name = format!("m{}{pod}", mover.task.number);
        mover.nets.push(Net::make(&name)?);
    }
    mover.nets.push(Net::make_nameless()?);
    let mut done = 0;
    while done < mover.task.operations {
        mover.step().map_err(|error| mover.explain(&error))?;
        done += 1;
    }
    mover.go_home().map_err(|error| mover.explain(&error))?;
    Ok(done)
}

impl Mover {
    fn explain(&self, error: &anyhow::Error) -> anyhow::Error {
        let last = self.course.len().saturating_sub(12);
        anyhow!("mover {}: {error:#}; before: {}", self.task.number, self.course[last..].join("; "))
    }

    fn step(&mut self) -> Result<()> {
        let which = self.random.below(self.netdevs.len());
        match self.random.below(20) {
            0..8 => self.rename(which)?,
            8..15 => self.move_somewhere(which)?,
            15..17 => self.try_to_delete(which)?,
            17..19 => self.decoy()?,
            _ => return self.delete_namespace(),
        }
        self.look(which)
    }

    fn another_name(&mut self, which: usize) -> String {
        match self.random.one_in(3) {
            true => self.netdevs[which].owned.name.clone(),
            false => (*self.random.one_of(&NAMES)).to_owned(),
        }
    }

    fn rename(&mut self, which: usize) -> Result<()> {
        let new = self.another_name(which);
        let netdev = &mut self.netdevs[which];
        self.course.push(format!("{} ({}) is to be {new}", netdev.owned.name, netdev.name));
        let renamed = self.nets[netdev.at].ask(RTM_SETLINK, Flags::empty(), netdev.index, |to| {
            to.text(IFLA_IFNAME, &new);
        });
        match renamed {
            Ok(_) => netdev.name = new,
            Err(Errno::EXIST) => {}
            Err(error) => bail!("renaming it: {error}"),
        }
        Ok(())
    }

    fn move_somewhere(&mut self, which: usize) -> Result<()> {
        let to = self.random.below(self.nets.len());
        let new = self.random.one_in(2).then(|| self.another_name(which));
        let netdev = &mut self.netdevs[which];
        if to == netdev.at {
            return Ok(());
        }
        let name = new.clone().unwrap_or_else(|| netdev.name.clone());
        self.course.push(format!("{} ({}) to namespace {to} as {name}", netdev.owned.name, netdev.name));
        let target = self.nets[to].file.as_raw_fd().cast_unsigned();
        let moved = self.nets[netdev.at].ask(RTM_SETLINK, Flags::empty(), netdev.index, |message| {
            message.u32(IFLA_NET_NS_FD, target);
            if let Some(new) = &new {
                message.text(IFLA_IFNAME, new);
            }
        });
        if netdev.owned.stays() {
            ensure!(moved == Err(Errno::INVAL), "a representor was moved: {moved:?}");
            return Ok(());
        }
        let name = match moved {
            Ok(_) => name,
            // The kernel moves it under its old name if that is free there, and renames it then (`do_setlink`); it may
            // be the second for which the name is taken.
            Err(Errno::EXIST) => match self.nets[netdev.at].ask(RTM_GETLINK, Flags::empty(), netdev.index, |_| {}) {
                Err(Errno::NODEV) => netdev.name.clone(),
                _ => return Ok(()),
            },
            Err(error) => bail!("moving it: {error}"),
        };
        netdev.index = name_to_index(&self.nets[to].any, &name).context("it is not where it was moved to")?;
        (netdev.at, netdev.name) = (to, name);
        Ok(())
    }

    fn try_to_delete(&mut self, which: usize) -> Result<()> {
        let netdev = &self.netdevs[which];
        self.course.push(format!("{} ({}) is to be deleted", netdev.owned.name, netdev.name));
        let deleted = self.nets[netdev.at].ask(RTM_DELLINK, Flags::empty(), netdev.index, |_| {});
        ensure!(deleted == Err(Errno::OPNOTSUPP), "deleting it: {deleted:?}");
        Ok(())
    }

    /// Makes a veth of our own under one of the names in a pod, or deletes one.
    fn decoy(&mut self) -> Result<()> {
        let net = 1 + self.random.below(self.nets.len() - 1);
        let name = *self.random.one_of(&NAMES);
        let net = &self.nets[net];
        let owned = self
            .netdevs
            .iter()
            .any(|netdev| name_to_index(&net.any, name).ok() == Some(netdev.index) && netdev.name == name);
        if owned {
            return Ok(());
        }
        if let Ok(index) = name_to_index(&net.any, name) {
            let shown = net.ask(RTM_GETLINK, Flags::empty(), index, |_| {})?.context("a link without attributes")?;
            ensure!(find(&shown, IFLA_PARENT_DEV_NAME).is_none(), "our own {name} has a parent device");
            ensure!(kind_of(&shown).as_deref() == Some("veth"), "our own {name} is of kind {:?}", kind_of(&shown));
            self.course.push(format!("our own {name} is deleted"));
            net.ask(RTM_DELLINK, Flags::empty(), index, |_| {})?;
            return Ok(());
        }
        self.course.push(format!("our own {name} is made"));
        let peer = format!("p{name}");
        let made = net.ask(RTM_NEWLINK, Flags::CREATE | Flags::EXCL, 0, |to| {
            to.text(IFLA_IFNAME, name).nest(IFLA_LINKINFO, |info| {
                info.text(IFLA_INFO_KIND, "veth").nest(2, |data| {
                    data.nest(VETH_INFO_PEER, |end| {
                        end.raw(&[0; IFINFOMSG]).text(IFLA_IFNAME, &peer);
                    });
                });
            });
        });
        match made {
            Ok(_) | Err(Errno::EXIST) => Ok(()),
            Err(error) => bail!("making our own {name}: {error}"),
        }
    }

    /// Deletes a namespace with what is in it, waits until the card's netdevs are home, and makes it again.
    fn delete_namespace(&mut self) -> Result<()> {
        let which = 1 + self.random.below(self.nets.len() - 1);
        self.course.push(format!("namespace {which} is deleted"));
        let name = self.nets[which].name.clone();
        let net = self.nets.remove(which);
        drop(net);
        if let Some(name) = &name {
            ensure!(Command::new("ip").args(["netns", "del", name]).status()?.success(), "ip netns del {name}");
        }
        let new = name.as_deref().map_or_else(Net::make_nameless, Net::make)?;
        self.nets.insert(which, new);
        for netdev in 0..self.netdevs.len() {
            if self.netdevs[netdev].at == which {
                self.wait_for_home(netdev)?;
                self.look(netdev)?;
            }
        }
        Ok(())
    }

    /// Waits until a netdev is home, wherever it was.
    fn wait_for_home(&mut self, which: usize) -> Result<()> {
        let until = Instant::now() + HOME;
        let netdev = &mut self.netdevs[which];
        netdev.at = 0;
        loop {
            if let Some(name) = in_sysfs(&netdev.owned)? {
                netdev.index =
                    name_to_index(&self.nets[0].any, &name).context("it is in /sys and not in its namespace")?;
                self.course.push(format!("{} is home as {name}", netdev.owned.name));
                netdev.name = name;
                return Ok(());
            }
            ensure!(Instant::now() < until, "{} has not come home", netdev.owned.name);
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Looks at a netdev in one way.
    fn look(&mut self, which: usize) -> Result<()> {
        let how = self.random.below(40);
        let netdev = &self.netdevs[which];
        let net = &self.nets[netdev.at];
        let wrong =
            |what: String| anyhow!("{} ({}) in namespace {}: {what}", netdev.owned.name, netdev.name, netdev.at);
        match how {
            0 => {
                let printed = within(&net.file, || Command::new("ethtool").args(["-i", &netdev.name]).output())??;
                let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
                for expected in
                    [format!("driver: {}\n", netdev.owned.driver), format!("bus-info: {}\n", netdev.owned.parent)]
                {
                    ensure!(printed.contains(&expected), wrong(format!("ethtool -i: {printed}")));
                }
            }
            1 => {
                let Some(port) = &netdev.owned.port else { return Ok(()) };
                let printed = show_port(port)?;
                let named = format!("netdev {} ", netdev.name);
                let right = if netdev.at == 0 { printed.contains(&named) } else { !printed.contains("netdev ") };
                ensure!(right && printed.contains("type eth"), wrong(format!("devlink: {printed}")));
            }
            2..18 => {
                let found = in_sysfs(&netdev.owned)?;
                let expected = (netdev.at == 0).then_some(&netdev.name);
                ensure!(found.as_ref() == expected, wrong(format!("in /sys: {found:?}")));
            }
            _ => {
                let shown = net.ask(RTM_GETLINK, Flags::empty(), netdev.index, |_| {});
                let shown = shown.map_err(|error| wrong(format!("RTM_GETLINK: {error}")))?;
                check_link(netdev, &shown.context("a link without attributes")?)
                    .map_err(|error| wrong(format!("{error:#}")))?;
            }
        }
        Ok(())
    }

    /// Brings every netdev home under its first name, and removes the namespaces.
    fn go_home(&mut self) -> Result<()> {
        for which in 0..self.netdevs.len() {
            let netdev = &self.netdevs[which];
            let target = self.nets[0].file.as_raw_fd().cast_unsigned();
            let away = netdev.at != 0;
            self.nets[netdev.at].ask(RTM_SETLINK, Flags::empty(), netdev.index, |to| {
                if away {
                    to.u32(IFLA_NET_NS_FD, target);
                }
                to.text(IFLA_IFNAME, &netdev.owned.name);
            })?;
        }
        for net in self.nets.drain(..) {
            if let Some(name) = net.name.clone() {
                drop(net);
                Command::new("ip").args(["netns", "del", &name]).status()?;
            }
        }
        Ok(())
    }
}

/// What devlink shows of a port. While there is no daemon, nobody answers; so it is asked again.
fn show_port(port: &str) -> Result<String> {
    let until = Instant::now() + HOME;
    loop {
        let shown = Command::new("devlink").args(["port", "show", port]).output()?;
        if shown.status.success() {
            return Ok(String::from_utf8_lossy(&shown.stdout).into_owned());
        }
        ensure!(Instant::now() < until, "devlink: {}", String::from_utf8_lossy(&shown.stderr));
        thread::sleep(Duration::from_millis(20));
    }
}

fn kind_of(link: &[u8]) -> Option<String> {
    find(find(link, IFLA_LINKINFO)?.value, IFLA_INFO_KIND)?.string().map(str::to_owned)
}

fn check_link(netdev: &Netdev, link: &[u8]) -> Result<()> {
    let text = |kind| find(link, kind).and_then(|attribute| attribute.string());
    ensure!(text(IFLA_IFNAME) == Some(&netdev.name), "it is called {:?}", text(IFLA_IFNAME));
    ensure!(text(IFLA_PARENT_DEV_NAME) == Some(&netdev.owned.parent), "its parent is {:?}", text(IFLA_PARENT_DEV_NAME));
    ensure!(
        text(IFLA_PHYS_PORT_NAME) == netdev.owned.port_name.as_deref(),
        "its port is {:?}",
        text(IFLA_PHYS_PORT_NAME)
    );
    ensure!(kind_of(link).is_none(), "it is of kind {:?}", kind_of(link));
    let peer =
        find(link, IFLA_LINK).or_else(|| find(link, IFLA_LINK_NETNSID)).map(|attribute| u32_at(attribute.value, 0));
    ensure!(peer.is_none(), "it has a peer");
    Ok(())
}

/// The name that `/sys` has for a netdev: that of the entry below its device with its port's name.
fn in_sysfs(owned: &Owned) -> Result<Option<String>> {
    let folder = Path::new("/sys/bus/pci/devices").join(&owned.parent).join("net");
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let port_name = match fs::read_to_string(folder.join(&name).join("phys_port_name")) {
            Ok(text) => Some(text.trim_end().to_owned()),
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => None,
            // Another mover has renamed or moved it meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => continue,
            Err(error) => return Err(error).context(format!("{name}/phys_port_name")),
        };
        if port_name == owned.port_name {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
