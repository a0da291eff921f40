//! Modules: a card's are loaded and unloaded by the card.

use std::io;

use crate::process::{self, Caller, SYS_MODULE};
use crate::supervisor::{Answer, Lab};
use crate::sys::{self, Notification};

use super::{errno, read_text};

/// What the file of a card's module begins with; its name follows, and a line's end.
const MARK: &[u8] = b"eswitch-module ";
/// How much of a module is looked at.
const LOOK: usize = 128;
/// `MODULE_NAME_LEN`, and a little.
const NAME: usize = 64;

/// The name of the card's module that a file is, by its content. The files are made by who shows
/// `/lib/modules` to a lab.
pub(crate) fn module_name_of(content: &[u8]) -> Option<&str> {
    let name = content.strip_prefix(MARK)?.split(|byte| *byte == b'\n').next()?;
    std::str::from_utf8(name).ok().map(str::trim).filter(|name| !name.is_empty())
}

/// `init_module(image, len, options)`.
pub(super) fn init_module(lab: &Lab, call: &Notification) -> Answer {
    let [image, len, ..] = call.data.args;
    let mut content = [0; LOOK];
    let len = len.min(LOOK as u64) as usize;
    match sys::read_memory(call.pid, image, &mut content[..len]) {
        Ok(len) => load(lab, call, &content[..len]),
        Err(_) => Answer::Continue,
    }
}

/// `finit_module(file, options, flags)`.
pub(super) fn finit_module(lab: &Lab, call: &Notification) -> Answer {
    let mut content = [0; LOOK];
    let read = process::take_fd(call.pid, call.data.args[0] as u32)
        .and_then(|file| Ok(rustix::io::pread(&file, &mut content, 0)?));
    match read {
        Ok(len) => load(lab, call, &content[..len]),
        Err(_) => Answer::Continue,
    }
}

fn load(lab: &Lab, call: &Notification, content: &[u8]) -> Answer {
    let Some(name) = module_name_of(content) else { return Answer::Continue };
    perform(lab, call, name, "modprobe")
}

/// `delete_module(name, flags)`.
pub(super) fn delete_module(lab: &Lab, call: &Notification) -> Answer {
    match read_text(lab, call, call.data.args[0], NAME) {
        Ok(name) => perform(lab, call, &name, "modprobe -r"),
        Err(_) => Answer::Continue,
    }
}

fn perform(lab: &Lab, call: &Notification, name: &str, how: &str) -> Answer {
    let Some(card) = lab.cards.now().module(name) else { return Answer::Continue };
    let work = || -> io::Result<Answer> {
        if Caller::of(call.pid)?.capabilities & SYS_MODULE == 0 {
            return Err(errno(libc::EPERM));
        }
        if !lab.still_waits(call) {
            return Ok(Answer::Later);
        }
        lab.cards.perform(card, &format!("{how} {name}")).map_err(|refusal| errno(refusal.errno))?;
        Ok(Answer::Value(0))
    };
    work().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_of_ours_says_so() {
        assert_eq!(module_name_of(b"eswitch-module mlx5_ib\nmore"), Some("mlx5_ib"));
        assert_eq!(module_name_of(b"eswitch-module mlx5_ib"), Some("mlx5_ib"));
        assert_eq!(module_name_of(b"\x7fELF"), None);
        assert_eq!(module_name_of(b"eswitch-module \n"), None);
    }
}
