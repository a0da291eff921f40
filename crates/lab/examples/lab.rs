//! Runs a program in a lab with a card that a file describes, to try a lab by hand and from tests:
//!
//! ```text
//! lab [--exact] [--netns NAME | --join PID] [--told FILE] CARD.json [CARD.json …] -- PROGRAM [ARGUMENT …]
//! ```
//!
//! The card is a `devlink::view::Card` as JSON. It does what it is told by noting it in a file; a VF's
//! address and whether a module is loaded it shows afterwards. Its devlink has devices and ports.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;

use control::Command;
use devlink::view;
use eswitch::vf::VfSetting;
use eswitch::{CardConfig, MacAddr};
use lab::{Card, Join, Options, Refusal};
use netlink::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// What the command line says.
#[derive(Default)]
struct Arguments {
    exact: bool,
    netns: Option<String>,
    join: Option<String>,
    told: Option<String>,
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
                "--told" => arguments.told = Some(words.next()?),
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
            "lab [--exact] [--netns NAME | --join PID] [--told FILE] CARD.json [CARD.json …] -- PROGRAM [ARGUMENT …]"
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
    for path in &arguments.cards {
        let view: view::Card = serde_json::from_reader(File::open(path)?)?;
        let told = arguments.told.as_ref().map(|path| OpenOptions::new().create(true).append(true).open(path));
        cards.push(Arc::new(Described {
            view: Arc::new(Mutex::new(Arc::new(view))),
            told: Mutex::new(told.transpose()?),
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

/// A card that is only described.
struct Described {
    view: Arc<Mutex<Arc<view::Card>>>,
    told: Mutex<Option<File>>,
    listeners: Mutex<Vec<OwnedFd>>,
}

fn refused(errno: Errno, message: &str) -> Refusal {
    Refusal { errno, message: message.to_owned() }
}

impl Card for Described {
    fn view(&self) -> io::Result<Arc<view::Card>> {
        let view = self.view.lock().map_err(|_| io::Error::other("poisoned"))?;
        Ok(Arc::clone(&view))
    }

    fn perform(&self, command: &Command) -> Result<(), Refusal> {
        let gone = |_| refused(Errno::NODEV, "the card is gone");
        if let Some(file) = self.told.lock().map_err(|_| refused(Errno::IO, ""))?.as_mut() {
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

    fn connect(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let view = Arc::clone(&self.view);
        thread::Builder::new().spawn(move || answer(&ours, &view))?;
        Ok(theirs)
    }

    fn listen(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        self.listeners.lock().map_err(|_| io::ErrorKind::Other)?.push(ours);
        Ok(theirs)
    }
}

impl Described {
    /// Says that the first device is there, to whoever listens: something to hear.
    fn notify(&self) {
        let (Ok(view), Ok(listeners)) = (self.view(), self.listeners.lock()) else { return };
        let Some(function) = view.functions.first() else { return };
        let message = device(&Asked { kind: FAMILY, seq: 0, pid: 0, dump: false }, NEW, &function.address.to_string());
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

/// The number that this server gives devlink.
const FAMILY: u16 = 31;
const CTRL: u16 = 16;
const GET: u8 = 1;
const NEW: u8 = 3;
const PORT_GET: u8 = 5;
const PORT_NEW: u8 = 7;

struct Asked {
    kind: u16,
    seq: u32,
    pid: u32,
    dump: bool,
}

fn message(asked: &Asked, kind: u16, body: &[u8]) -> Vec<u8> {
    let flags: u16 = if asked.dump { 2 } else { 0 };
    let len = 16 + body.len() as u32;
    let head = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes()];
    [&head.concat()[..], &asked.seq.to_ne_bytes(), &asked.pid.to_ne_bytes(), body].concat()
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [&(4 + payload.len() as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), payload].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

fn verdict(asked: &Asked, request: &[u8], errno: i32, why: &str) -> Vec<u8> {
    let quoted = if errno == 0 { &request[..16] } else { request };
    let body = [&(-errno).to_ne_bytes()[..], quoted].concat();
    let said = if why.is_empty() { Vec::new() } else { text(1, why) };
    let mut bytes = message(asked, 2, &[body, said].concat());
    let flags: u16 = if errno == 0 { 0x100 } else { 0 } | if why.is_empty() { 0 } else { 0x200 };
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

/// Answers one connection until it is closed.
fn answer(socket: &OwnedFd, view: &Mutex<Arc<view::Card>>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok((_, len @ 20..)) = recv(socket, &mut buffer[..], RecvFlags::empty()) {
        let Ok(view) = view.lock().map(|view| Arc::clone(&view)) else { return };
        let request = &buffer[..len];
        let word = |at: usize| u32::from_ne_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
        let flags = word(4) >> 16;
        let dump = flags & 0x300 == 0x300;
        let asked = Asked { kind: word(4) as u16, seq: word(8), pid: word(12), dump };
        let attributes = attributes(request.get(20..).unwrap_or_default());
        let answers = answers(&asked, request[16], &attributes, &view);
        let send_all = |bytes: Vec<u8>| send(socket, &bytes, SendFlags::NOSIGNAL).is_ok();
        let sent = match answers {
            Ok(answers) => {
                let end = if dump { message(&asked, 3, &[0; 4]) } else { verdict(&asked, request, 0, "") };
                // Three in a datagram, as many as the kernel would put into a page or so.
                answers.chunks(3).all(|part| send_all(part.concat())) && (flags & 4 == 0 && !dump || send_all(end))
            }
            Err((errno, why)) => send_all(verdict(&asked, request, errno, why)),
        };
        if !sent {
            return;
        }
    }
}

fn attributes(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    while let [a, b, c, d, ..] = *bytes {
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let Some(payload) = bytes.get(4..len) else { break };
        found.push((u16::from_ne_bytes([c, d]) & 0x3fff, payload.to_vec()));
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

type Answers = Result<Vec<Vec<u8>>, (i32, &'static str)>;

fn answers(asked: &Asked, command: u8, attributes: &[(u16, Vec<u8>)], view: &view::Card) -> Answers {
    let word = |kind: u16| {
        let found = attributes.iter().find(|(k, _)| *k == kind).map(|(_, payload)| payload.as_slice());
        found.map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
    };
    let devices = view.functions.iter().map(|function| function.address.to_string());
    match (asked.kind, command) {
        (CTRL, 3) => Ok(vec![family(asked)]),
        (FAMILY, GET) if asked.dump => Ok(devices.map(|address| device(asked, NEW, &address)).collect()),
        (FAMILY, GET) => match devices.into_iter().find(|address| Some(address) == word(2).as_ref()) {
            Some(address) => Ok(vec![device(asked, NEW, &address)]),
            None => Err((libc::ENODEV, "there is no such device")),
        },
        (FAMILY, PORT_GET) => {
            let index = attributes.iter().find(|(kind, _)| *kind == 3);
            let index = index.and_then(|(_, value)| value.first_chunk()).map(|bytes| u32::from_ne_bytes(*bytes));
            let ports = view.netdevs.iter().filter_map(|netdev| port(asked, netdev, word(2), index));
            Ok(ports.collect())
        }
        _ => Err((libc::EOPNOTSUPP, "")),
    }
}

fn family(asked: &Asked) -> Vec<u8> {
    let group = [text(1, "config"), attribute(2, &9u32.to_ne_bytes())].concat();
    let parts = [
        vec![1, 2, 0, 0],
        text(2, "devlink"),
        attribute(1, &FAMILY.to_ne_bytes()),
        attribute(3, &1u32.to_ne_bytes()),
        attribute(5, &179u32.to_ne_bytes()),
        attribute(7, &attribute(1, &group)),
    ];
    message(asked, CTRL, &parts.concat())
}

fn device(asked: &Asked, command: u8, address: &str) -> Vec<u8> {
    message(asked, FAMILY, &[vec![command, 1, 0, 0], text(1, "pci"), text(2, address)].concat())
}

fn port(asked: &Asked, netdev: &view::Netdev, device: Option<String>, index: Option<u32>) -> Option<Vec<u8>> {
    let port = netdev.port.as_ref()?;
    let (bus, name, number) = ("pci", port.device.to_string(), port.index.0);
    if device.is_some_and(|device| device != name) || index.is_some_and(|index| index != number) {
        return None;
    }
    let flavour: u16 = if netdev.role == view::Role::Pf { 0 } else { 4 };
    let parts = [
        vec![PORT_NEW, 1, 0, 0],
        text(1, bus),
        text(2, &name),
        attribute(3, &number.to_ne_bytes()),
        attribute(4, &2u16.to_ne_bytes()),
        text(7, &netdev.name),
        attribute(77, &flavour.to_ne_bytes()),
    ];
    Some(message(asked, FAMILY, &parts.concat()))
}
