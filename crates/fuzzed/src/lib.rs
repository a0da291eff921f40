//! What takes bytes from others, as functions of bytes, with what must hold of them: whatever the bytes are, no
//! panic, no end to what is read, and a card that is as it was unless it was told otherwise.
//!
//! The targets of `fuzz/` call these functions, and so does a test with the corpus that is kept there and with
//! what a small [`Mutator`] makes of it. Each panics if something does not hold.

#![forbid(unsafe_code)]

mod answer;
mod mutator;

pub use answer::answer;
pub use mutator::Mutator;

/// The lab's relays: what a program, the kernel or a card's server may have sent.
pub fn relay(bytes: &[u8]) {
    lab::fuzzing::relay(bytes);
}

/// A scenario, and a card's configuration: what can be read is what can be told.
pub fn scenario(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(scenario) = scenario::parse(text) {
        assert!(!scenario.threads.is_empty(), "a story without a thread was taken: {text}");
    }
    if let Ok(card) = scenario::parse_card(text) {
        assert!(card.validate().is_ok(), "a card that is none was taken: {text}");
    }
}

/// A daemon's configuration: every card in one that is taken can come up.
pub fn daemon_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for card in esw::fuzzing::daemon_config(text).into_iter().flatten() {
        assert!(card.validate().is_ok(), "a card that is none was taken: {text}");
    }
}
