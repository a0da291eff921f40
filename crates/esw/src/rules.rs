//! `esw rules`: the flow rules of cards that are up, and what they have dropped.

use anyhow::Result;

use crate::arguments::Rules;
use crate::exit_status::HELD;
use crate::output::line;
use crate::printable::printable;
use crate::sockets::connect;

/// Runs the command; its exit status.
///
/// # Errors
/// No card is up, or a daemon does not answer.
pub fn rules(arguments: &Rules) -> Result<u8> {
    for mut card in connect(&arguments.which)? {
        let lines = if arguments.drops { card.client.drops()? } else { card.client.rules()? };
        lines.iter().for_each(|text| line(&printable(text)));
    }
    Ok(HELD)
}
