//! Kernel modules: a card's own modules are loaded and unloaded by the card, and by each card if several have them.

use std::io;

use control::Command;
use netlink::Errno;

use crate::lock_order::Cx;
use crate::process::{self, Caller, SYS_MODULE};
use crate::supervisor::{Answer, Lab};
use crate::sys::{self, Notification};
use crate::sysfs::module_name;

use super::read_text;

/// How many bytes of a module are read: those of a card are small.
const LOOK: usize = 16 * 1024;
/// A little more than `MODULE_NAME_LEN`.
const NAME: usize = 64;

/// `init_module(image, len, options)`.
pub(super) fn init_module(cx: Cx<'_, '_>, lab: &Lab, call: &Notification) -> Answer {
    let [image, len, ..] = call.data.args;
    let mut content = vec![0; LOOK];
    let len = len.min(LOOK as u64) as usize;
    match sys::read_memory(call.pid, image, &mut content[..len]) {
        Ok(len) => load(cx, lab, call, &content[..len]),
        Err(_) => Answer::Continue,
    }
}

/// `finit_module(file, options, flags)`.
pub(super) fn finit_module(cx: Cx<'_, '_>, lab: &Lab, call: &Notification) -> Answer {
    // The kernel checks the capability before it reads the file, and reading it may block.
    match Caller::of(call.pid, &lab.user_namespace) {
        Ok(caller) if caller.capabilities & SYS_MODULE != 0 => {}
        _ => return Answer::Errno(Errno::PERM),
    }
    let mut content = vec![0; LOOK];
    let read = process::take_fd(call.pid, call.data.args[0] as u32)
        .and_then(|file| Ok(rustix::io::pread(&file, &mut content, 0)?));
    match read {
        Ok(len) => load(cx, lab, call, &content[..len]),
        Err(_) => Answer::Continue,
    }
}

fn load(cx: Cx<'_, '_>, lab: &Lab, call: &Notification, content: &[u8]) -> Answer {
    let Some(name) = module_name(content) else { return Answer::Continue };
    // Only this module, as in the kernel: `modprobe` loads the modules that it depends on by calls of their own.
    perform(cx, lab, call, name, Command::InsertModule)
}

/// `delete_module(name, flags)`.
pub(super) fn delete_module(cx: Cx<'_, '_>, lab: &Lab, call: &Notification) -> Answer {
    match read_text(lab, call, call.data.args[0], NAME) {
        Ok(name) => perform(cx, lab, call, &name, Command::UnloadModule),
        Err(_) => Answer::Continue,
    }
}

fn perform(cx: Cx<'_, '_>, lab: &Lab, call: &Notification, name: &str, command: fn(String) -> Command) -> Answer {
    let cards = lab.cards.now(cx).having_module(name);
    if cards.is_empty() {
        return Answer::Continue;
    }
    let work = || -> io::Result<Answer> {
        if Caller::of(call.pid, &lab.user_namespace)?.capabilities & SYS_MODULE == 0 {
            return Err(Errno::PERM.into());
        }
        if !lab.still_waits(call) {
            return Ok(Answer::Later);
        }
        let mut already_loaded = 0;
        for card in &cards {
            match lab.cards.perform(*card, &command(name.to_owned())) {
                // One of several cards may have loaded it already, and another not.
                Err(refusal) if refusal.errno == Errno::EXIST => already_loaded += 1,
                done => done.map_err(|refusal| refusal.errno)?,
            }
        }
        if already_loaded == cards.len() { Err(Errno::EXIST.into()) } else { Ok(Answer::Value(0)) }
    };
    work().into()
}
