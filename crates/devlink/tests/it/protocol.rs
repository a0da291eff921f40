//! The protocol over a real socket, with a card in memory.

use std::time::{Duration, Instant};

use crate::common::{PF, with_card};
use control::{Command, EswitchOption, Reply};
use devlink::nests::{DEVLINK_NESTS, Nest};
use devlink::numbers::{attribute as a, command as c, flavour, nla};
use devlink::{Answered, Client, ClientError, ControlSocket, DEVLINK, ESWITCH, SocketError, eswitch_family};
use eswitch::auxiliary::AuxKind;
use eswitch::{Mode, SfNum};
use netlink::{Builder, Datagram, Errno, Flags, Header, find};

fn device(to: &mut Builder) {
    to.text(a::BUS_NAME, "pci").text(a::DEV_NAME, PF);
}

fn join(to: &mut Builder) {
    to.u32(eswitch_family::GROUP, devlink::CONFIG_GROUP);
}

fn texts(answers: &[Answered], kind: u16) -> Vec<String> {
    let of = |answer: &Answered| {
        let found = find(&answer.attributes, kind)?;
        found.text().map(str::to_owned)
    };
    answers.iter().filter_map(of).collect()
}

fn numbers(answers: &[Answered], kind: u16) -> Vec<u32> {
    let of = |answer: &Answered| {
        let found = find(&answer.attributes, kind)?;
        found.u32().or(found.u16().map(u32::from))
    };
    answers.iter().filter_map(of).collect()
}

fn refused(outcome: Result<Vec<Answered>, ClientError>) -> (Errno, Option<String>) {
    match outcome {
        Err(ClientError::Refused(refusal)) => (refusal.errno, refusal.message),
        other => panic!("{other:?}"),
    }
}

fn set_mode(client: &mut Client, mode: u16) -> Result<Vec<Answered>, ClientError> {
    client.ask(DEVLINK, c::ESWITCH_SET, |to| {
        device(to);
        to.u16(a::ESWITCH_MODE, mode);
    })
}

#[test]
fn a_card_is_changed_and_queried() {
    with_card(|up| {
        let mut client = Client::connect(&up.path).unwrap();
        let all = client.dump(DEVLINK, c::GET, |_| {}).unwrap();
        assert_eq!(texts(&all, a::DEV_NAME), [PF, "0000:08:00.1", "0000:08:00.2"], "a PF and its VFs");
        let ports = client.dump(DEVLINK, c::PORT_GET, |_| {}).unwrap();
        assert_eq!(
            numbers(&ports, a::PORT_INDEX),
            [65535, 1 << 16, 2 << 16],
            "in legacy mode the uplink, and each VF's own"
        );
        set_mode(&mut client, 1).unwrap();
        let ports = client.dump(DEVLINK, c::PORT_GET, |_| {}).unwrap();
        let mut indices = numbers(&ports, a::PORT_INDEX);
        indices.sort_unstable();
        assert_eq!(indices, [1, 2, 65535, 1 << 16, 2 << 16]);
        let sf = client
            .ask(DEVLINK, c::PORT_NEW, |to| {
                device(to);
                to.u16(a::PORT_FLAVOUR, flavour::PCI_SF).u16(a::PORT_PCI_PF_NUMBER, 0).u32(a::PORT_PCI_SF_NUMBER, 88);
            })
            .unwrap();
        assert_eq!(numbers(&sf, a::PORT_INDEX), [32768]);
        let shown = client.ask(DEVLINK, c::ESWITCH_GET, device).unwrap();
        assert_eq!(numbers(&shown, a::ESWITCH_MODE), [1]);
        set_mode(&mut client, 0).unwrap();
        let ports = client.dump(DEVLINK, c::PORT_GET, |_| {}).unwrap();
        assert_eq!(numbers(&ports, a::PORT_INDEX), [65535, 1 << 16, 2 << 16]);
        let of_vf = |to: &mut Builder| {
            to.text(a::BUS_NAME, "pci").text(a::DEV_NAME, "0000:08:00.1");
        };
        client.ask(DEVLINK, c::GET, of_vf).unwrap();
        assert_eq!(refused(client.ask(DEVLINK, c::ESWITCH_GET, of_vf)).0, Errno::OPNOTSUPP, "a VF has no E-Switch");
        client.ask(DEVLINK, c::RELOAD, of_vf).unwrap();
    });
}

#[test]
fn invalid_requests_are_refused_as_in_the_kernel() {
    with_card(|up| {
        let mut client = Client::connect(&up.path).unwrap();
        let nowhere = client.ask(DEVLINK, c::GET, |to| {
            to.text(a::BUS_NAME, "pci").text(a::DEV_NAME, "0000:99:00.0");
        });
        assert_eq!(refused(nowhere), (Errno::NODEV, None));
        let nothing = client.ask(DEVLINK, c::GET, |_| {});
        assert!(matches!(nothing, Err(ClientError::Refused(r)) if r.errno == Errno::INVAL && r.missing == Some(1)));
        let other = client.dump(DEVLINK, 31, |_| {});
        assert_eq!(refused(other).0, Errno::OPNOTSUPP, "tables of dpipe");
        let more = client.ask(DEVLINK, c::GET, |to| {
            device(to);
            to.u32(9999, 1);
        });
        assert_eq!(more.unwrap().len(), 1, "an attribute that the command does not take is ignored");
        let wrong = client.ask(DEVLINK, c::PORT_GET, |to| {
            device(to);
            to.u8(a::PORT_INDEX, 1);
        });
        let (errno, message) = refused(wrong);
        assert_eq!((errno, message.as_deref()), (Errno::INVAL, Some("Attribute failed policy validation")));
        let cut = client.ask(DEVLINK, c::GET, |to| {
            device(to);
            to.raw(&[200, 0, 1, 0]);
        });
        assert_eq!(refused(cut).0, Errno::INVAL);
        assert_eq!(refused(client.ask(99, 1, |_| {})).0, Errno::NOENT, "no such family");
        let uplink = client.ask(DEVLINK, c::PORT_SET, |to| {
            device(to);
            to.u32(a::PORT_INDEX, 65535).nest(a::PORT_FUNCTION, |to| {
                to.put(1, &[2, 0, 0, 0, 0, 1]);
            });
        });
        assert_eq!(refused(uplink), (Errno::OPNOTSUPP, Some("Port doesn't support function attributes".to_owned())));
        assert_eq!(numbers(&client.ask(DEVLINK, c::ESWITCH_GET, device).unwrap(), a::ESWITCH_MODE), [0]);
    });
}

#[test]
fn a_rate_can_have_a_node_as_parent() {
    with_card(|up| {
        let mut client = Client::connect(&up.path).unwrap();
        let add = |client: &mut Client| {
            client.ask(DEVLINK, c::RATE_NEW, |to| {
                device(to);
                to.text(a::RATE_NODE_NAME, "gold").u64(a::RATE_TX_MAX, 1_250_000);
            })
        };
        assert_eq!(refused(add(&mut client)).0, Errno::OPNOTSUPP, "in legacy mode");
        set_mode(&mut client, 1).unwrap();
        add(&mut client).unwrap();
        assert_eq!(refused(add(&mut client)).0, Errno::EXIST);
        client
            .ask(DEVLINK, c::RATE_SET, |to| {
                device(to);
                to.u32(a::PORT_INDEX, 1).text(a::RATE_PARENT_NODE_NAME, "gold");
            })
            .unwrap();
        let all = client.dump(DEVLINK, c::RATE_GET, |_| {}).unwrap();
        assert_eq!((all.len(), texts(&all, a::RATE_PARENT_NODE_NAME)), (3, vec!["gold".to_owned()]));
        let (errno, message) = refused(set_mode(&mut client, 0));
        assert_eq!((errno, message.as_deref()), (Errno::BUSY, Some("Rate node(s) exists.")));
        let delete = |client: &mut Client| {
            client.ask(DEVLINK, c::RATE_DEL, |to| {
                device(to);
                to.text(a::RATE_NODE_NAME, "gold");
            })
        };
        assert_eq!(refused(delete(&mut client)).0, Errno::BUSY);
        client
            .ask(DEVLINK, c::RATE_SET, |to| {
                device(to);
                to.u32(a::PORT_INDEX, 1).text(a::RATE_PARENT_NODE_NAME, "");
            })
            .unwrap();
        delete(&mut client).unwrap();
        set_mode(&mut client, 0).unwrap();
    });
}

#[test]
fn clients_that_have_joined_are_notified_and_one_that_does_not_read_delays_no_other() {
    with_card(|up| {
        let mut listener = Client::connect(&up.path).unwrap();
        listener.ask(ESWITCH, eswitch_family::JOIN, join).unwrap();
        let mut deaf = Client::connect(&up.path).unwrap();
        deaf.ask(ESWITCH, eswitch_family::JOIN, join).unwrap();
        // Requests whose answers are never read.
        let flood: Vec<u8> = {
            let mut datagram = Datagram::default();
            for n in 0..2_000 {
                let header = Header::new(DEVLINK, Flags::REQUEST | Flags::DUMP, n, 0);
                let filled = datagram.message(header, |to| {
                    to.genl(c::PORT_GET, 1);
                });
                filled.unwrap();
            }
            datagram.into_bytes()
        };
        for _ in 0..4 {
            let flags = rustix::net::SendFlags::DONTWAIT;
            let _ = rustix::net::send(deaf.socket(), &flood, flags);
        }
        let mut client = Client::connect(&up.path).unwrap();
        set_mode(&mut client, 1).unwrap();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            seen.extend(listener.receive_notification().unwrap());
        }
        assert!(seen.iter().all(|message| message.command == c::PORT_NEW), "{seen:?}");
        assert_eq!(numbers(&seen, a::PORT_INDEX), [1, 2]);
    });
}

#[test]
fn the_view_is_dumped_in_pieces() {
    with_card(|up| {
        let mut client = Client::connect(&up.path).unwrap();
        set_mode(&mut client, 1).unwrap();
        let pieces = client.dump(ESWITCH, eswitch_family::VIEW, |_| {}).unwrap();
        let json = devlink::join_pieces(&pieces);
        let view: devlink::view::Card = serde_json::from_slice(&json).unwrap();
        assert_eq!(view.functions.len(), 3, "a PF and two VFs");
    });
}

#[test]
fn no_more_clients_are_accepted_than_there_are_places() {
    with_card(|up| {
        let clients: Vec<Client> = (0..16).map(|_| Client::connect(&up.path).unwrap()).collect();
        let mut one_more = Client::connect(&up.path).unwrap();
        assert!(matches!(one_more.dump(DEVLINK, c::GET, |_| {}), Err(ClientError::Broken(_))));
        drop(clients);
        let deadline = Instant::now() + Duration::from_secs(60);
        while Client::connect(&up.path).unwrap().dump(DEVLINK, c::GET, |_| {}).is_err() {
            assert!(Instant::now() < deadline, "places are never given back");
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn a_command_is_carried_out_or_refused() {
    with_card(|up| {
        let mut client = Client::connect(&up.path).unwrap();
        let device = PF.parse().unwrap();
        let set = |number| Command::SetNumVfs { device, number };
        assert_eq!(client.perform(&set(0)).unwrap(), Reply::Done);
        let too_many = client.perform(&set(99)).map(|_| Vec::new());
        assert_eq!(refused(too_many).0, Errno::RANGE);
        client.perform(&Command::SetEswitch { device, options: vec![EswitchOption::Mode(Mode::Switchdev)] }).unwrap();
        let sf = Command::AddSf { device, pfnum: 0, sfnum: SfNum(88), controller: 0 };
        assert_eq!(client.perform(&sf).unwrap(), Reply::Port(format!("pci/{PF}/32768").parse().unwrap()));
        let mut perform = |version: u32, bytes: &[u8]| {
            let answered = client.ask(ESWITCH, eswitch_family::PERFORM, |to| {
                to.put(eswitch_family::COMMAND, bytes).u32(eswitch_family::VERSION, version);
            });
            refused(answered)
        };
        assert_eq!(perform(control::VERSION, b"nonsense").0, Errno::INVAL);
        let (errno, message) = perform(control::VERSION + 1, b"\"rescan\"");
        assert_eq!(errno, Errno::INVAL);
        assert!(message.unwrap().contains("from the same build"));
    });
}

#[test]
fn a_socket_that_is_served_is_not_replaced_and_one_that_was_left_behind_is() {
    let bind = |path: &std::path::Path| ControlSocket::bind(path, 0o600, None);
    with_card(|up| {
        assert!(matches!(bind(&up.path), Err(SocketError::InUse { .. })));
    });
    let left = std::env::temp_dir().join(format!("esw-left-{}.sock", std::process::id()));
    // A daemon that was killed leaves its socket like this.
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    drop(bind(&left).unwrap());
    std::fs::write(&left, "mine").unwrap();
    assert!(matches!(bind(&left), Err(SocketError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&left).unwrap(), "mine");
    std::fs::remove_file(&left).unwrap();
}

/// The attributes of a message, with those inside nests that the table has.
fn walk(bytes: &[u8], nests: &[Nest], visit: &mut impl FnMut(u16, u16)) {
    for attribute in netlink::attributes(bytes).flatten() {
        if nests.iter().any(|nest| nest.kind == attribute.kind) {
            visit(attribute.kind, attribute.raw_kind());
            walk(attribute.value, nests, visit);
        }
    }
}

#[test]
fn a_nest_is_flagged_where_the_kernels_is() {
    const NESTED: u16 = 1 << 15;
    with_card(|up| {
        // Given a card in switchdev mode,
        let mut client = Client::connect(&up.path).unwrap();
        set_mode(&mut client, 1).unwrap();
        // when every object that has nests is dumped,
        let mut messages = Vec::new();
        for command in [c::PORT_GET, c::PARAM_GET, c::INFO_GET, c::HEALTH_GET, c::TRAP_GET] {
            messages.extend(client.dump(DEVLINK, command, |_| {}).unwrap());
        }
        messages.extend(
            client
                .ask(DEVLINK, c::HEALTH_DIAGNOSE, |to| {
                    device(to);
                    to.text(a::HEALTH_REPORTER_NAME, "representors");
                })
                .unwrap(),
        );
        for command in [c::RESOURCE_DUMP, c::DPIPE_TABLE_GET] {
            messages.extend(client.ask(DEVLINK, command, device).unwrap());
        }
        // then each nest of the table was found, with NLA_F_NESTED exactly where the table has it.
        let mut found = std::collections::BTreeSet::new();
        let mut check = |kind: u16, raw: u16| {
            let nest = DEVLINK_NESTS.iter().find(|nest| nest.kind == kind).unwrap();
            assert_eq!(raw & NESTED != 0, nest.flagged, "{nest:?}");
            found.insert(kind);
        };
        for message in &messages {
            walk(&message.attributes, &DEVLINK_NESTS, &mut check);
        }
        assert_eq!(found, DEVLINK_NESTS.iter().map(|nest| nest.kind).collect());
    });
}

#[test]
fn a_dump_of_objects_that_the_card_lacks_succeeds_and_is_empty() {
    const LACKING: [u8; 8] = [
        c::SB_GET,
        c::SB_POOL_GET,
        c::SB_PORT_POOL_GET,
        c::SB_TC_POOL_BIND_GET,
        c::PORT_PARAM_GET,
        c::TRAP_POLICER_GET,
        c::LINECARD_GET,
        c::SELFTESTS_GET,
    ];
    with_card(|up| {
        let mut client = Client::connect(&up.path).unwrap();
        for command in LACKING {
            assert_eq!(client.dump(DEVLINK, command, |_| {}).unwrap().len(), 0, "command {command}");
            let (errno, message) = refused(client.ask(DEVLINK, command, device));
            assert_eq!(errno, Errno::OPNOTSUPP, "command {command}");
            assert!(message.is_some(), "command {command}");
        }
        // Regions are those of objects: there is none of any name.
        assert_eq!(client.dump(DEVLINK, c::REGION_GET, |_| {}).unwrap().len(), 0);
        let named = client.ask(DEVLINK, c::REGION_GET, |to| {
            device(to);
            to.text(a::REGION_NAME, "cr-space");
        });
        assert_eq!(refused(named), (Errno::INVAL, None));
    });
}

/// Sets a parameter of cmode driverinit.
fn set_init(client: &mut Client, name: &str, value: Init) -> Result<Vec<Answered>, ClientError> {
    const DRIVERINIT: u8 = 1;
    client.ask(DEVLINK, c::PARAM_SET, |to| {
        device(to);
        to.text(a::PARAM_NAME, name).u8(a::PARAM_VALUE_CMODE, DRIVERINIT);
        match value {
            Init::Bool(value) => {
                to.u8(a::PARAM_TYPE, nla::FLAG);
                if value {
                    to.flag(a::PARAM_VALUE_DATA);
                }
            }
            Init::Number(value) => {
                to.u8(a::PARAM_TYPE, nla::U32).u32(a::PARAM_VALUE_DATA, value);
            }
        }
    })
}

/// A value of a parameter.
#[derive(Clone, Copy, Debug)]
enum Init {
    Bool(bool),
    Number(u32),
}

/// The number that a parameter shows.
fn shown_number(client: &mut Client, name: &str) -> u32 {
    let shown = client
        .ask(DEVLINK, c::PARAM_GET, |to| {
            device(to);
            to.text(a::PARAM_NAME, name);
        })
        .unwrap();
    let param = find(&shown[0].attributes, a::PARAM).unwrap();
    let values = find(param.value, a::PARAM_VALUES_LIST).unwrap();
    let value = find(values.value, a::PARAM_VALUE).unwrap();
    find(value.value, a::PARAM_VALUE_DATA).unwrap().u32().unwrap()
}

#[test]
fn a_driverinit_number_has_its_drivers_range_and_text_and_outlives_a_reload() {
    let invalid = |why: &str| (Errno::INVAL, Some(format!("mlx5_core: {why}")));
    let bare = || (Errno::INVAL, None);
    let groups = (Errno::OPNOTSUPP, Some("mlx5_core: Unsupported group number, supported range is 1-1024".to_owned()));
    let rows = [
        ("io_eq_size", 1024, 64, vec![(63, bare()), (4097, bare())]),
        ("event_eq_size", 4096, 4095, vec![(0, bare()), (4097, bare())]),
        (
            "max_macs",
            128,
            1024,
            vec![
                (0, invalid("max_macs value must be greater than 0")),
                (3, invalid("Only power of 2 values are supported for max_macs")),
                (1 << 31, invalid("max_macs value is out of the supported range")),
            ],
        ),
        ("fdb_large_groups", 15, 1024, vec![(0, groups.clone()), (1025, groups)]),
        ("hairpin_num_queues", 2, 7, vec![(0, bare())]),
        (
            "hairpin_queue_size",
            1024,
            512,
            vec![(0, invalid("Value is not power of two")), (1 << 31, invalid("Maximum hairpin queue size is 32768"))],
        ),
    ];
    with_card(|up| {
        let mut client = Client::connect(&up.path).unwrap();
        for (name, default, other, refusals) in &rows {
            assert_eq!(shown_number(&mut client, name), *default, "{name}");
            for (value, refusal) in refusals {
                assert_eq!(refused(set_init(&mut client, name, Init::Number(*value))), *refusal, "{name} {value}");
            }
            let mistyped = refused(set_init(&mut client, name, Init::Bool(true)));
            assert_eq!(mistyped, bare(), "{name}");
            assert_eq!(shown_number(&mut client, name), *default, "{name} after refusals");
            set_init(&mut client, name, Init::Number(*other)).unwrap();
        }
        client.ask(DEVLINK, c::RELOAD, device).unwrap();
        for (name, _, other, _) in &rows {
            assert_eq!(shown_number(&mut client, name), *other, "{name} after a reload");
        }
        up.at_rest();
    });
}

#[test]
fn a_pf_has_its_rdma_device_until_a_reload_takes_the_parameter_that_turns_it_off() {
    for name in ["enable_roce", "enable_rdma"] {
        with_card(|up| {
            let mut client = Client::connect(&up.path).unwrap();
            let has_rdma = || up.at_rest().pfs[0].auxiliary.iter().any(|device| device.kind == AuxKind::Rdma);
            assert!(has_rdma(), "{name}");
            for on in [false, true] {
                set_init(&mut client, name, Init::Bool(on)).unwrap();
                assert_eq!(has_rdma(), !on, "{name} {on} before the reload");
                client.ask(DEVLINK, c::RELOAD, device).unwrap();
                assert_eq!(has_rdma(), on, "{name} {on} after the reload");
            }
        });
    }
}

/// A device or a port, and the name of a reporter of it.
type OfReporter = (String, Option<u32>, String);

fn reporters(client: &mut Client) -> Vec<OfReporter> {
    let all = client.dump(DEVLINK, c::HEALTH_GET, |_| {}).unwrap();
    let text = |bytes: &[u8], kind| find(bytes, kind).unwrap().text().unwrap().to_owned();
    let of = |answer: &Answered| {
        let reporter = find(&answer.attributes, a::HEALTH_REPORTER).unwrap();
        assert_eq!(find(reporter.value, a::HEALTH_REPORTER_STATE).unwrap().u8(), Some(0), "healthy");
        let port = find(&answer.attributes, a::PORT_INDEX).and_then(|port| port.u32());
        (text(&answer.attributes, a::DEV_NAME), port, text(reporter.value, a::HEALTH_REPORTER_NAME))
    };
    all.iter().map(of).collect()
}

#[test]
fn each_instance_and_port_has_the_reporters_of_its_driver() {
    const VF: &str = "0000:08:00.1";
    with_card(|up| {
        let mut client = Client::connect(&up.path).unwrap();
        set_mode(&mut client, 1).unwrap();
        let all = reporters(&mut client);
        let names = |device: &str, port: Option<u32>| -> Vec<&str> {
            all.iter().filter(|(d, p, _)| d == device && *p == port).map(|(_, _, name)| name.as_str()).collect()
        };
        assert_eq!(names(PF, None), ["fw", "fw_fatal", "vnic", "representors"]);
        assert_eq!(names(PF, Some(65535)), ["tx", "rx"], "the uplink");
        assert_eq!(names(PF, Some(1)), ["vnic"], "the representor of a VF");
        assert_eq!((names(VF, None), names(VF, Some(1 << 16))), (vec!["vnic"], vec!["tx", "rx"]));
        // Each can be queried and recovered by name; a reporter of another device or port cannot.
        let mut ask = |command, device: &str, port: Option<u32>, name: &str| {
            client.ask(DEVLINK, command, |to| {
                to.text(a::BUS_NAME, "pci").text(a::DEV_NAME, device).text(a::HEALTH_REPORTER_NAME, name);
                port.map(|port| to.u32(a::PORT_INDEX, port));
            })
        };
        for (device, port, name) in &all {
            assert_eq!(ask(c::HEALTH_GET, device, *port, name).unwrap().len(), 1, "{device} {port:?} {name}");
            ask(c::HEALTH_RECOVER, device, *port, name).unwrap();
            let diagnosed = ask(c::HEALTH_DIAGNOSE, device, *port, name);
            match name.as_str() {
                "fw_fatal" => assert_eq!(refused(diagnosed), (Errno::OPNOTSUPP, None)),
                _ => assert!(find(&diagnosed.unwrap()[0].attributes, a::FMSG).is_some(), "{device} {port:?} {name}"),
            }
        }
        for (device, port, name) in [(VF, None, "fw"), (PF, None, "tx"), (PF, Some(65535), "fw"), (PF, Some(99), "tx")]
        {
            assert_eq!(
                refused(ask(c::HEALTH_GET, device, port, name)),
                (Errno::INVAL, None),
                "{device} {port:?} {name}"
            );
        }
    });
}
