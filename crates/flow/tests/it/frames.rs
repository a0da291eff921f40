//! Frames in words.

use flow::generate::{Generator, Options, Random};
use flow::words::{frame, frame_summary, frame_words};
use flow::{Field, checksums_are_right, dissect};

/// How many tables' frames the properties have; `CASES=1000` makes a long run.
fn cases() -> u64 {
    std::env::var("CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(40)
}

/// Generated frames, of which so many of 100 are damaged.
fn frames(hostile: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..cases()).flat_map(move |seed| {
        let mut generator = Generator::new(seed, Options { hostile, ..Options::default() });
        let tables = generator.tables().tables;
        generator.frames(&tables, 40).into_iter().map(|arrival| arrival.frame)
    })
}

fn made(text: &str) -> Vec<u8> {
    frame(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn error(text: &str) -> String {
    frame(text).expect_err(text).to_string()
}

#[test]
fn a_frame_is_what_its_words_say() {
    for bytes in frames(50) {
        let words = frame_words(&bytes);
        assert_eq!(made(&words), bytes, "{words}");
        assert!(!frame_summary(&bytes).contains('\n'));
    }
}

#[test]
fn whole_frames_have_words_for_their_headers() {
    let (mut all, mut bare) = (0, 0);
    for bytes in frames(0) {
        all += 1;
        bare += usize::from(frame_words(&bytes).starts_with("hex"));
    }
    assert!(bare * 50 < all, "{bare} of {all} are hexadecimal digits only");
}

#[test]
fn damaged_words_cause_no_panic() {
    let mut random = Random::new(1);
    for bytes in frames(0) {
        let text = frame_words(&bytes);
        let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        let (place, other) = (random.below(words.len()), random.below(words.len()));
        match random.below(4) {
            0 => drop(words.remove(place)),
            1 => words.swap(place, other),
            2 => words[place] = ["", "é", "/", "-1", "0x", "4294967296", "0xfff"][other % 7].into(),
            _ => words.insert(place, ["/", "data", "eth", "ip", "pad 0x", "len 0", "vxlan"][other % 7].into()),
        }
        let _ = frame(&words.join(" "));
    }
}

#[test]
fn what_is_not_said_follows() {
    let bytes = made("ip src 10.0.0.1 dst 10.0.0.2 ttl 9 / udp sport 1 dport 2 / data 5");
    let by_hand = [
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 33, 0, 0, 0, 0, 9, 17, 0x9d, 0xca, 10, 0, 0, 1, 10, 0, 0,
        2, 0, 1, 0, 2, 0, 13, 0xeb, 0xce, 0, 0, 0, 0, 0,
    ];
    assert_eq!(bytes, by_hand);
    for text in [
        "eth / vlan 5 prio 3 / vlan 6 tpid 802.1ad / ip6 tc 16 / tcp flags SA options 0x01010101 / data 0x010203",
        "ip6 / ext 0 / ext 43 body 0x000000000000 / icmp6 / data 8",
        "ip options 0x01010101 / icmp type 3 code 1 / data 28",
        "ip6 / udp dport 4789 / vxlan id 77 / eth / vlan 2 / ip / tcp dport 80 / data 100",
        "ip / udp / geneve id 5 options 0x0102800100000001 / ip6 / udp sport 5 dport 6",
        "ip / gre id 5 / arp request sip 10.0.0.1 tip 10.0.0.2",
        "ip / sctp sport 5 dport 6 / data 4 / pad 20",
        "ip proto 89 / data 10",
    ] {
        let bytes = made(text);
        assert!(checksums_are_right(&bytes), "{text}");
        assert_eq!(made(&frame_words(&bytes)), bytes, "{text}");
    }
    let key = dissect(&made("vlan 5 / ip6 dst 2001:db8::9 / tcp dport 80")).key;
    let number = |field| key.number(field);
    assert_eq!((number(Field::VlanId), number(Field::DstPort), number(Field::EthType)), (5, 80, 0x86dd));
}

#[test]
fn what_is_said_counts() {
    let bytes = made("eth type 0x1234 / ip len 5 csum 1 proto 99 mf offset 80 / udp len 3 csum 4 / data 1");
    assert_eq!(bytes[12..14], [0x12, 0x34]);
    assert_eq!(
        (&bytes[16..18], &bytes[20..22], bytes[23], &bytes[24..26]),
        (&[0, 5][..], &[0x20, 10][..], 99, &[0, 1][..])
    );
    assert_eq!(bytes[38..42], [0, 3, 0, 4]);
    assert_eq!(made("hex 0102 03"), [1, 2, 3]);
    let frame = made("ip / udp csum 0 / pad 0x0102");
    assert_eq!((frame.len(), &frame[16..18], &frame[40..]), (44, &[0, 28][..], &[0, 0, 1, 2][..]));
}

#[test]
fn a_summary_leaves_the_data_out() {
    let text =
        "eth src 02:00:00:00:00:01 dst 02:00:00:00:00:02 / ip src 10.0.0.1 dst 10.0.0.2 / udp sport 1 dport 2 / data";
    assert_eq!(frame_words(&made(&format!("{text} 0x0102"))), format!("{text} 0x0102"));
    assert_eq!(frame_summary(&made(&format!("{text} 0x0102"))), format!("{text} 2"));
    assert_eq!(frame_summary(&[1, 2, 3]), "3 bytes that are no whole frame");
    assert_eq!(frame_words(&[1, 2, 3]), "hex 010203");
}

#[test]
fn an_error_names_the_word_and_what_would_be_right() {
    for (text, expected) in [
        ("", "word 1, the end: a header is missing"),
        ("ipv4", "word 1, \"ipv4\": no such word. Do you mean \"ip\"?"),
        ("ip / tcp dprot 80", "word 4, \"dprot\": no such word. Do you mean \"dport\"?"),
        ("ip src 10.0.0", "word 3, \"10.0.0\": an address of IPv4 must stand here"),
        ("ip ttl 300", "word 3, \"300\": a number from 0 to 255 must stand here"),
        ("vlan 4096", "word 2, \"4096\": a number from 0 to 4095 must stand here"),
        ("ip / eth", "word 3, \"eth\": eth stands at the beginning, or behind vxlan, geneve or gre"),
        ("ip / data 4 / tcp", "word 6, \"tcp\": only pad can stand behind data"),
        ("ip offset 7", "word 3, \"7\": a multiple of 8 from 0 to 65528 must stand here"),
        ("ip / data 65535", "word 4, \"65535\": the frame is too long for the lengths in its headers"),
        ("ip / tcp flags X", "word 5, \"X\": letters of FSRPAUEW or a number up to 0xfff must stand here"),
        ("hex 012", "word 2, \"012\": hexadecimal digits must stand here, two for a byte"),
        ("data 3 4", "word 3, \"4\": this is no word of the header, and no slash either"),
        ("ip /", "word 3, the end: a header is missing"),
    ] {
        assert_eq!(error(text), expected, "{text}");
    }
}
