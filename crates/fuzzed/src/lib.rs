//! Everything that reads bytes from outside, as functions of bytes that check what must hold: whatever the bytes are,
//! nothing panics, reading ends, and the card does not change unless a permitted request changes it.
//!
//! The targets of `fuzz/` call these functions, and so does a test with the corpus in that folder and with
//! changes that a small [`Mutator`] makes to it. Each panics if something does not hold.

#![forbid(unsafe_code)]

mod answer;
mod mutator;

pub use answer::answer;
pub use mutator::Mutator;

/// Has the lab's relays read bytes that a program, the kernel or a card's server may have sent.
pub fn relay(bytes: &[u8]) {
    lab::fuzzing::relay(bytes);
}

/// Reads a scenario and a card's configuration: one that is accepted can be run.
pub fn scenario(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(scenario) = scenario::parse(text) {
        assert!(!scenario.threads.is_empty(), "a scenario without a thread was accepted: {text}");
    }
    if let Ok(card) = scenario::parse_card(text) {
        assert!(card.validate().is_ok(), "an invalid card was accepted: {text}");
    }
}

/// Reads a daemon's configuration: if it is accepted, every card in it is valid.
pub fn daemon_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for card in esw::fuzzing::daemon_config(text).into_iter().flatten() {
        assert!(card.validate().is_ok(), "an invalid card was accepted: {text}");
    }
}
