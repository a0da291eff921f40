//! `esw trace`: what the flow rules of a card that is up would do with a frame.

use anyhow::{Result, bail};
use control::reader::Words;
use control::{Query, Request};
use devlink::ClientError;
use netlink::{Errno, strerror};

use crate::arguments::Trace;
use crate::exit_status::{FAILED, HELD};
use crate::output::{complain, line};
use crate::printable::printable;
use crate::sockets::connect;

/// Runs the command; its exit status.
///
/// # Errors
/// The words are no port and frame; or no card is up.
pub fn trace(arguments: &Trace) -> Result<u8> {
    let text = format!("trace {} {}", arguments.port, arguments.frame.join(" "));
    let (port, frame) = match read(&text) {
        Ok(Request::Query(Query::Trace { port, frame })) => (port, frame),
        Ok(other) => bail!("expected a port and a frame, found {other:?}"),
        Err(error) => bail!("{error}\n  {text}\n  {:1$}^", "", text[..error.at].chars().count()),
    };
    let mut last = None;
    for mut card in connect(&arguments.which)? {
        match card.client.trace(port, &frame) {
            Ok(lines) => {
                lines.iter().for_each(|text| line(&printable(text)));
                return Ok(HELD);
            }
            // Another card may have the port.
            Err(ClientError::Refused(refusal)) if refusal.errno == Errno::NODEV => last = Some(refusal),
            Err(ClientError::Refused(refusal)) => {
                last = Some(refusal);
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(refusal) = last {
        match refusal.message {
            Some(message) => complain!("Error: {message}"),
            None if refusal.errno == Errno::OPNOTSUPP => {
                complain!(
                    "Error: this daemon is of an older version and traces no frames: start it again with this one"
                );
            }
            None => complain!("Error: {}", strerror(refusal.errno)),
        }
    }
    Ok(FAILED)
}

fn read(text: &str) -> Result<Request, control::WordError> {
    let mut words = Words::new(text);
    words.ensure_shown(&[])?;
    Request::from_words(&mut words)
}
