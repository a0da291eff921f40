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

/// Whether a word of a form is to be filled in.
fn is_slot(word: &str) -> bool {
    word.chars().any(|c| c.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_come_next_follows_from_the_forms() {
        assert_eq!(completions(&["devlink", "dev"]), ["show", "eswitch", "reload", "param"]);
        let device = ["devlink", "dev", "eswitch", "set", "pci/0000:08:00.0"];
        assert_eq!(completions(&device), ["mode", "inline-mode", "encap-mode"]);
        let modes = ["legacy", "switchdev", "switchdev_inactive"];
        assert_eq!(completions(&["expect", "mode", "pci/0000:08:00.0"]), modes);
    }
}
