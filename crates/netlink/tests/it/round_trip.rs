//! What is built is parsed again, and what is too long is refused.

use netlink::{
    AckOptions, Awaited, BuildError, Builder, Datagram, Errno, ExtAck, Flags, Header, Malformed, NLA_F_NESTED,
    NLA_F_NET_BYTEORDER, NLMSG_DONE, Part, VALUE_MAX, attributes, find, message, messages, nlmsgerr_attr, row,
};
use proptest::prelude::*;

/// What a message may hold.
#[derive(Clone, Debug)]
enum Tree {
    Value(u16, Vec<u8>),
    Nest(u16, Vec<Tree>),
}

fn trees() -> impl Strategy<Value = Vec<Tree>> {
    let kind = 0..0x4000u16;
    let value =
        (kind.clone(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(kind, value)| Tree::Value(kind, value));
    let tree = value.prop_recursive(4, 64, 6, move |inner| {
        (kind.clone(), prop::collection::vec(inner, 0..6)).prop_map(|(kind, inner)| Tree::Nest(kind, inner))
    });
    prop::collection::vec(tree, 0..6)
}

fn write(to: &mut Builder, trees: &[Tree]) {
    for tree in trees {
        match tree {
            Tree::Value(kind, value) => to.put(*kind, value),
            Tree::Nest(kind, inner) => to.nest(*kind, |to| write(to, inner)),
        };
    }
}

fn assert_reads(bytes: &[u8], trees: &[Tree]) {
    let found: Vec<_> = attributes(bytes).map(Result::unwrap).collect();
    assert_eq!(found.len(), trees.len());
    for (found, tree) in found.iter().zip(trees) {
        assert_eq!(found.offset % 4, 0, "an attribute begins where it is aligned");
        match tree {
            Tree::Value(kind, value) => assert_eq!((found.raw_kind(), found.value), (*kind, &value[..])),
            Tree::Nest(kind, inner) => {
                assert_eq!((found.kind, found.flags), (*kind, NLA_F_NESTED));
                assert_reads(found.value, inner);
            }
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_built_is_parsed_again(all in prop::collection::vec((any::<u16>(), any::<u16>(), any::<u32>(), any::<u32>(), trees()), 0..4)) {
        // Given messages of any types, flags and attributes in one datagram,
        let mut datagram = Datagram::default();
        for (kind, flags, sequence, port, trees) in &all {
            let header = Header::new(*kind, Flags::from_bits_retain(*flags), *sequence, *port);
            datagram.message(header, |to| write(to.genl(5, 1), trees)).unwrap();
        }
        // when it is read, then each is read as it was built, and nothing else is.
        let read: Vec<_> = messages(datagram.bytes()).collect();
        prop_assert_eq!(read.len(), all.len());
        for (read, (kind, flags, sequence, port, trees)) in read.iter().zip(&all) {
            let header = read.header;
            prop_assert_eq!((header.kind, header.flags.bits()), (*kind, *flags));
            prop_assert_eq!((header.sequence, header.port), (*sequence, *port));
            prop_assert_eq!(header.length as usize, read.bytes().len());
            let (genl, inner) = read.genl().unwrap();
            prop_assert_eq!((genl.command, genl.version), (5, 1));
            assert_reads(inner, trees);
        }
        // And if the datagram is cut off anywhere, the message that is cut is lost, and no other.
        for length in 0..datagram.len() {
            let whole = messages(&datagram.bytes()[..length]).count();
            prop_assert!(whole <= all.len());
            for (cut, read) in messages(&datagram.bytes()[..length]).zip(&read) {
                prop_assert_eq!(cut, *read);
            }
        }
    }

    #[test]
    fn attributes_that_are_copied_are_unchanged(trees in trees(), flags in prop::sample::select(vec![0, NLA_F_NESTED, NLA_F_NET_BYTEORDER])) {
        // Given attributes of unknown types,
        let original = row(|to| {
            write(to, &trees);
            to.put(7 | flags, &[1, 2, 3]);
        }).unwrap();
        // when each is copied into another message, then the bytes are the same.
        let copied = row(|to| attributes(&original).flatten().for_each(|attribute| { to.copy(&attribute); })).unwrap();
        prop_assert_eq!(copied, original);
    }
}

#[test]
fn every_kind_of_value_is_read_as_it_was_written() {
    let bytes = row(|to| {
        to.u8(1, 8).u16(2, 16).u32(3, 32).u64(4, 64).text(5, "pci").flag(6).bitfield(7, 1, 3).put(8, b"eth0");
    })
    .unwrap();
    let get = |kind| find(&bytes, kind).unwrap();
    assert_eq!((get(1).u8(), get(2).u16(), get(3).u32(), get(4).u64()), (Some(8), Some(16), Some(32), Some(64)));
    assert_eq!((get(5).text(), get(5).string()), (Some("pci"), Some("pci")));
    assert_eq!((get(6).value, get(7).bitfield()), (&[][..], Some((1, 3))));
    // Text without its zero byte is NLA_STRING and not NLA_NUL_STRING.
    assert_eq!((get(8).text(), get(8).string()), (None, Some("eth0")));
    // A value of another length is no number, but its first bytes can be read as the kernel does where it is not
    // strict.
    assert_eq!((get(4).u32(), get(4).leading_u32()), (None, Some(if cfg!(target_endian = "little") { 64 } else { 0 })));
    assert_eq!((get(1).leading_u16(), get(1).leading_u32()), (None, None));
}

#[test]
fn of_several_attributes_of_a_type_the_last_counts() {
    let bytes = row(|to| {
        to.u32(28, 1).text(3, "eth0").u32(28 | NLA_F_NET_BYTEORDER, 2);
    });
    let bytes = bytes.unwrap();
    assert_eq!(find(&bytes, 28).unwrap().u32(), Some(2));
    // Malformed bytes behind them change nothing, as in the kernel.
    assert_eq!(find(&[&bytes[..], &[3, 0, 28, 0]].concat(), 28).unwrap().u32(), Some(2));
}

#[test]
fn the_longest_attribute_and_nest_can_be_built() {
    let longest = vec![7; VALUE_MAX];
    let bytes = row(|to| {
        to.put(1, &longest);
        // Its length is a multiple of four, with its header, so it is 65,532 bytes at most.
        to.nest(2, |to| {
            to.put(3, &longest[..VALUE_MAX - 7]);
        });
    })
    .unwrap();
    assert_eq!(find(&bytes, 1).unwrap().value, longest);
    assert_eq!(find(&bytes, 2).unwrap().value.len(), 65_528);
    assert!(attributes(&bytes).all(|attribute| attribute.is_ok()));
}

#[test]
fn what_is_too_long_is_an_error_and_leaves_nothing() {
    // Given a datagram with a message in it,
    let header = Header::new(21, Flags::REQUEST, 1, 0);
    let mut datagram = Datagram::default();
    datagram
        .message(header, |to| {
            to.genl(1, 1).text(1, "pci");
        })
        .unwrap();
    let before = datagram.bytes().to_vec();
    // when an attribute, a nest, a nest of nests, or text is too long, or text has a zero byte,
    let over = vec![0; VALUE_MAX + 1];
    let half = vec![0; VALUE_MAX / 2 + 1];
    let too_long = |kind, length| BuildError::AttributeTooLong { kind, length };
    let halves = |to: &mut Builder| {
        to.put(1, &half).put(2, &half);
    };
    let text = "x".repeat(VALUE_MAX);
    let refused = [
        datagram.message(header, |to| {
            to.put(5, &over);
        }),
        datagram.message(header, |to| {
            to.nest(6, halves);
        }),
        datagram.message(header, |to| {
            to.nest(7, |to| {
                to.flag(1).nest(8, halves);
            })
            .u8(9, 1);
        }),
        datagram.message(header, |to| {
            to.text(10, &text);
        }),
        datagram.message(header, |to| {
            to.text(11, "a\0b");
        }),
        // The first error is returned.
        datagram.message(header, |to| {
            to.text(12, "\0").put(13, &over);
        }),
    ];
    // then each is an error,
    let nest = 2 * (half.len() + 4).next_multiple_of(4);
    assert_eq!(
        refused.map(Result::unwrap_err),
        [
            too_long(5, over.len()),
            too_long(6, nest),
            too_long(8, nest),
            too_long(10, text.len() + 1),
            BuildError::ZeroInText { kind: 11 },
            BuildError::ZeroInText { kind: 12 },
        ]
    );
    // and the datagram is as it was, and takes the next message.
    assert_eq!(datagram.bytes(), before);
    datagram
        .message(header, |to| {
            to.genl(2, 1);
        })
        .unwrap();
    assert_eq!(messages(datagram.bytes()).count(), 2);
}

#[test]
fn what_was_written_before_its_message_is_added_to_it_with_its_error() {
    let mut before = Builder::default();
    assert!(before.is_empty());
    before.text(1, "pci");
    let built = row(|to| {
        to.nest(9, |to| {
            to.append(&before);
        });
    });
    assert_eq!(find(find(&built.unwrap(), 9).unwrap().value, 1).unwrap().text(), Some("pci"));
    before.text(2, "\0");
    let refused = row(|to| {
        to.append(&before);
    });
    assert_eq!(refused, Err(BuildError::ZeroInText { kind: 2 }));
}

#[test]
fn a_list_that_does_not_fit_can_be_left_out() {
    let entries = |n: usize| {
        let mut fits = None;
        let built = row(|to| {
            to.u32(21, n as u32);
            fits = Some(to.nest_noflag_if_it_fits(22, |to| {
                (0..n).for_each(|_| {
                    to.put(1, &[0; 156]);
                })
            }));
            to.text(38, "p0");
        });
        (fits.unwrap(), built.unwrap())
    };
    let (fits, few) = entries(100);
    assert!(fits && find(&few, 22).unwrap().nested().count() == 100);
    let (fits, many) = entries(1_000);
    assert!(!fits && find(&many, 22).is_none());
    assert_eq!((find(&many, 21).unwrap().u32(), find(&many, 38).unwrap().text()), (Some(1_000), Some("p0")));
}

#[test]
fn attributes_end_with_an_error_where_something_is_no_attribute() {
    for (bytes, leftover) in [(&[3, 0, 1, 0][..], 4), (&[9, 0, 1, 0], 4), (&[4, 0], 2), (&[4, 0, 1, 0, 200], 1)] {
        assert_eq!(attributes(bytes).last(), Some(Err(Malformed { leftover })), "{bytes:?}");
    }
    // If the padding behind the last attribute is missing, its value is the same.
    assert_eq!(attributes(&[5, 0, 1, 0, 9]).map(|a| a.unwrap().u8()).collect::<Vec<_>>(), [Some(9)]);
}

#[test]
fn an_error_has_its_reason_for_sockets_that_want_it() {
    let request = message(Header::new(20, Flags::REQUEST, 7, 0), |to| {
        to.genl(9, 1).text(3, "a longer one");
    })
    .unwrap();
    let request = messages(&request).next().unwrap();
    let why = ExtAck { message: Some("no"), offset: Some(20), missing_type: Some(4), missing_nest: Some(24) };
    for (extended, capped) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut datagram = Datagram::default();
        let options = AckOptions { extended, capped };
        datagram.ack(&request, 5, Err(Errno::BUSY), options, |to| why.write(to));
        let answer = messages(datagram.bytes()).next().unwrap();
        assert_eq!((answer.header.sequence, answer.header.port), (7, 5));
        assert_eq!(answer.header.flags.contains(Flags::CAPPED), capped);
        assert_eq!(answer.header.flags.contains(Flags::ACK_TLVS), extended);
        let quotes_all = answer.payload().windows(12).any(|bytes| bytes == b"a longer one");
        assert_eq!(quotes_all, !capped);
        let outcome = answer.outcome().unwrap();
        assert_eq!((outcome.result, outcome.request), (Err(Errno::BUSY), Some(request.header)));
        assert_eq!(outcome.ext_ack(), if extended { why } else { ExtAck::default() });
    }
}

#[test]
fn an_acknowledgement_quotes_the_header_alone() {
    let request = message(Header::new(20, Flags::REQUEST | Flags::ACK, 7, 0), |to| {
        to.genl(9, 1).text(3, "x");
    })
    .unwrap();
    let request = messages(&request).next().unwrap();
    let mut datagram = Datagram::default();
    datagram.ack(&request, 5, Ok(()), AckOptions::default(), |_| ());
    let answer = messages(datagram.bytes()).next().unwrap();
    assert_eq!((answer.bytes().len(), answer.header.flags), (36, Flags::CAPPED));
    assert_eq!(answer.outcome().unwrap().result, Ok(()));
}

#[test]
fn an_error_arrives_though_its_reason_is_too_long() {
    let mut datagram = Datagram::default();
    let request = Header::new(20, Flags::REQUEST, 7, 0);
    let reason = "x".repeat(70_000);
    datagram.ack_capped(&request, 0, Err(Errno::INVAL), |to| {
        to.u32(nlmsgerr_attr::OFFS, 20).text(1, &reason);
    });
    let outcome = messages(datagram.bytes()).next().unwrap().outcome().unwrap();
    assert_eq!((outcome.result, outcome.attributes), (Err(Errno::INVAL), &[][..]));
}

#[test]
fn a_dump_is_read_to_its_end_and_no_further() {
    // Given two dumps whose parts are mixed with a notification,
    let part = |sequence, flags| Header::new(21, Flags::MULTI | flags, sequence, 9);
    let mut datagram = Datagram::default();
    for header in [part(1, Flags::empty()), part(2, Flags::empty()), part(0, Flags::empty()), part(1, Flags::DUMP_INTR)]
    {
        datagram
            .message(header, |to| {
                to.genl(3, 1);
            })
            .unwrap();
    }
    datagram.done(&part(1, Flags::empty()), 9);
    datagram.done(&part(2, Flags::empty()), 9);
    // when the requester of the first reads, then it has two parts and the end, and knows that they do not fit
    // together.
    let mut awaited = Awaited::new(1);
    let parts: Vec<_> = messages(datagram.bytes()).map(|message| awaited.read(message)).collect();
    let count = |is: fn(&Part<'_>) -> bool| parts.iter().filter(|part| is(part)).count();
    assert_eq!(count(|part| matches!(part, Part::Data(_))), 2);
    assert_eq!(count(|part| matches!(part, Part::End(outcome) if outcome.result.is_ok())), 1);
    assert_eq!(count(|part| matches!(part, Part::Other)), 3);
    assert!(awaited.is_interrupted());
}

#[test]
fn a_dump_may_end_with_an_error_and_its_reason() {
    let header = Header::new(NLMSG_DONE, Flags::MULTI | Flags::ACK_TLVS, 1, 0);
    let done = message(header, |to| {
        to.raw(&(-22i32).to_ne_bytes()).text(nlmsgerr_attr::MSG, "torn");
    })
    .unwrap();
    let outcome = messages(&done).next().unwrap().outcome().unwrap();
    assert_eq!((outcome.result, outcome.ext_ack().message), (Err(Errno::INVAL), Some("torn")));
}

#[test]
fn requests_are_numbered_in_their_order() {
    let mut datagram = Datagram::default();
    for length in 0..4 {
        datagram
            .message(Header::new(16, Flags::REQUEST, 0, 0), |to| {
                to.put(1, &vec![0; length]);
            })
            .unwrap();
    }
    datagram.number(u32::MAX - 1);
    let numbers: Vec<_> = messages(datagram.bytes()).map(|message| message.header.sequence).collect();
    assert_eq!(numbers, [u32::MAX - 1, u32::MAX, 0, 1]);
}
