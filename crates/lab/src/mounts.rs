//! What is mounted where, as the kernel lists it in `/proc/PID/mountinfo` (proc(5)).

use std::fs;
use std::io;

/// One mount.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub id: String,
    /// The mount on which it is mounted.
    pub parent: String,
    /// The path within the file system.
    pub root: String,
    /// Where it is mounted, from the root of the thread.
    pub point: String,
    pub is_read_only: bool,
    /// Whether mounts in it appear in other mount namespaces.
    pub is_shared: bool,
    /// The type of the file system.
    pub kind: String,
    pub source: String,
}

impl Mounted {
    fn read(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let mut next = || fields.next().map(str::to_owned);
        let (id, parent, _, root, point, options) = (next()?, next()?, next()?, next()?, next()?, next()?);
        let is_read_only = options.split(',').any(|option| option == "ro");
        let is_shared = fields.any(|field| field.starts_with("shared:"));
        let mut file_system = file_system.split(' ').map(str::to_owned);
        let (kind, source) = (file_system.next()?, file_system.next()?);
        Some(Self { id, parent, root, point, is_read_only, is_shared, kind, source })
    }
}

/// The mounts that a thread can reach from its root, in the order in which they were mounted. `thread`: a number, or
/// `thread-self`.
///
/// # Errors
/// The thread is gone, or there is no `/proc`.
pub(crate) fn of(thread: &str) -> io::Result<Vec<Mounted>> {
    let text = fs::read_to_string(format!("/proc/{thread}/mountinfo"))?;
    Ok(text.lines().filter_map(Mounted::read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_optional_fields_it_has() {
        let line = "36 35 98:0 /mnt1 /mnt2 ro,noatime shared:7 master:1 - ext3 /dev/root rw,errors=continue";
        let mount = Mounted::read(line).unwrap();
        assert_eq!((&*mount.id, &*mount.parent, &*mount.root, &*mount.point), ("36", "35", "/mnt1", "/mnt2"));
        assert_eq!((mount.is_read_only, mount.is_shared), (true, true));
        assert_eq!((&*mount.kind, &*mount.source), ("ext3", "/dev/root"));
        let plain = Mounted::read("36 35 0:5 / / rw - tmpfs none rw").unwrap();
        assert_eq!((plain.is_read_only, plain.is_shared), (false, false));
        assert!(Mounted::read("36 35 0:5 / /").is_none());
    }
}
