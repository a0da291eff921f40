//! Modules: a card's are loaded and unloaded by the card, by each card if there are several.

use std::io;

use control::Command;
use netlink::Errno;

use crate::process::{self, Caller, SYS_MODULE};
use crate::supervisor::{Answer, Lab};
use crate::sys::{self, Notification};
use crate::sysfs::module_name;

use super::read_text;

/// How much of a module is looked at: those of a card are small.
const LOOK: usize = 16 * 1024;
/// `MODULE_NAME_LEN`, and a little.
const NAME: usize = 64;

/// `init_module(image, len, options)`.
pub(super) fn init_module(lab: &Lab, call: &Notification) -> Answer {
    let [image, len, ..] = call.data.args;
    let mut content = vec![0; LOOK];
    let len = len.min(LOOK as u64) as usize;
    match sys::read_memory(call.pid, image, &mut content[..len]) {
        Ok(len) => load(lab, call, &content[..len]),
        Err(_) => Answer::Continue,
    }
}

/// `finit_module(file, options, flags)`.
pub(super) fn finit_module(lab: &Lab, call: &Notification) -> Answer {
    // The kernel asks for the right before it looks at the file, which may be one that makes who reads it wait.
    match Caller::of(call.pid, &lab.home) {
        Ok(caller) if caller.capabilities & SYS_MODULE != 0 => {}
        _ => return Answer::Errno(Errno::PERM),
    }
    let mut content = vec![0; LOOK];
    let read = process::take_fd(call.pid, call.data.args[0] as u32)
        .and_then(|file| Ok(rustix::io::pread(&file, &mut content, 0)?));
    match read {
        Ok(len) => load(lab, call, &content[..len]),
        Err(_) => Answer::Continue,
    }
}

fn load(lab: &Lab, call: &Notification, content: &[u8]) -> Answer {
    let Some(name) = module_name(content) else { return Answer::Continue };
    // This module and no other, as with the kernel: `modprobe` loads those that it depends on by calls of their own.
    perform(lab, call, name, Command::InsertModule)
}

/// `delete_module(name, flags)`.
pub(super) fn delete_module(lab: &Lab, call: &Notification) -> Answer {
    match read_text(lab, call, call.data.args[0], NAME) {
        Ok(name) => perform(lab, call, &name, Command::UnloadModule),
        Err(_) => Answer::Continue,
    }
}

fn perform(lab: &Lab, call: &Notification, name: &str, command: fn(String) -> Command) -> Answer {
    let cards = lab.cards.now().having_module(name);
    if cards.is_empty() {
        return Answer::Continue;
    }
    let work = || -> io::Result<Answer> {
        if Caller::of(call.pid, &lab.home)?.capabilities & SYS_MODULE == 0 {
            return Err(Errno::PERM.into());
        }
        if !lab.still_waits(call) {
            return Ok(Answer::Later);
        }
        let mut had_it = 0;
        for card in &cards {
            match lab.cards.perform(*card, &command(name.to_owned())) {
                // Of several cards one may have it, and another not yet.
                Err(refusal) if refusal.errno == Errno::EXIST => had_it += 1,
                done => done.map_err(|refusal| refusal.errno)?,
            }
        }
        if had_it == cards.len() { Err(Errno::EXIST.into()) } else { Ok(Answer::Value(0)) }
    };
    work().into()
}
