//! Every form of a step and of an expectation with what it does: for `help`, completion, and the reference.

use control::forms::{Entry, REQUESTS, entry};

/// The forms that are steps and no requests to the card.
const OTHER_STEPS: &[Entry] = &[
    entry("!COMMAND", "run a program among the card's netdevs; ip, bridge, tc, ping, sysctl and sh need no `!`"),
    entry(
        "send PORT FRAME [arrives PLACE...|arrives nowhere]",
        "send a frame into a port; a PLACE is PORT or `rep PORT`",
    ),
    entry("sync NAME", "wait until all threads that name it have reached it"),
    entry("sleep TIME", "wait for this time"),
    entry("wait settled", "wait until the queues are at rest"),
    entry("wait retries", "wait until nothing is left to be tried again"),
    entry("wait until EXPECTATION", "wait until it holds"),
    entry("expect EXPECTATION", "fail unless it holds now"),
    entry("repeat N: STEP", "do a step this number of times"),
];

/// Every form of a step.
pub const STEPS: &[Entry] = &joined();

const fn joined() -> [Entry; REQUESTS.len() + OTHER_STEPS.len()] {
    let mut all = [entry("", ""); REQUESTS.len() + OTHER_STEPS.len()];
    let (mut from, mut at) = (REQUESTS, 0);
    while at < all.len() {
        if at == REQUESTS.len() {
            from = OTHER_STEPS;
        }
        let [first, rest @ ..] = from else { break };
        (all[at], from) = (*first, rest);
        at += 1;
    }
    all
}

/// Every form of an expectation.
pub const EXPECTATIONS: &[Entry] = &[
    entry("mode DEV legacy|switchdev|switchdev_inactive", "the E-Switch is in that mode"),
    entry("rep PORT eth|ib loaded|registered|unregistered|failed", "a representor's state"),
    entry("reps DEV eth|ib loaded|registered|unregistered|failed N", "how many representors are in a state"),
    entry("vfs DEV N", "how many VFs are enabled"),
    entry("rules DEV N", "how many flow rules the E-Switch has"),
    entry("lag none|roce|vf|shared-fdb|mpesw", "the mode of the card's LAG"),
    entry("lag reason TEXT", "the reason why a bond makes no LAG contains this"),
    entry("module MODULE loaded|absent", "whether a module is loaded"),
    entry("aux NAME bound|unbound|absent", "an auxiliary device and its driver"),
    entry("sf PORT [active|inactive] [attached|detached]", "an SF's state and operational state"),
    entry("port PORT present|absent", "whether the port exists"),
    entry("netdev NAME present|absent", "whether the netdev exists"),
    entry("bound DEV", "the device is bound to its driver"),
    entry("unbound DEV", "the device is not bound to its driver"),
    entry("event TEXT", "an event that contains this has happened"),
    entry("no event TEXT", "no event that contains this has happened"),
];

/// The words that may follow these, according to the forms above. A word in capitals is returned as it is, for the
/// caller to fill in.
pub fn completions(words: &[&str]) -> Vec<&'static str> {
    let mut next = Vec::new();
    let forms: Vec<(&[&str], Entry)> = match words {
        ["expect", rest @ ..] | ["wait", "until", rest @ ..] => EXPECTATIONS.iter().map(|e| (rest, *e)).collect(),
        _ => STEPS.iter().map(|e| (words, *e)).collect(),
    };
    for (words, entry) in forms {
        let mut form = entry.form.split_whitespace();
        let fits = |form: &str, word: &str| {
            let form = form.trim_matches(['[', ']']);
            form.split('|').any(|alternative| alternative == word || is_slot(alternative))
        };
        if words.iter().all(|word| form.next().is_some_and(|form| fits(form, word)))
            && let Some(form) = form.next()
        {
            for word in form.trim_matches(['[', ']']).split('|') {
                if !next.contains(&word) {
                    next.push(word);
                }
            }
        }
    }
    next
}

/// Returns the form of a step: the one in [`STEPS`] that has most words in common with it.
pub fn form_of(step: &str) -> Option<&'static str> {
    let forms = STEPS.iter().filter_map(|entry| Some((written_words(entry.form, step)?, entry.form)));
    forms.max_by_key(|(common, _)| *common).map(|(_, form)| form)
}

/// Returns how many words of a form are in a step as they are written, or `None` if the step has another form. Words
/// after the first that may be left out, or repeated, can be anything.
fn written_words(form: &str, step: &str) -> Option<usize> {
    let (mut common, mut words) = (0, step.split_whitespace().peekable());
    for part in form.split_whitespace() {
        if part.starts_with('[') && part.ends_with(']') {
            words.next_if(|word| is_one_of(part.trim_matches(['[', ']']), word));
        } else if part.starts_with('[') || part.ends_with("...") {
            break;
        } else {
            words.next().filter(|word| is_one_of(part, word))?;
            common += usize::from(!is_slot(part));
        }
    }
    Some(common)
}

/// Returns whether a word is one of the alternatives in a form, such as `mlx5_core.sf/bind|unbind`.
fn is_one_of(part: &str, word: &str) -> bool {
    let mut alternatives = part.split('|');
    let first = alternatives.next().unwrap_or_default();
    let folder = first.rfind('/').map_or("", |end| &first[..=end]);
    let fits = |prefix, alternative| fill(prefix, word).and_then(|rest| fill(alternative, rest)) == Some("");
    fits("", first) || alternatives.any(|alternative| fits(folder, alternative))
}

/// Returns what follows a text with slots at the beginning of a word. A slot takes all that can be taken by it.
fn fill<'w>(text: &str, word: &'w str) -> Option<&'w str> {
    let Some(start) = text.find(|c: char| c.is_ascii_uppercase()) else {
        return word.strip_prefix(text);
    };
    let word = word.strip_prefix(&text[..start])?;
    let after = text[start..].find(|c: char| !c.is_ascii_uppercase()).map_or("", |end| &text[start + end..]);
    if after.is_empty() {
        return Some("");
    }
    let mut ends = (1..word.len()).rev().filter(|at| word.is_char_boundary(*at));
    ends.find_map(|at| fill(after, &word[at..]))
}

/// Whether a word of a form is to be filled in.
fn is_slot(word: &str) -> bool {
    word.chars().any(|c| c.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_the_form_with_most_of_its_words() {
        for (step, form) in [
            ("modprobe mlx5_ib", "modprobe MODULE"),
            ("modprobe -r mlx5_ib", "modprobe -r MODULE"),
            ("fail clear", "fail clear"),
            ("fail alloc pci/0000:08:00.0 times 1", "fail alloc DEV times N"),
            ("wait until lag roce", "wait until EXPECTATION"),
            ("!tcpdump -c1", "!COMMAND"),
            ("tc -s filter show dev eth0 ingress", "tc [-s] filter show dev NETDEV ingress"),
            ("tc filter show dev eth0 ingress", "tc [-s] filter show dev NETDEV ingress"),
            (
                "echo mlx5_core.sf.0 > /sys/bus/auxiliary/drivers/mlx5_core.sf/unbind",
                "echo mlx5_core.sf.N > /sys/bus/auxiliary/drivers/mlx5_core.sf/bind|unbind",
            ),
            (
                "echo 0000:08:00.1 > /sys/bus/pci/devices/0000:08:00.1/driver/unbind",
                "echo ADDRESS > /sys/bus/pci/devices/ADDRESS/driver/unbind",
            ),
        ] {
            assert_eq!(form_of(step), Some(form), "{step}");
        }
        assert_eq!(form_of("mkfs /dev/sda"), None);
    }

    #[test]
    fn what_may_come_next_follows_from_the_forms() {
        assert_eq!(completions(&["devlink", "dev"]), ["show", "eswitch", "reload", "param"]);
        let device = ["devlink", "dev", "eswitch", "set", "pci/0000:08:00.0"];
        assert_eq!(completions(&device), ["mode", "inline-mode", "encap-mode"]);
        let modes = ["legacy", "switchdev", "switchdev_inactive"];
        assert_eq!(completions(&["expect", "mode", "pci/0000:08:00.0"]), modes);
    }
}
