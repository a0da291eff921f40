//! Hostile and dying clients. Whatever they do, the card stays as it was, and other clients are answered.

mod common;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use common::{PF, Up, with, with_card, with_room_for};
use control::Command;
use devlink::numbers::{attribute as a, command as c};
use devlink::{Access, Client, ClientError, Cx, DEVLINK, ESWITCH, Host, RdmaChange, Refusal, eswitch_family};
use netlink::{Builder, Errno, Flags, Header, find, messages};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The time after which a test gives up waiting.
const LONG: Duration = Duration::from_secs(120);

/// Lets one test run at a time, as tests measure the memory and use the descriptors of the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn message(kind: u16, flags: Flags, fill: impl FnOnce(&mut Builder)) -> Vec<u8> {
    netlink::message(Header::new(kind, Flags::REQUEST | Flags::ACK | flags, 7, 0), fill).unwrap()
}

fn device(to: &mut Builder) {
    to.text(a::BUS_NAME, "pci").text(a::DEV_NAME, PF);
}

fn ask_mode(client: &mut Client) -> u16 {
    let shown = client.ask(DEVLINK, c::ESWITCH_GET, device).unwrap();
    let mode = find(&shown[0].attributes, a::ESWITCH_MODE);
    mode.and_then(|mode| mode.u16()).unwrap()
}

fn set_mode(client: &mut Client, mode: u16) -> Result<(), ClientError> {
    let set = client.ask(DEVLINK, c::ESWITCH_SET, |to| {
        device(to);
        to.u16(a::ESWITCH_MODE, mode);
    });
    set.map(drop)
}

/// The outcome with which a datagram is answered. `None`: it is not answered within 50 ms.
fn verdict(client: &Client) -> Option<Result<(), Errno>> {
    let mut buffer = vec![0; 256 * 1024];
    rustix::net::sockopt::set_socket_timeout(
        client.socket(),
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_millis(50)),
    )
    .unwrap();
    let (_, length) = recv(client.socket(), &mut buffer[..], RecvFlags::empty()).ok()?;
    messages(&buffer[..length]).filter_map(|message| Some(message.outcome()?.result)).last()
}

#[test]
fn malformed_messages_are_refused_or_ignored() {
    let _alone = alone();
    with_card(|up| {
        let before = up.at_rest();
        let whole = message(DEVLINK, Flags::empty(), |to| {
            to.genl(c::ESWITCH_SET, 1);
            device(to);
            to.u16(a::ESWITCH_MODE, 1);
        });
        let with = |fill: &dyn Fn(&mut Builder)| {
            message(DEVLINK, Flags::empty(), |to| {
                to.genl(c::PORT_SET, 1);
                device(to);
                fill(to);
            })
        };
        fn deep(to: &mut Builder, levels: usize) {
            if levels > 0 {
                to.nest(a::PORT_FUNCTION, |to| deep(to, levels - 1));
            }
        }
        let with_length = |length: u32| [&length.to_ne_bytes()[..], &whole[4..]].concat();
        let too_long = message(DEVLINK, Flags::empty(), |to| {
            to.genl(c::GET, 1).raw(&[0; 70 * 1024]);
        });
        for (name, bytes, expected) in [
            ("a cut header", whole[..9].to_vec(), None),
            ("a cut message", whole[..whole.len() - 4].to_vec(), None),
            ("a length beyond its end", with_length(u32::MAX), None),
            ("a length within its header", with_length(15), None),
            ("no length", with_length(0), None),
            ("no generic header", message(DEVLINK, Flags::empty(), |_| {}), Some(Err(Errno::INVAL))),
            (
                "a long attribute",
                with(&|to| {
                    to.raw(&[0xff, 0xff, 3, 0]);
                }),
                Some(Err(Errno::INVAL)),
            ),
            (
                "a short attribute",
                with(&|to| {
                    to.raw(&[3, 0, 3, 0]);
                }),
                Some(Err(Errno::INVAL)),
            ),
            (
                "an unknown attribute",
                with(&|to| {
                    to.u32(12_345, 1);
                }),
                Some(Err(Errno::INVAL)),
            ),
            (
                "a number that is text",
                with(&|to| {
                    to.text(a::PORT_INDEX, "first");
                }),
                Some(Err(Errno::INVAL)),
            ),
            ("a thousand levels", with(&|to| deep(to.u32(a::PORT_INDEX, 1), 1_000)), None),
            (
                "an unknown command",
                message(DEVLINK, Flags::empty(), |to| {
                    to.genl(250, 1);
                }),
                Some(Err(Errno::OPNOTSUPP)),
            ),
            (
                "an unknown family",
                message(1_000, Flags::empty(), |to| {
                    to.genl(1, 1);
                }),
                Some(Err(Errno::NOENT)),
            ),
            ("a datagram of 70 KiB", too_long, Some(Err(Errno::MSGSIZE))),
        ] {
            let mut client = Client::connect(&up.path).unwrap();
            send(client.socket(), &bytes, SendFlags::NOSIGNAL).unwrap();
            let found = verdict(&client);
            match name {
                // However deep the attributes are nested, the message is refused for its contents.
                "a thousand levels" => assert!(found.is_some_and(|outcome| outcome.is_err()), "{name}: {found:?}"),
                _ => assert_eq!(found, expected, "{name}"),
            }
            assert_eq!(ask_mode(&mut client), 0, "after {name} the same client is answered");
        }
        assert_eq!(before, up.at_rest());
    });
}

/// The resident memory of this process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_client_that_sends_a_million_requests_and_never_reads_costs_no_memory_and_delays_no_other() {
    let _alone = alone();
    with_card(|up| {
        let before = up.at_rest();
        let mut other = Client::connect(&up.path).unwrap();
        ask_mode(&mut other);
        let dump = message(DEVLINK, Flags::DUMP, |to| {
            to.genl(c::PORT_GET, 1);
        });
        let many = dump.repeat(60_000 / dump.len());
        let had = resident();
        for request in [&dump, &many] {
            let deaf = Client::connect(&up.path).unwrap();
            for n in 0..1_000_000 {
                let _ = send(deaf.socket(), request, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
                if n % 100_000 == 0 {
                    ask_mode(&mut other);
                    set_mode(&mut other, 1).unwrap();
                    set_mode(&mut other, 0).unwrap();
                }
            }
        }
        let grown = resident().saturating_sub(had);
        assert!(grown < 64 * 1024, "{grown} KiB more");
        assert_eq!(before, up.at_rest());
    });
}

#[test]
fn the_command_of_a_client_that_dies_is_carried_out_and_no_other_client_waits() {
    let _alone = alone();
    with_room_for(64, |up| {
        let before = up.at_rest();
        let mut other = Client::connect(&up.path).unwrap();
        let dump = message(DEVLINK, Flags::DUMP, |to| {
            to.genl(c::PORT_GET, 1);
        });
        let dumps = dump.repeat(2_000);
        for _ in 0..20 {
            // Its answers fill the socket, so it dies before the last of them.
            let dying = Client::connect(&up.path).unwrap();
            send(dying.socket(), &dumps, SendFlags::NOSIGNAL).unwrap();
            recv(dying.socket(), &mut [0; 64][..], RecvFlags::empty()).unwrap();
            drop(dying);
            assert_eq!(ask_mode(&mut other), 0);
        }
        for mode in [1, 0, 1, 0] {
            let dying = Client::connect(&up.path).unwrap();
            let change = message(DEVLINK, Flags::empty(), |to| {
                to.genl(c::ESWITCH_SET, 1);
                device(to);
                to.u16(a::ESWITCH_MODE, mode);
            });
            send(dying.socket(), &change, SendFlags::NOSIGNAL).unwrap();
            drop(dying);
            // The command is carried out, as by the kernel.
            let deadline = Instant::now() + LONG;
            while ask_mode(&mut other) != mode {
                assert!(Instant::now() < deadline, "the command of a client that has died is not carried out");
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(before, up.at_rest());
    });
}

#[test]
fn a_thousand_clients_are_answered_and_one_more_is_disconnected() {
    const MANY: usize = 1_000;
    let _alone = alone();
    let limit = getrlimit(Resource::Nofile);
    // Both ends of each connection are in this process.
    let enough = 2 * MANY as u64 + 200;
    if limit.current.is_some_and(|current| current < enough) {
        let more = Rlimit { current: limit.maximum, ..limit };
        if limit.maximum.is_some_and(|most| most < enough) || setrlimit(Resource::Nofile, more).is_err() {
            return eprintln!("skipped: RLIMIT_NOFILE below {enough}");
        }
    }
    with_room_for(MANY, |up| {
        let before = up.at_rest();
        let mut clients: Vec<Client> = (0..MANY).map(|_| Client::connect(&up.path).unwrap()).collect();
        for client in &mut clients {
            assert_eq!(ask_mode(client), 0);
        }
        let mut one_more = Client::connect(&up.path).unwrap();
        let refused = one_more.dump(DEVLINK, c::GET, |_| {});
        assert!(matches!(refused, Err(ClientError::Broken(_))), "{refused:?}");
        assert_eq!(ask_mode(&mut clients[MANY - 1]), 0);
        drop(clients);
        let deadline = Instant::now() + LONG;
        while Client::connect(&up.path).unwrap().dump(DEVLINK, c::GET, |_| {}).is_err() {
            assert!(Instant::now() < deadline, "places are never given back");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(before, up.at_rest());
    });
}

/// Runs `work` as another user, in a thread: a connection has the credentials of the thread that makes it.
fn as_user<T: Send>(user: u32, groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    use rustix::process::{Gid, Uid};
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(65_534));
    let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    thread::scope(|scope| {
        let run = || {
            set_thread_groups(&groups).unwrap();
            set_thread_res_gid(group, group, group).unwrap();
            set_thread_res_uid(user, user, user).unwrap();
            work()
        };
        scope.spawn(run).join().unwrap()
    })
}

fn as_nobody<T: Send>(up: &Up, work: impl FnOnce(Client) -> T + Send) -> T {
    as_user(65_534, &[], || work(Client::connect(&up.path).unwrap()))
}

/// Whether this process is root. If it is not, prints that the test is skipped.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "missing: root");
        eprintln!("skipped: missing root");
    }
    is_root
}

#[test]
fn the_groups_at_the_time_of_connecting_count() {
    const GROUP: u32 = 54_321;
    let _alone = alone();
    if !is_root() {
        return;
    }
    with(Access { group: Some(GROUP), clients: 16 }, None, |up| {
        rustix::fs::chmod(&up.path, rustix::fs::Mode::from_raw_mode(0o666)).unwrap();
        // `/proc/PID/status` lists the groups of the first thread only, which is root and in other groups.
        let set = |groups: &[u32]| as_user(65_533, groups, || set_mode(&mut Client::connect(&up.path).unwrap(), 1));
        set(&[1, GROUP]).unwrap();
        assert!(matches!(set(&[1, 2]), Err(ClientError::Refused(refusal)) if refusal.errno == Errno::PERM));
        let many: Vec<u32> = (1..=300).chain([GROUP]).collect();
        set(&many).unwrap();
    });
}

#[test]
fn the_connections_of_one_user_leave_places_for_root_and_for_others() {
    let _alone = alone();
    if !is_root() {
        return;
    }
    with_room_for(64, |up| {
        rustix::fs::chmod(&up.path, rustix::fs::Mode::from_raw_mode(0o666)).unwrap();
        let look = || Client::connect(&up.path).map(|mut client| client.dump(DEVLINK, c::GET, |_| {}));
        let hoard = || -> Vec<Client> {
            let mut clients: Vec<Client> = (0..200).map(|_| Client::connect(&up.path).unwrap()).collect();
            clients.retain_mut(|client| client.dump(DEVLINK, c::GET, |_| {}).is_ok());
            clients
        };
        let hoarded: Vec<Vec<Client>> = (70_001..70_009).map(|user| as_user(user, &[], hoard)).collect();
        let first = hoarded.first().unwrap().len();
        assert!((1..=16).contains(&first), "one user has {first} of 64");
        assert!(hoarded.get(1).unwrap().len() == first, "and the next user has as many");
        look().unwrap().expect("root gets a place, whoever else is connected");
    });
}

/// A host that panics when its status is requested.
struct Panics;

impl Host for Panics {
    fn carried_out(
        &self,
        _: Cx<'_, '_>,
        _: &devlink::Served,
        _: &devlink::CarriedOut<'_>,
        _: Result<(), &Refusal>,
    ) -> Result<(), Refusal> {
        Ok(())
    }

    fn filter_changed(&self, _: tc::Record) {}

    fn filters_answered(&self, _: Cx<'_, '_>) {}

    fn status(&self, _: Cx<'_, '_>) -> String {
        panic!("this is part of a test")
    }

    fn end(&self, _: Cx<'_, '_>, _: &str) -> Result<(), Refusal> {
        Ok(())
    }
}

#[test]
fn a_thread_that_panics_gives_its_place_back() {
    let _alone = alone();
    with(Access { group: None, clients: 8 }, Some(Arc::new(Panics)), |up| {
        for _ in 0..40 {
            let mut client = Client::connect(&up.path).unwrap();
            let status = client.dump(ESWITCH, eswitch_family::STATUS, |_| {});
            assert!(matches!(status, Err(ClientError::Broken(_))), "{status:?}");
        }
        let deadline = Instant::now() + LONG;
        while Client::connect(&up.path).unwrap().dump(DEVLINK, c::GET, |_| {}).is_err() {
            assert!(Instant::now() < deadline, "the places of threads that panicked are never given back");
            thread::sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn a_client_with_a_deadline_keeps_it_whatever_the_server_does() {
    let soon = || Instant::now() + Duration::from_millis(50);
    let is_late = |outcome: Result<Vec<devlink::Answered>, ClientError>| {
        assert!(
            matches!(&outcome, Err(ClientError::Broken(error)) if error.kind() == std::io::ErrorKind::TimedOut),
            "{outcome:?}"
        );
    };
    let path = std::env::temp_dir().join(format!("esw-silent-{}.sock", std::process::id()));
    let socket = devlink::ControlSocket::bind(&path, 0o600, None).unwrap();
    // A server that never accepts: its queue takes some connections, which are never answered, and then no more.
    let mut clients = Vec::new();
    let error = loop {
        match Client::connect_by(&path, soon()) {
            Ok(client) => clients.push(client),
            Err(error) => break error,
        }
        assert!(clients.len() < 10_000);
    };
    assert!(matches!(&error, ClientError::NoCard { source, .. } if source.kind() == std::io::ErrorKind::TimedOut));
    is_late(clients.pop().unwrap().dump(DEVLINK, c::GET, |_| {}));
    drop(clients);
    // A server that accepts, and sends other messages all the time.
    drop(socket);
    let mut socket = devlink::ControlSocket::bind(&path, 0o600, None).unwrap();
    let listener = socket.take_listener().unwrap();
    let mut client = Client::connect_by(&path, soon()).unwrap();
    let other = rustix::net::accept(&listener).unwrap();
    let noisy = thread::spawn(move || {
        let noise = message(DEVLINK, Flags::REQUEST, |_| {});
        while send(&other, &noise, SendFlags::NOSIGNAL).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    });
    is_late(client.dump(DEVLINK, c::GET, |_| {}));
    drop(client);
    noisy.join().unwrap();
}

#[test]
fn a_client_without_rights_may_query_and_change_nothing() {
    let _alone = alone();
    if !is_root() {
        return;
    }
    with_card(|up| {
        let before = up.at_rest();
        rustix::fs::chmod(&up.path, rustix::fs::Mode::from_raw_mode(0o666)).unwrap();
        as_nobody(up, |mut client| {
            let refused = |outcome: Result<_, ClientError>| match outcome {
                Err(ClientError::Refused(refusal)) => Some(refusal.errno),
                Err(error) => panic!("{error}"),
                Ok(()) => None,
            };
            for command in [c::GET, c::PORT_GET, c::PARAM_GET, c::INFO_GET, c::HEALTH_GET, c::RATE_GET] {
                let queried = client.dump(DEVLINK, command, |_| {}).map(drop);
                assert!(matches!(refused(queried), None | Some(Errno::OPNOTSUPP)), "{command}");
            }
            assert!(!client.dump(ESWITCH, eswitch_family::VIEW, |_| {}).unwrap().is_empty());
            let changes = [c::PORT_SET, c::PORT_NEW, c::PORT_DEL, c::ESWITCH_SET, c::RELOAD, c::PARAM_SET];
            for command in changes.into_iter().chain([c::HEALTH_RECOVER, c::RATE_SET, c::RATE_NEW, c::RATE_DEL]) {
                assert_eq!(refused(client.ask(DEVLINK, command, device).map(drop)), Some(Errno::PERM), "{command}");
            }
            let end = client.ask(ESWITCH, eswitch_family::END, |to| {
                to.text(eswitch_family::WORDS, "down");
            });
            assert_eq!(refused(end.map(drop)), Some(Errno::PERM));
            assert_eq!(
                refused(client.perform(&Command::LoadModule("mlx5_ib".to_owned())).map(drop)),
                Some(Errno::PERM)
            );
            assert_eq!(refused(client.change_rdma(&RdmaChange::Shared(false), None)), Some(Errno::PERM));
        });
        assert_eq!(before, up.at_rest());
    });
}
