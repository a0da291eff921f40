//! How a daemon ends, and the request to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use host::Pulse;
use lockdep::{Locked, Unlocked};

/// How a daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The cards are taken down; what was agreed is kept for the next start.
    Down = 0,
    /// The cards are taken down, and what was agreed is forgotten.
    Forget = 1,
    /// The cards' netdevs stay, for the next start to find.
    Keep = 2,
}

impl How {
    /// The word for it in a request over a control socket.
    pub fn word(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Forget => "forget",
            Self::Keep => "keep",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        [Self::Down, Self::Forget, Self::Keep].into_iter().find(|how| how.word() == word)
    }
}

/// The request to end, and how to end.
#[derive(Debug)]
pub struct Ending {
    how: AtomicU8,
    pulse: Arc<Pulse>,
}

impl Ending {
    /// No request yet; `how` is how the daemon ends on a signal.
    pub fn new(pulse: Arc<Pulse>, how: How) -> Self {
        Self { how: AtomicU8::new(how as u8), pulse }
    }

    /// Requests the end of the daemon.
    pub fn request(&self, cx: &mut Locked<'_, Unlocked>, how: How) {
        self.how.store(how as u8, Ordering::Release);
        self.pulse.stop(cx);
    }

    /// How the daemon is to end.
    pub fn how(&self) -> How {
        match self.how.load(Ordering::Acquire) {
            1 => How::Forget,
            2 => How::Keep,
            _ => How::Down,
        }
    }
}
