//! Samples: the program writes them into a ring buffer (`kernel/bpf/ringbuf.c`), from which they are read here.
//!
//! They have a mapping of their own, so a reader needs no part of the pipeline, and holds no lock that rules wait for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use flow::{Port, Sampled};

use crate::layout::{SAMPLE_FRAME, View};
use crate::maps::Maps;
use crate::sys::{self, Map, Words};

/// The header of a record (`struct bpf_ringbuf_hdr`), a word: the length, with two flags in front, and an offset.
const HEADER: usize = 8;
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;

/// The samples that rules take. A frame is cut after 9,216 bytes. If the buffer is full, further samples are lost.
pub struct Samples {
    ring: Ring,
    fd: OwnedFd,
}

impl Samples {
    pub(crate) fn open(maps: &Maps) -> io::Result<Samples> {
        let fd = maps.samples.as_fd().try_clone_to_owned()?;
        Ok(Samples { ring: Ring::new(&maps.samples)?, fd })
    }

    /// At most so many of the samples that were taken since the last call, in their order.
    pub fn read(&mut self, most: usize) -> Vec<Sampled> {
        self.ring.read(most)
    }
}

/// A descriptor that can be read when there are samples, for poll(2).
impl AsFd for Samples {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The reading end of a ring buffer.
struct Ring {
    reader: Words,
    writer: Words,
    size: usize,
    page: usize,
}

impl Ring {
    fn new(map: &Map) -> io::Result<Ring> {
        let (reader, writer) = map.ring_in_memory()?;
        Ok(Ring { reader, writer, size: map.max_entries as usize, page: sys::page_size() })
    }

    /// At most so many of the samples that have been written since the last call.
    fn read(&mut self, most: usize) -> Vec<Sampled> {
        let mut samples = Vec::new();
        let mut at = self.reader.get(0);
        while samples.len() < most && at < self.writer.get_first(0) {
            let header = self.writer.get_first(self.word(at)).to_ne_bytes();
            let length = View(&header).u32(0);
            if length & BUSY != 0 {
                break;
            }
            let bytes = (length & !DISCARDED) as usize;
            if length & DISCARDED == 0 {
                samples.extend(sample(&self.bytes(at + HEADER as u64, bytes)));
            }
            at += (HEADER + bytes).next_multiple_of(8) as u64;
            self.reader.set(0, at);
        }
        samples
    }

    /// The word of the writer's memory at a position of the buffer, behind which the data stands once more.
    fn word(&self, position: u64) -> usize {
        (self.page + (position as usize & (self.size - 1))) / 8
    }

    fn bytes(&self, position: u64, count: usize) -> Vec<u8> {
        let first = self.word(position);
        let words = (first..first + count.div_ceil(8)).flat_map(|word| self.writer.get(word).to_ne_bytes());
        words.take(count).collect()
    }
}

fn sample(bytes: &[u8]) -> Option<Sampled> {
    let view = View(bytes);
    let kept = view.u32(16) as usize;
    Some(Sampled {
        group: view.u32(0),
        rate: view.u32(4),
        in_port: Port(view.u32(8)),
        length: view.u32(12) as usize,
        frame: bytes.get(SAMPLE_FRAME..SAMPLE_FRAME + kept)?.to_vec(),
    })
}
