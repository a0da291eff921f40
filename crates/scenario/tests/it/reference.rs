//! The reference, docs/scenarios.md, has every form that can be written, and no other.

use control::Command;
use eswitch::{CardConfig, PfIndex, Touched};
use scenario::{Action, EXPECTATIONS, Expectation, STEPS};

const REFERENCE: &str = include_str!("../../../../docs/scenarios.md");

/// The cells of the reference's tables that start with a form: form and example.
fn rows() -> Vec<(String, String)> {
    let code = |cell: &str| Some(cell.trim().strip_prefix('`')?.strip_suffix('`')?.replace("\\|", "|"));
    REFERENCE
        .lines()
        .filter_map(|line| {
            let cells = line.replace("\\|", "\u{1}");
            let cells: Vec<&str> = cells.trim_matches('|').split('|').collect();
            match cells[..] {
                [form, _, example] => Some((code(form)?, code(example)?)),
                _ => None,
            }
        })
        .map(|(form, example)| (form.replace('\u{1}', "|"), example.replace('\u{1}', "|")))
        .collect()
}

fn card() -> CardConfig {
    CardConfig { pfs: 2, ..CardConfig::default() }
}

#[test]
fn every_form_has_a_row_in_the_reference() {
    let rows = rows();
    for entry in STEPS.iter().chain(EXPECTATIONS) {
        assert!(rows.iter().any(|(form, _)| form == entry.form), "`{}` has no row in docs/scenarios.md", entry.form);
    }
}

#[test]
fn every_example_of_the_reference_can_be_read() {
    let (mut steps, mut expectations) = (0, 0);
    for (form, example) in rows() {
        if STEPS.iter().any(|entry| entry.form == form) {
            Action::parse(&example, &card()).unwrap_or_else(|error| panic!("`{example}`: {error}"));
            steps += 1;
        } else if EXPECTATIONS.iter().any(|entry| entry.form == form) {
            Expectation::parse(&example).unwrap_or_else(|error| panic!("`{example}`: {error}"));
            expectations += 1;
        }
    }
    assert_eq!((steps, expectations), (STEPS.len(), EXPECTATIONS.len()));
}

#[test]
fn the_scenario_in_the_reference_can_be_read() {
    let example = REFERENCE.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let scenario = scenario::parse(example.unwrap()).unwrap();
    assert_eq!(scenario.threads.len(), 2);
}

#[test]
fn every_key_has_a_row_in_the_reference() {
    let card = format!("{:?}", CardConfig::default());
    let fields = card.split_once('{').unwrap().1.split(", ").filter_map(|field| field.split_once(':'));
    let keys = ["name", "why", "cards", "limit_s", "settle", "expect", "setup", "finally", "[card]", "[[thread]]"];
    for key in fields.map(|(key, _)| key.trim()).chain(keys) {
        assert!(REFERENCE.contains(&format!("| `{key}` |")), "`{key}` has no row in docs/scenarios.md");
    }
}

/// The words to fill in for words in capitals.
const SLOTS: &[(&str, &str)] = &[
    ("DEV", "pci/0000:08:00.0"),
    ("PORT", "pci/0000:08:00.0/1"),
    ("ADDRESS", "0000:08:00.0"),
    ("PFNETDEV", "enp8s0f0np0"),
    ("NETDEV", "dummy0"),
    ("NAME", "one"),
    ("MODULE", "mlx5_ib"),
    ("DRIVER", "vfio-pci"),
    ("MODE", "active-backup"),
    ("MAC", "00:11:22:33:44:55"),
    ("TIME", "5ms"),
    ("VLAN", "5"),
    ("PROTO", "802.1ad"),
    ("QOS", "3"),
    ("MBITS", "100"),
    ("N", "1"),
    ("P", "0"),
    ("S", "88"),
    ("TEXT", "loaded"),
    ("COMMAND", "true"),
    ("EXPECTATION", "vfs pci/0000:08:00.0 4"),
    ("STEP", "devlink dev show"),
    ("FRAME", "ip dst 10.0.0.2 / tcp dport 80"),
    ("PLACE", "rep pci/0000:08:00.0/1"),
];

/// Every way to write a form. `|` stands between words of which one is written, and within brackets between groups of
/// words; what is in brackets may be left out.
fn ways(form: &str) -> Vec<String> {
    let mut ways = vec![String::new()];
    let mut rest = form;
    while !rest.is_empty() {
        let (alternatives, after): (Vec<&str>, &str) = match rest.strip_prefix('[') {
            Some(group) => {
                let (group, after) =
                    group.split_once(']').unwrap_or_else(|| panic!("{form}: a bracket that is not closed"));
                (group.split('|').chain([""]).collect(), after)
            }
            None => {
                let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
                (word.split('|').collect(), after)
            }
        };
        // Of a path it is the last part.
        let folder = alternatives[0].rfind('/').map_or("", |slash| &alternatives[0][..=slash]);
        rest = after.trim_start();
        let longer = |way: &String| -> Vec<String> {
            let whole =
                |words: &&str| if words.contains('/') { (*words).to_owned() } else { format!("{folder}{words}") };
            alternatives.iter().map(|words| format!("{way} {}", whole(words)).trim().to_owned()).collect()
        };
        ways = ways.iter().flat_map(longer).collect();
    }
    ways
}

/// A way to write a form, with something in the place of every word in capitals.
fn filled(way: &str) -> String {
    let mut text = String::new();
    let mut rest = way;
    while !rest.is_empty() {
        let capitals = rest.find(|c: char| !c.is_ascii_uppercase()).unwrap_or(rest.len());
        let (word, after) = rest.split_at(capitals.max(1));
        let slot = SLOTS.iter().find(|(name, _)| *name == word);
        text.push_str(slot.map_or(word, |(_, filled)| filled));
        rest = after.strip_prefix("...").filter(|_| slot.is_some()).unwrap_or(after);
    }
    text
}

#[test]
fn everything_that_a_form_allows_can_be_read() {
    let kinds = ["eth", "ib", "port", "fdb", "netdev", "ibdev", "function", "lag", "metadata", "pair"];
    assert!(kinds.iter().all(|kind| REFERENCE.contains(&format!("`{kind}`"))));
    let mut read = 0;
    for entry in STEPS {
        let forms: Vec<String> = match entry.form.contains("KIND") {
            true => kinds.iter().map(|kind| entry.form.replace("KIND", kind)).collect(),
            false => vec![entry.form.to_owned()],
        };
        for way in forms.iter().flat_map(|form| ways(form)) {
            let step = filled(&way);
            let action =
                Action::parse(&step, &card()).unwrap_or_else(|error| panic!("{}: `{step}`: {error}", entry.form));
            read += 1;
            let Action::Command(command) = &action else { continue };
            // A command reads back from its words and from its encoding.
            let words = command.in_words(&card());
            let again = Action::parse(&words, &card()).unwrap_or_else(|error| panic!("`{step}`: `{words}`: {error}"));
            assert_eq!(again, action, "`{step}`: `{words}`");
            assert_eq!(Command::decode(control::VERSION, &command.encode()).unwrap(), *command, "`{step}`");
        }
    }
    for entry in EXPECTATIONS {
        // Not every name is that of an auxiliary device.
        for way in ways(&entry.form.replace("aux NAME", "aux mlx5_core.rdma-rep.0")) {
            let expectation = filled(&way);
            // The form of an SF must have one of its two optional words.
            if expectation != "sf pci/0000:08:00.0/1" {
                Expectation::parse(&expectation).unwrap_or_else(|error| panic!("`{expectation}`: {error}"));
                read += 1;
            }
        }
    }
    assert!(read > 1_000, "{read}");
}

#[test]
fn always_is_the_same_after_times_and_alone() {
    let parse = |text: &str| Action::parse(text, &card()).unwrap();
    for (alone, after_times) in [
        ("fail ib always", "fail ib times always"),
        ("fail eth pf 0 vf 1 after 2 always", "fail eth pf 0 vf 1 after 2 times always"),
        ("delay lag always for 5ms", "delay lag times always for 5ms"),
    ] {
        assert_eq!(parse(alone), parse(after_times));
    }
    assert_ne!(parse("fail ib always"), parse("fail ib"));
}

#[test]
fn a_command_to_a_pf_touches_no_other() {
    let card = card();
    let second = card.pf_address(PfIndex(1));
    let vf = card.vf_address(PfIndex(1), 0);
    for (words, touched) in [
        (format!("devlink dev eswitch set pci/{second} encap-mode none"), Touched::Pf(second)),
        (format!("devlink dev eswitch set pci/{second} mode legacy"), Touched::PfAndMultiport(second)),
        (format!("devlink dev reload pci/{second}"), Touched::PfAndMultiport(second)),
        (format!("echo {vf} > /sys/bus/pci/drivers/mlx5_core/unbind"), Touched::PfAndMultiport(second)),
        (format!("echo {vf} > /sys/bus/pci/drivers/vfio-pci/bind"), Touched::Pf(second)),
        (format!("echo {vf} > /sys/bus/pci/drivers/vfio-pci/unbind"), Touched::Pf(second)),
        (format!("echo 8 > /sys/bus/pci/devices/{vf}/sriov_vf_msix_count"), Touched::Pf(second)),
        (format!("echo 1 > /sys/bus/pci/devices/{second}/sriov_numvfs"), Touched::Pf(second)),
        ("modprobe mlx5_ib".to_owned(), Touched::Modules),
        ("insmod mlx5_ib".to_owned(), Touched::Modules),
        ("modprobe -r mlx5_ib".to_owned(), Touched::Modules),
        ("modprobe -r mlx5_core".to_owned(), Touched::Everything),
        ("modprobe vfio-pci".to_owned(), Touched::Everything),
        ("echo 1 > /sys/bus/pci/rescan".to_owned(), Touched::Everything),
        ("fail clear".to_owned(), Touched::Nothing),
    ] {
        let action = Action::parse(&words, &card).unwrap_or_else(|error| panic!("{words}: {error}"));
        let Action::Command(command) = action else { panic!("{words}: {action:?}") };
        assert_eq!(command.touches(&card), touched, "{words}");
    }
}
