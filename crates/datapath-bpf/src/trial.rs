//! Trial runs: a frame goes through the program, and what would be sent is recorded.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use flow::Port;

use crate::layout::{OUTPUT_FRAME, View};
use crate::pipeline::{DropReason, Pipeline};
use crate::sys;

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialFate {
    /// It was sent to ports.
    Forwarded,
    /// It was dropped.
    Dropped(DropReason),
    /// A rule passed it to the representor.
    Trapped,
    /// No rule carried it on, and it goes to the representor.
    Missed,
}

/// A frame that would have been sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrialOutput {
    /// The port, or the one whose representor receives the frame.
    pub port: Port,
    /// Whether the representor receives it.
    pub to_representor: bool,
    /// The frame with all its tags, up to 4,096 bytes.
    pub frame: Vec<u8>,
}

/// The result of a trial run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// What became of the frame.
    pub fate: TrialFate,
    /// What would have been sent, in the order in which it would.
    pub outputs: Vec<TrialOutput>,
}

/// The words of `struct control`.
mod word {
    pub const NOW: usize = 1;
    pub const RANDOM: usize = 2;
    pub const FATE: usize = 3;
    pub const OUTPUTS: usize = 4;
}

impl Pipeline {
    /// Sets the state of the random numbers of trial runs, which are those of [`flow::State::new`].
    pub fn seed_trials(&mut self, seed: u64) {
        self.loaded.control.set(word::RANDOM, seed);
    }

    /// Runs a frame as if it came in at the netdev `ifindex` at the time `now`. Meters and counters change as they would.
    ///
    /// # Errors
    /// `EINVAL` for frames that are without anything behind an Ethernet header, or longer than a page has room for, and
    /// `EOPNOTSUPP` without [`Options::trials`](crate::Options::trials).
    pub fn trial(&mut self, ifindex: u32, now: Duration, frame: &[u8]) -> io::Result<Trial> {
        if !self.trials {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let control = &self.loaded.control;
        control.set(word::NOW, u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        control.set(word::OUTPUTS, 0);
        control.set(word::FATE, u64::from(u32::MAX));
        sys::trial(self.loaded.program.as_fd(), frame, ifindex, 1)?;
        let outcome = control.get(word::FATE).to_ne_bytes();
        let count = View(&control.get(word::OUTPUTS).to_ne_bytes()).u32(0);
        let outputs = (0..count).map(|index| self.trial_output(index)).collect::<io::Result<Vec<_>>>()?;
        let reason = DropReason::of(View(&outcome).u32(4)).unwrap_or(DropReason::Internal);
        let fate = match View(&outcome).u32(0) {
            0 => TrialFate::Forwarded,
            2 => TrialFate::Trapped,
            3 => TrialFate::Missed,
            _ => TrialFate::Dropped(reason),
        };
        Ok(Trial { fate, outputs })
    }

    /// How many nanoseconds the program takes for a frame, on the average of `repeat` runs.
    ///
    /// # Errors
    /// As [`Pipeline::trial`].
    pub fn trial_time(&mut self, ifindex: u32, frame: &[u8], repeat: u32) -> io::Result<u32> {
        sys::trial(self.loaded.program.as_fd(), frame, ifindex, repeat).map(|(_, nanoseconds)| nanoseconds)
    }

    fn trial_output(&self, index: u32) -> io::Result<TrialOutput> {
        let value = self.loaded.maps.outputs.get(&index.to_ne_bytes())?;
        let value = value.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        let view = View(&value);
        let length = (view.u32(8) as usize).min(value.len() - OUTPUT_FRAME);
        let mut frame = value[OUTPUT_FRAME..OUTPUT_FRAME + length].to_vec();
        if view.u32(12) != 0 {
            // A tag that the kernel has taken out.
            let tag = [view.u16(16).to_be_bytes(), view.u16(18).to_be_bytes()].concat();
            frame.splice(12..12, tag);
        }
        Ok(TrialOutput { port: Port(view.u32(0)), to_representor: view.u32(4) != 0, frame })
    }
}
