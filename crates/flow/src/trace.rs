//! What was asked and done for one frame, in words.

use std::fmt;

use crate::rule::{Block, Protocol, RuleId};

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A block was entered.
    Block(Block),
    /// A chain of the block was entered.
    Chain(u32),
    /// A priority was passed over, as it is for another protocol.
    Skipped {
        /// The priority.
        priority: u32,
        /// Its protocol.
        protocol: Protocol,
        /// The frame's.
        ethertype: u16,
    },
    /// The rules with one mask were asked.
    Asked {
        /// The priority.
        priority: u32,
        /// Its protocol.
        protocol: Protocol,
        /// The fields that the mask has, in iproute2's words.
        fields: Vec<&'static str>,
        /// The rule that matched.
        matched: Option<RuleId>,
    },
    /// An action was done, or had nothing to do.
    Did(String),
    /// What became of the frame.
    Ended(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Block(block) => write!(f, "{block}:"),
            Step::Chain(chain) => write!(f, "  chain {chain}:"),
            Step::Skipped { priority, protocol, ethertype } => {
                write!(f, "    priority {priority} is for protocol {protocol}, not {}", Protocol::Is(*ethertype))
            }
            Step::Asked { priority, protocol, fields, matched } => {
                let fields = if fields.is_empty() { "any frame".to_owned() } else { fields.join(" ") };
                write!(f, "    priority {priority} (protocol {protocol}), {fields}: ")?;
                match matched {
                    Some(rule) => write!(f, "{rule} matches"),
                    None => f.write_str("no rule matches"),
                }
            }
            Step::Did(what) => write!(f, "      {what}"),
            Step::Ended(what) => f.write_str(what),
        }
    }
}

/// The steps of a run, in their order. [`fmt::Display`] writes a line for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace(pub Vec<Step>);

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}
