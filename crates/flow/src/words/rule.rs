//! A whole filter: where it is, its keys, its actions.

use crate::matching::Match;
use crate::meter::{Meter, MeterId};
use crate::rule::{Block, Protocol, Rule};

use super::matches::{self, Keys};
use super::values::{ethertype, u32_of};
use super::{Device, Names, Parsed, WordError, Words, actions, in_full, tunnel_name};

/// A rule as it was read, and the meters that it brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The rule.
    pub rule: Rule,
    /// The handle that was asked for, if one was. The card gives its rules names of its own.
    pub handle: Option<u32>,
    /// The meters of its `police` actions that say a rate, to be made before the rule is added.
    pub meters: Vec<(MeterId, Meter)>,
}

/// The priority of a filter that does not say one: the kernel's first one of its own choice (`tcf_auto_prio`).
const AUTOMATIC_PRIORITY: u32 = 0xc000;

/// The words before `flower`.
const PLACE_WORDS: [&str; 12] = [
    "dev",
    "block",
    "ingress",
    "parent",
    "protocol",
    "prio",
    "pref",
    "priority",
    "preference",
    "chain",
    "handle",
    "flower",
];

/// Where a filter is.
struct Place {
    block: Option<Block>,
    chain: Option<u32>,
    priority: Option<u32>,
    protocol: Option<Protocol>,
    handle: Option<u32>,
}

impl Names<'_> {
    /// Reads a rule in the words of `tc filter add`, which may be left out themselves.
    ///
    /// Whether the card can do what the rule says is for [`crate::Tables::add`] to say.
    ///
    /// # Errors
    /// The word that is wrong, and what would be right.
    pub fn rule(&self, text: &str) -> Result<Filter, WordError> {
        let mut words = Words::of(text);
        if words.take("tc") {
            words.expect("filter")?;
            words.expect("add")?;
        }
        let place = self.place(&mut words)?;
        let block = place.block.or(self.block);
        let block = block.ok_or_else(|| words.wrong("\"dev NAME\" or \"block NUMBER\" must say where the rule is"))?;
        let protocol = place.protocol.unwrap_or(Protocol::All);
        let matches = self.keys(&mut words)?.finish(protocol);
        let (actions, meters) = actions::read(&mut words, self)?;
        let (chain, priority) = (place.chain.unwrap_or(0), place.priority.unwrap_or(AUTOMATIC_PRIORITY));
        Ok(Filter { rule: Rule { block, chain, priority, protocol, matches, actions }, handle: place.handle, meters })
    }

    /// Reads what stands before `flower`, and that word.
    fn place(&self, words: &mut Words<'_>) -> Parsed<Place> {
        let mut place = Place { block: None, chain: None, priority: None, protocol: None, handle: None };
        loop {
            let word = words.value("\"flower\"")?;
            let is_twice = match in_full(word, PLACE_WORDS.into_iter()).unwrap_or(word) {
                "flower" => return Ok(place),
                "dev" => place.block.replace(self.device_block(words)?).is_some(),
                "block" => {
                    let number = |word: &str| u32_of(word, 0).filter(|number| *number != 0);
                    place.block.replace(Block::Shared(words.read("a number of a block from 1 on", number)?)).is_some()
                }
                "ingress" => false,
                "parent" => {
                    words.read("ffff: or ffff:fff2, which are ingress,", |word| {
                        ["ffff:", "ffff:fff2", "ffff:0"].contains(&word).then_some(())
                    })?;
                    false
                }
                "protocol" => place.protocol.replace(words.read("a protocol, as ip or 802.1Q,", protocol)?).is_some(),
                "prio" | "pref" | "priority" | "preference" => {
                    let number = |word: &str| u32_of(word, 0).filter(|number| (1..=0xffff).contains(number));
                    place.priority.replace(words.read("a priority from 1 to 65535", number)?).is_some()
                }
                "chain" => place.chain.replace(words.read("the number of a chain", |word| u32_of(word, 0))?).is_some(),
                "handle" => place.handle.replace(words.read("a handle", |word| u32_of(word, 0))?).is_some(),
                "egress" | "root" => return Err(words.wrong("the card has rules at ingress only")),
                _ => return Err(words.unknown(PLACE_WORDS.into_iter())),
            };
            if is_twice {
                return Err(words.wrong(format!("the {word} is said twice")));
            }
        }
    }

    fn device_block(&self, words: &mut Words<'_>) -> Parsed<Block> {
        let name = words.value("the name of a device")?;
        match self.find(name) {
            Some(Device::Port(port)) => Ok(Block::Port(port)),
            Some(Device::Tunnel(device)) => Ok(Block::Tunnel(device)),
            None => Err(words.wrong(format!("Cannot find device \"{name}\""))),
        }
    }

    /// Reads the keys, up to the first `action`.
    fn keys(&self, words: &mut Words<'_>) -> Parsed<Keys> {
        let mut keys = Keys::new();
        while words.peek().is_some_and(|word| word != "action") {
            let word = words.value("a key")?;
            match word {
                "skip_sw" | "verbose" => continue,
                "skip_hw" => return Err(words.wrong("a rule with skip_hw is not given to the card")),
                _ => {}
            }
            let word = in_full(word, matches::known_words()).unwrap_or(word);
            if !keys.read(word, words, self)? {
                return Err(words.unknown(matches::known_words().chain(["action", "skip_sw"])));
            }
        }
        Ok(keys)
    }

    /// Writes a rule in the words that [`Names::rule`] reads, its keys in the order of `tc filter show`.
    ///
    /// What is read is the same rule, if its values have no bits outside their masks and it has no meter 0, which is none
    /// in tc.
    pub fn rule_words(&self, rule: &Rule) -> String {
        self.words_of(rule, None, &[])
    }

    /// Writes a rule with the rates of its meters, as [`Names::rule`] reads it.
    pub fn filter_words(&self, filter: &Filter) -> String {
        self.words_of(&filter.rule, filter.handle, &filter.meters)
    }

    fn words_of(&self, rule: &Rule, handle: Option<u32>, meters: &[(MeterId, Meter)]) -> String {
        let mut words = vec![self.block_words(rule.block)];
        words.push(format!("protocol {} prio {} chain {}", rule.protocol, rule.priority, rule.chain));
        words.extend(handle.map(|handle| format!("handle {handle:#x}")));
        words.push("flower".into());
        words.extend(matches::show(&rule.matches, rule.protocol, self));
        words.extend(actions::show(&rule.actions, meters, self).into_iter().map(|action| format!("action {action}")));
        words.join(" ")
    }

    fn block_words(&self, block: Block) -> String {
        match block {
            Block::Port(port) => format!("dev {} ingress", (self.port)(port)),
            Block::Tunnel(device) => format!("dev {} ingress", tunnel_name(device)),
            Block::Shared(index) => format!("block {index}"),
        }
    }

    /// Writes the keys of a match in a filter of this protocol, or nothing if every frame matches.
    pub fn match_words(&self, matches: &Match, protocol: Protocol) -> String {
        matches::show(matches, protocol, self).join(" ")
    }
}

/// The protocol of a filter; 3 is ETH_P_ALL.
fn protocol(word: &str) -> Option<Protocol> {
    if word.eq_ignore_ascii_case("all") {
        return Some(Protocol::All);
    }
    ethertype(word).map(|number| if number == 3 { Protocol::All } else { Protocol::Is(number) })
}
