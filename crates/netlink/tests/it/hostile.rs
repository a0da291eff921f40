//! Hostile bytes: they are read up to where they are malformed, and nothing panics.

use netlink::{
    Attribute, Errno, Flags, GENL_HEADER, HEADER, Header, NLMSG_DONE, NLMSG_ERROR, attributes, message, messages,
    overwrite, rewrite,
};
use proptest::prelude::*;

/// Reads an attribute with every method.
fn read_attribute(attribute: &Attribute<'_>, depth: usize) {
    let numbers = (attribute.u8(), attribute.u16(), attribute.u32(), attribute.u64(), attribute.bitfield());
    let leading = (attribute.leading_u16(), attribute.leading_u32(), attribute.text(), attribute.string());
    let _ = (numbers, leading);
    if depth > 0 {
        attribute.nested().flatten().for_each(|inner| read_attribute(&inner, depth - 1));
    }
}

/// Reads a datagram with every method; returns how many bytes of it were messages.
fn read(bytes: &[u8]) -> usize {
    let mut whole = 0;
    for message in messages(bytes) {
        assert!(message.bytes().len() >= HEADER && message.header.length as usize == message.bytes().len());
        whole += message.bytes().len().next_multiple_of(4);
        let _ = message.genl();
        if let Some(outcome) = message.outcome() {
            let _ = outcome.ext_ack();
        }
        for skip in [0, GENL_HEADER, 16] {
            for attribute in attributes(message.after(skip).unwrap_or_default()).flatten() {
                read_attribute(&attribute, 3);
            }
        }
    }
    whole
}

/// Datagrams that are nearly right: real messages, some of whose bytes are changed.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop::sample::select(vec![NLMSG_ERROR, NLMSG_DONE, 0x10, 21]);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    (kinds, any::<u16>(), changes, any::<prop::sample::Index>()).prop_map(|(kind, flags, changes, cut)| {
        let header = Header::new(kind, Flags::from_bits_retain(flags), 7, 0);
        let one = message(header, |to| {
            to.raw(&(-22i32).to_ne_bytes()).header(&header).text(1, "why").u32(2, 20).nest(3, |to| {
                to.flag(1).u64(2, 9);
            });
        });
        let mut bytes = one.unwrap().repeat(2);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut.index(bytes.len() / 2));
        bytes
    })
}

proptest! {
    #[test]
    fn no_bytes_do_harm(bytes: Vec<u8>) {
        read(&bytes);
        attributes(&bytes).flatten().for_each(|attribute| read_attribute(&attribute, 3));
    }

    #[test]
    fn nothing_that_is_nearly_right_does_harm(bytes in nearly()) {
        prop_assert!(read(&bytes) <= bytes.len().next_multiple_of(4));
    }

    #[test]
    fn nothing_is_written_past_the_end(mut bytes: Vec<u8>, at: usize, new: Vec<u8>) {
        let before = bytes.clone();
        let fits = at.checked_add(new.len()).is_some_and(|end| end <= bytes.len());
        prop_assert_eq!(overwrite(&mut bytes, at, &new), fits);
        prop_assert!(fits || bytes == before);
        let length = bytes.first_chunk::<4>().copied();
        prop_assert_eq!(rewrite(&mut bytes, |header| header.length = 0), bytes.len() >= HEADER);
        prop_assert_eq!(bytes.first_chunk::<4>().copied(), length, "no rewriting changes a length");
    }
}

#[test]
fn a_wrong_length_ends_the_reading() {
    // Given a length that is 0, shorter than a header, longer than the datagram, or the longest possible,
    for length in [0u32, 1, 15, 17, 64, u32::MAX] {
        let mut bytes = vec![0; HEADER];
        overwrite(&mut bytes, 0, &length.to_ne_bytes());
        // then no message is read, and reading ends.
        assert_eq!(messages(&bytes).count(), 0, "{length}");
    }
    // And a header alone is a message.
    assert_eq!(messages(&Header { length: 16, ..Header::default() }.to_bytes()).count(), 1);
}

#[test]
fn an_error_without_a_number_or_with_an_invalid_one_is_eio() {
    let error = |payload: &[u8]| {
        message(Header::new(NLMSG_ERROR, Flags::CAPPED | Flags::ACK_TLVS, 1, 0), |to| {
            to.raw(payload);
        })
    };
    for payload in [&[][..], &i32::MIN.to_ne_bytes(), &1i32.to_ne_bytes(), &i32::MAX.to_ne_bytes()] {
        let bytes = error(payload).unwrap();
        let outcome = messages(&bytes).next().unwrap().outcome().unwrap();
        assert_eq!((outcome.result, outcome.attributes), (Err(Errno::IO), &[][..]), "{payload:?}");
    }
}

#[test]
fn with_a_wrong_quoted_length_there_is_no_reason() {
    // Given an error whose quoted header has a length beyond its end,
    let header = Header::new(NLMSG_ERROR, Flags::ACK_TLVS, 1, 0);
    for length in [17, 64, u32::MAX - 2, u32::MAX] {
        let quoted = Header { length, ..Header::default() };
        let bytes = message(header, |to| {
            to.raw(&(-1i32).to_ne_bytes()).header(&quoted).text(1, "why");
        })
        .unwrap();
        // then its number is read, and nothing behind it.
        let outcome = messages(&bytes).next().unwrap().outcome().unwrap();
        assert_eq!(outcome.result, Err(Errno::PERM));
        assert_eq!(outcome.ext_ack().message, None, "{length}");
    }
}
