//! Runs a program in a lab with a card that a file describes, to try a lab by hand and in tests:
//!
//! ```text
//! lab [--exact] [--netns NAME | --join PID] [--inside PATH] [--commands FILE] CARD.json [CARD.json …] -- PROGRAM [ARGUMENT …]
//! ```
//!
//! The file is a `devlink::view::Card` as JSON. Its netdevs have their peers in the network namespace at the path after
//! `--inside`, all cards in the same one. The card writes each command that it gets to the file after
//! `--commands`. Of their effects it shows the address of a VF, and whether a module is loaded. Its devlink has devices
//! and ports.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;

use control::Command;
use devlink::{RdmaChange, view};
use eswitch::vf::VfSetting;
use eswitch::{CardConfig, MacAddr};
use lab::{Card, Join, Options, Refusal};
use netlink::{AckOptions, Builder, Datagram, Errno, Flags, Header, Message, find, message, messages, nlmsgerr_attr};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// The arguments of the command line.
#[derive(Default)]
struct Arguments {
    exact: bool,
    netns: Option<String>,
    join: Option<String>,
    inside: Option<String>,
    commands: Option<String>,
    cards: Vec<String>,
    program: Vec<String>,
}

impl Arguments {
    fn parse() -> Option<Self> {
        let mut arguments = Self::default();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--exact" => arguments.exact = true,
                "--netns" => arguments.netns = Some(words.next()?),
                "--join" => arguments.join = Some(words.next()?),
                "--inside" => arguments.inside = Some(words.next()?),
                "--commands" => arguments.commands = Some(words.next()?),
                "--" => {
                    arguments.program = words.by_ref().collect();
                }
                _ => arguments.cards.push(word),
            }
        }
        (!arguments.program.is_empty()).then_some(arguments)
    }
}

fn main() -> ExitCode {
    let Some(arguments) = Arguments::parse() else {
        eprintln!(
            "lab [--exact] [--netns NAME | --join PID] [--inside PATH] [--commands FILE] CARD.json [CARD.json …] \
             -- PROGRAM [ARGUMENT …]"
        );
        return ExitCode::from(2);
    };
    match start(arguments) {
        Ok(status) => ExitCode::from(status as u8),
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::from(125)
        }
    }
}

fn start(arguments: Arguments) -> Result<i32, Box<dyn std::error::Error>> {
    let mut cards: Vec<Arc<dyn Card>> = Vec::new();
    let network = arguments.inside.as_ref().map(File::open).transpose()?.map(|file| Arc::new(file.into()));
    for path in &arguments.cards {
        let view: view::Card = serde_json::from_reader(File::open(path)?)?;
        let open = |path| OpenOptions::new().create(true).append(true).open(path);
        let commands = arguments.commands.as_ref().map(open).transpose()?;
        cards.push(Arc::new(Described {
            network: network.clone(),
            view: Arc::new(Mutex::new(Arc::new(view))),
            commands: Mutex::new(commands),
            listeners: Mutex::default(),
        }));
    }
    let mut command = std::process::Command::new(&arguments.program[0]);
    command.args(&arguments.program[1..]);
    let mut options = Options { exact_addresses: arguments.exact, ..Options::default() };
    if let Some(name) = arguments.netns {
        let network = File::open(format!("/run/netns/{name}"))?;
        options.join = Some(Join { network: Some(network.into()), ..Join::default() });
    }
    if let Some(pid) = arguments.join {
        let open = |name| File::open(format!("/proc/{pid}/ns/{name}")).map(|file| Some(file.into()));
        options.join = Some(Join { user: open("user")?, network: open("net")?, mounts: open("mnt")? });
    }
    Ok(lab::run(cards, command, options)?)
}

/// A card that only has a description. Its locks are of the standard library: a card is outside of the lab's order.
struct Described {
    network: Option<Arc<OwnedFd>>,
    view: Arc<Mutex<Arc<view::Card>>>,
    /// Where commands are written.
    commands: Mutex<Option<File>>,
    /// The connections on which notifications are published.
    listeners: Mutex<Vec<OwnedFd>>,
}

fn refused(errno: Errno, message: &str) -> Refusal {
    Refusal { errno, message: message.to_owned() }
}

impl Card for Described {
    fn network(&self) -> Option<Arc<OwnedFd>> {
        self.network.clone()
    }

    fn view(&self) -> io::Result<Arc<view::Card>> {
        let view = self.view.lock().map_err(|_| io::Error::other("poisoned"))?;
        Ok(Arc::clone(&view))
    }

    fn perform(&self, command: &Command) -> Result<(), Refusal> {
        let gone = |_| refused(Errno::NODEV, "the card is gone");
        if let Some(file) = self.commands.lock().map_err(|_| refused(Errno::IO, ""))?.as_mut() {
            writeln!(file, "{}", command.in_words(&CardConfig { pfs: 2, ..CardConfig::default() }))
                .map_err(|error| refused(Errno::IO, &error.to_string()))?;
        }
        let mut view = (*self.view().map_err(gone)?).clone();
        match command {
            Command::SetVf { vf, settings, .. } => {
                for setting in settings {
                    if let VfSetting::Mac(mac) = setting {
                        set_mac(&mut view, *vf, *mac)?;
                    }
                }
            }
            Command::LoadModule(name) => load(&mut view, name, true)?,
            Command::UnloadModule(name) => load(&mut view, name, false)?,
            _ => {}
        }
        *self.view.lock().map_err(|_| refused(Errno::IO, ""))? = Arc::new(view);
        self.notify();
        Ok(())
    }

    fn change_rdma(&self, change: &RdmaChange, _: Option<BorrowedFd<'_>>) -> Result<(), Refusal> {
        let RdmaChange::Shared(shared) = *change else { return Err(refused(Errno::OPNOTSUPP, "")) };
        let mut view = self.view.lock().map_err(|_| refused(Errno::IO, ""))?;
        Arc::make_mut(&mut view).rdma_exclusive = !shared;
        Ok(())
    }

    fn connect(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let view = Arc::clone(&self.view);
        thread::Builder::new().spawn(move || answer(&ours, &view))?;
        Ok(theirs)
    }

    fn listen(&self, _: u32) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        self.listeners.lock().map_err(|_| io::ErrorKind::Other)?.push(ours);
        Ok(theirs)
    }
}

impl Described {
    /// Publishes that the first device exists, so that there is a notification to receive.
    fn notify(&self) {
        let (Ok(view), Ok(listeners)) = (self.view(), self.listeners.lock()) else { return };
        let Some(function) = view.functions.first() else { return };
        let header = Header::new(FAMILY, Flags::empty(), 0, 0);
        let Ok(message) = message(header, |to| describe_device(to, &function.address.to_string())) else { return };
        for listener in &*listeners {
            let _ = send(listener, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }
}

fn set_mac(view: &mut view::Card, vf: u32, mac: MacAddr) -> Result<(), Refusal> {
    let mut vfs = view.netdevs.iter_mut().flat_map(|netdev| &mut netdev.vfs);
    let vf = vfs.find(|shown| shown.vf == vf).ok_or_else(|| refused(Errno::INVAL, "There is no such VF"))?;
    vf.mac = mac.0;
    Ok(())
}

fn load(view: &mut view::Card, name: &str, loaded: bool) -> Result<(), Refusal> {
    let module = view.modules.iter_mut().find(|module| module.name == name);
    let module = module.ok_or_else(|| refused(Errno::NOENT, "no such module"))?;
    if !loaded && !module.loaded {
        return Err(refused(Errno::NOENT, "not loaded"));
    }
    module.loaded = loaded;
    Ok(())
}

/// The number that this card's server gives the family devlink.
const FAMILY: u16 = 31;
/// `nlctrl`: GENL_ID_CTRL, CTRL_CMD_GETFAMILY, and the attributes of its answer.
const CTRL: u16 = 16;
const GETFAMILY: u8 = 3;
/// DEVLINK_CMD_GET, DEVLINK_CMD_NEW, DEVLINK_CMD_PORT_GET and DEVLINK_CMD_PORT_NEW.
const GET: u8 = 1;
const NEW: u8 = 3;
const PORT_GET: u8 = 5;
const PORT_NEW: u8 = 7;
/// DEVLINK_ATTR_BUS_NAME, _DEV_NAME, _PORT_INDEX, _PORT_TYPE, _PORT_NETDEV_NAME and _PORT_FLAVOUR.
const BUS_NAME: u16 = 1;
const DEV_NAME: u16 = 2;
const PORT_INDEX: u16 = 3;
const PORT_TYPE: u16 = 4;
const PORT_NETDEV_NAME: u16 = 7;
const PORT_FLAVOUR: u16 = 77;

/// How many messages a datagram has: about as many as the kernel puts into one page.
const PER_DATAGRAM: usize = 3;

/// Answers the requests of one connection until it is closed.
fn answer(socket: &OwnedFd, view: &Mutex<Arc<view::Card>>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok((_, len @ 1..)) = recv(socket, &mut buffer[..], RecvFlags::empty()) {
        let Ok(view) = view.lock().map(|view| Arc::clone(&view)) else { return };
        for request in messages(&buffer[..len]) {
            for datagram in datagrams(&request, &view) {
                if send(socket, &datagram, SendFlags::NOSIGNAL).is_err() {
                    return;
                }
            }
        }
    }
}

/// The answer to a request: its messages, and its end.
fn datagrams(request: &Message<'_>, view: &view::Card) -> Vec<Vec<u8>> {
    let Header { sequence, port, flags, .. } = request.header;
    let options = AckOptions { extended: true, capped: false };
    let mut end = Datagram::default();
    let answers = match answers(request, view) {
        Ok(answers) => answers,
        Err((errno, why)) => {
            end.ack(request, port, Err(errno), options, |to| {
                if !why.is_empty() {
                    to.text(nlmsgerr_attr::MSG, why);
                }
            });
            return vec![end.into_bytes()];
        }
    };
    let flags_of_answer = if request.header.is_dump() { Flags::MULTI } else { Flags::empty() };
    let mut datagrams = Vec::new();
    for part in answers.chunks(PER_DATAGRAM) {
        let mut datagram = Datagram::default();
        for Answer { kind, fill } in part {
            let header = Header::new(*kind, flags_of_answer, sequence, port);
            datagram.message(header, |to| fill(to)).expect("a message of a few names");
        }
        datagrams.push(datagram.into_bytes());
    }
    if request.header.is_dump() {
        end.done(&request.header, port);
    } else if flags.contains(Flags::ACK) {
        end.ack(request, port, Ok(()), options, |_| {});
    }
    if !end.is_empty() {
        datagrams.push(end.into_bytes());
    }
    datagrams
}

/// A message of an answer: its type, and what writes its content.
struct Answer<'a> {
    kind: u16,
    fill: Box<dyn Fn(&mut Builder) + 'a>,
}

fn devlink_answer<'a>(fill: impl Fn(&mut Builder) + 'a) -> Answer<'a> {
    Answer { kind: FAMILY, fill: Box::new(fill) }
}

fn answers<'a>(request: &Message<'_>, view: &'a view::Card) -> Result<Vec<Answer<'a>>, (Errno, &'static str)> {
    let (header, attributes) = request.genl().ok_or((Errno::INVAL, ""))?;
    let device = find(attributes, DEV_NAME).and_then(|name| name.string());
    let devices = || view.functions.iter().map(|function| function.address.to_string());
    match (request.header.kind, header.command) {
        (CTRL, GETFAMILY) => Ok(vec![Answer { kind: CTRL, fill: Box::new(family) }]),
        (FAMILY, GET) if request.header.is_dump() => {
            Ok(devices().map(|address| devlink_answer(move |to| describe_device(to, &address))).collect())
        }
        (FAMILY, GET) => match devices().find(|address| Some(address.as_str()) == device) {
            Some(address) => Ok(vec![devlink_answer(move |to| describe_device(to, &address))]),
            None => Err((Errno::NODEV, "there is no such device")),
        },
        (FAMILY, PORT_GET) => {
            let index = find(attributes, PORT_INDEX).and_then(|index| index.u32());
            let wanted = |netdev: &&view::Netdev| {
                netdev.port.as_ref().is_some_and(|port| {
                    device.is_none_or(|device| device == port.device.to_string())
                        && index.is_none_or(|index| index == port.index.0)
                })
            };
            let ports = view.netdevs.iter().filter(wanted);
            Ok(ports.map(|netdev| devlink_answer(move |to| describe_port(to, netdev))).collect())
        }
        _ => Err((Errno::OPNOTSUPP, "")),
    }
}

/// Writes what `nlctrl` answers about devlink: its name, number, version, largest attribute and multicast group.
fn family(to: &mut Builder) {
    to.genl(1, 2).text(2, "devlink").u16(1, FAMILY).u32(3, 1).u32(5, 179);
    to.nest(7, |groups| {
        groups.nest(1, |group| {
            group.text(1, "config").u32(2, 9);
        });
    });
}

fn describe_device(to: &mut Builder, address: &str) {
    to.genl(NEW, 1).text(BUS_NAME, "pci").text(DEV_NAME, address);
}

fn describe_port(to: &mut Builder, netdev: &view::Netdev) {
    let Some(port) = &netdev.port else { return };
    // DEVLINK_PORT_FLAVOUR_PHYSICAL, DEVLINK_PORT_FLAVOUR_PCI_VF, DEVLINK_PORT_TYPE_ETH.
    let flavour = if netdev.role == view::Role::Pf { 0 } else { 4 };
    to.genl(PORT_NEW, 1).text(BUS_NAME, "pci").text(DEV_NAME, &port.device.to_string());
    to.u32(PORT_INDEX, port.index.0).u16(PORT_TYPE, 2);
    to.text(PORT_NETDEV_NAME, &netdev.name).u16(PORT_FLAVOUR, flavour);
}
