#![allow(dead_code, reason = "each test and the benchmark use a part")]
//! A fake card, and namespaces in which to show it: shared by the tests of `/sys` and their benchmark.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use control::Command;
use devlink::view::{self, DeviceName, Role};
use eswitch::auxiliary::AuxiliaryName;
use eswitch::{CardConfig, PciAddress, SfNum};
use lab::{Card, Refusal, sysfs};
use lockdep::{Domain, OnReport};

/// A card that creates VFs, and stores the commands that it gets.
pub struct FakeCard {
    view: Mutex<Arc<view::Card>>,
    pub commands: Mutex<Vec<String>>,
    pub gone: AtomicBool,
    /// While this is held, the card carries out no command.
    pub busy: Mutex<()>,
    /// The card's own network namespace, once there is a place with netdevs.
    network: Mutex<Option<Arc<OwnedFd>>>,
}

pub const PF: &str = "0000:08:00.0";

impl FakeCard {
    pub fn new(vfs: u16) -> Arc<Self> {
        Arc::new(Self {
            view: Mutex::new(Arc::new(card(vfs))),
            commands: Mutex::default(),
            gone: AtomicBool::new(false),
            busy: Mutex::default(),
            network: Mutex::default(),
        })
    }

    pub fn commands(&self) -> Vec<String> {
        std::mem::take(&mut self.commands.lock().unwrap())
    }
}

impl Card for FakeCard {
    fn network(&self) -> Option<Arc<OwnedFd>> {
        self.network.lock().unwrap().clone()
    }

    fn view(&self) -> io::Result<Arc<view::Card>> {
        match self.gone.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::NotConnected.into()),
            false => Ok(Arc::clone(&self.view.lock().unwrap())),
        }
    }

    fn perform(&self, command: &Command) -> Result<(), Refusal> {
        self.commands.lock().unwrap().push(command.in_words(&CardConfig::default()));
        drop(self.busy.lock().unwrap());
        let vfs = match command {
            Command::SetNumVfs { number, .. } => *number as u16,
            Command::Bind(device) if device.to_string() == PF => {
                return Err(Refusal { errno: netlink::Errno::BUSY, message: "busy".to_owned() });
            }
            _ => return Ok(()),
        };
        if vfs > 2000 {
            return Err(Refusal { errno: netlink::Errno::RANGE, message: "too many".to_owned() });
        }
        *self.view.lock().unwrap() = Arc::new(card(vfs));
        Ok(())
    }

    fn connect(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn vf_address(vf: u16) -> PciAddress {
    let routing = 2 + vf;
    let (bus, device) = ((8 + routing / 256) as u8, (routing / 8 % 32) as u8);
    PciAddress { domain: 0, bus, device, function: (routing % 8) as u8 }
}

fn netdev(name: &str, role: Role, parent: DeviceName, port_name: Option<&str>) -> view::Netdev {
    view::Netdev {
        name: name.to_owned(),
        peer: None,
        elsewhere: false,
        role,
        in_switch: port_name.is_some(),
        parent,
        port_name: port_name.map(str::to_owned),
        dev_port: 0,
        vfs: Vec::new(),
        port: None,
        driver: "mlx5_core".to_owned(),
        bus_info: PF.to_owned(),
        permanent: (role != Role::Representor).then_some([2, 0, 0, 0, 0, 1]),
    }
}

/// A card with a PF, its VFs and an SF.
pub fn card(vfs: u16) -> view::Card {
    let pf: PciAddress = PF.parse().unwrap();
    let function = |address: PciAddress, vf: Option<u16>| view::Function {
        address,
        vf_of: vf.map(|vf| (pf, vf)),
        driver: Some("mlx5_core".to_owned()),
        driver_override: None,
        msix: 64,
        sriov: None,
        netns: None,
    };
    let mut functions = vec![view::Function {
        sriov: Some(view::Sriov {
            total: 2000,
            enabled: vfs,
            autoprobe: true,
            total_msix: 512,
            offset: 2,
            vfs: (0..vfs).map(vf_address).collect(),
        }),
        ..function(pf, None)
    }];
    let mut netdevs = vec![netdev("enp8s0f0np0", Role::Pf, DeviceName::Pci(pf), Some("p0"))];
    for vf in 0..vfs {
        functions.push(function(vf_address(vf), Some(vf)));
        let name = format!("p0vf{vf}");
        netdevs.push(netdev(&name, Role::Representor, DeviceName::Pci(pf), Some(&format!("pf0vf{vf}"))));
        netdevs.push(netdev(&format!("p0v{vf}"), Role::Vf, DeviceName::Pci(vf_address(vf)), None));
    }
    let sf = DeviceName::Auxiliary(AuxiliaryName::Sf { id: 4 });
    netdevs.push(netdev("enp8s0f0s88", Role::Sf, sf, None));
    netdevs.iter_mut().zip(1000..).for_each(|(netdev, peer)| netdev.peer = Some(peer));
    let auxiliary = |name: &str, parent, driver: &str, sfnum| view::Auxiliary {
        name: name.parse().unwrap(),
        parent,
        driver: Some(driver.to_owned()),
        sfnum,
        netns: None,
    };
    let module = |name: &str, depends: &[&str], drivers: &[(&str, &str)]| view::Module {
        name: name.to_owned(),
        loaded: true,
        depends: depends.iter().map(|name| (*name).to_owned()).collect(),
        description: format!("{name} of a card that is none"),
        drivers: drivers.iter().map(|(bus, name)| ((*bus).to_owned(), (*name).to_owned())).collect(),
    };
    view::Card {
        name: PF.to_owned(),
        profile: view::Profile {
            name: "mlx5".to_owned(),
            vendor: 0x15b3,
            device: 0x101d,
            vf_device: 0x101e,
            subsystem: (0x15b3, 0x0016),
            revision: 0,
            driver: "mlx5_core".to_owned(),
            firmware: "22.43.1014".to_owned(),
            board: "MT_0000000359".to_owned(),
            speed: 100_000,
            numa_node: -1,
        },
        switch_id: view::SwitchId([0xb8, 0xce, 0xf6, 3, 0, 0x12, 0xab, 0]),
        functions,
        auxiliary: vec![
            auxiliary("mlx5_core.eth.0", DeviceName::Pci(pf), "mlx5_core.eth", None),
            auxiliary("mlx5_core.rdma.0", DeviceName::Pci(pf), "mlx5_ib.rdma", None),
            auxiliary("mlx5_core.sf.4", DeviceName::Pci(pf), "mlx5_core.sf", Some(SfNum(88))),
            auxiliary("mlx5_core.eth.4", sf, "mlx5_core.eth", None),
        ],
        netdevs,
        host_peers: Vec::new(),
        rdma: vec![view::RdmaDevice::new(
            0,
            "rocep8s0f0".to_owned(),
            DeviceName::Pci(pf),
            0xb8ce_f603_0012_ab00,
            (0..=u32::from(vfs))
                .map(|port| view::RdmaPort {
                    number: port + 1,
                    roce: true,
                    netdev: Some(match port {
                        0 => "enp8s0f0np0".to_owned(),
                        port => format!("p0vf{}", port - 1),
                    }),
                })
                .collect(),
        )],
        rdma_exclusive: false,
        modules: vec![
            module(
                "mlx5_core",
                &[],
                &[("pci", "mlx5_core"), ("auxiliary", "mlx5_core.eth"), ("auxiliary", "mlx5_core.sf")],
            ),
            module("mlx5_ib", &["mlx5_core"], &[("auxiliary", "mlx5_ib.rdma")]),
        ],
    }
}

/// What a lab lacks here; `None`: nothing.
pub fn what_is_missing() -> Option<String> {
    let missing = if !rustix::process::geteuid().is_root() {
        Some("root".to_owned())
    } else {
        sysfs::prepare().err().map(|error| error.to_string())
    };
    if let Some(missing) = &missing {
        assert!(std::env::var_os("CI").is_none(), "in CI there must be {missing}");
        eprintln!("skipped: it takes {missing}");
    }
    missing
}

type Work = Box<dyn FnOnce() + Send>;

/// A thread in mount and network namespaces of its own, in which `/sys` shows the card.
pub struct Place {
    work: Option<mpsc::Sender<Work>>,
    thread: Option<thread::JoinHandle<()>>,
    _serving: sysfs::Serving,
}

impl Place {
    /// Makes it, and the `netdevs` in it.
    pub fn new(card: &Arc<FakeCard>, netdevs: &[&str]) -> Self {
        let (mounter, server) = sysfs::prepare().unwrap();
        let inside = network_namespace();
        let path = format!("/proc/{}/fd/{}", std::process::id(), inside.as_raw_fd());
        let view = card.view().unwrap();
        let peer = |name: &str| view.netdevs.iter().find(|netdev| netdev.name == name).and_then(|netdev| netdev.peer);
        let netdevs: Vec<_> =
            netdevs.iter().map(|name| ((*name).to_owned(), peer(name).unwrap().to_string())).collect();
        *card.network.lock().unwrap() = Some(Arc::new(inside));
        let (work, inbox) = mpsc::channel::<Work>();
        let thread = thread::spawn(move || {
            unshare();
            let own = format!("/proc/{}/task/{}/ns/net", std::process::id(), rustix::thread::gettid());
            for (netdev, peer) in netdevs {
                let (end, inside) = (format!("p{peer}"), format!("--net={path}"));
                // From the card's side: iproute2 gives the kernel no index for the peer.
                let make = [&inside, "ip", "link", "add", "name", &end, "index", &peer, "type", "veth"];
                run("nsenter", &[&make[..], &["peer", "name", &netdev, "netns", &own]].concat());
            }
            mounter.mount().unwrap();
            for work in inbox {
                work();
            }
        });
        let cards: Vec<Arc<dyn Card>> = vec![Arc::clone(card) as Arc<dyn Card>];
        let serving = server.serve(cards, Arc::default(), &Domain::for_build(OnReport::Panic)).unwrap();
        Self { work: Some(work), thread: Some(thread), _serving: serving }
    }

    /// Runs `work` in the thread.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        let work = Box::new(move || answer.send(work()).unwrap());
        self.work.as_ref().unwrap().send(work).unwrap();
        answered.recv().expect("what was to be done in the lab has failed")
    }

    /// Runs a shell command in the thread.
    pub fn shell(&self, command: &str) -> Output {
        record(command);
        let command = command.to_owned();
        self.within(move || {
            std::process::Command::new("sh").args(["-c", &command]).env("LC_ALL", "C").output().unwrap()
        })
    }

    /// Runs a shell command in the thread, and returns its output and its errors.
    pub fn output_of(&self, command: &str) -> String {
        let output = self.shell(command);
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }
}

/// Appends a command to the file that `cargo xtask programs` collects commands from, if it runs this test.
fn record(command: &str) {
    let Some(path) = std::env::var_os("RECORD_COMMANDS") else { return };
    let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    std::io::Write::write_all(&mut file, format!("{command}\n").as_bytes()).unwrap();
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.work.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

/// A new network namespace.
fn network_namespace() -> OwnedFd {
    let make = || {
        unshare();
        std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
    };
    thread::spawn(make).join().unwrap()
}

/// Moves the calling thread into new namespaces, in which all mounts are private.
pub fn unshare() {
    use rustix::mount::{MountPropagationFlags, mount_change};
    use rustix::thread::UnshareFlags;
    #[expect(deprecated, reason = "its successor is unsafe, for the sake of a flag that is not used here")]
    rustix::thread::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET).unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
}

fn run(program: &str, arguments: &[&str]) {
    let status = std::process::Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}
