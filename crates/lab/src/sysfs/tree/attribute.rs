//! Attributes, which are files with a value, and the folders that every directory of a kind has.

use control::Command;
use netlink::Errno;

use super::Shown;

/// What is to be done about something written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing; it is fine.
    Nothing,
    /// Nothing, of whoever has CAP_SYS_ADMIN; others are refused.
    NothingOfAdministrators,
    /// A card is to carry out a command, or each of them.
    Perform {
        /// Which card, counted from 0; `None`: each.
        card: Option<usize>,
        /// The command.
        command: Command,
    },
    /// It is for the kernel's file of the same path.
    Kernel,
}

/// What a read gives.
pub type Text = Result<Vec<u8>, Errno>;

/// Makes a value.
pub type Read = fn(&Shown<'_>) -> Text;

/// Says what is to be done about a text, which is without the newline at its end.
pub type Write = fn(&Shown<'_>, &str) -> Result<Act, Errno>;

/// An attribute: a file with a value.
pub struct Attribute {
    /// Its name.
    pub name: &'static str,
    /// Its permissions.
    pub mode: u16,
    /// How long it says it is.
    pub size: u64,
    /// What reading gives.
    pub read: Option<Read>,
    /// What writing does.
    pub write: Option<Write>,
}

const PAGE: u64 = 4096;

impl Attribute {
    /// One that can be read.
    pub const fn ro(name: &'static str, read: Read) -> Self {
        Self { name, mode: 0o444, size: PAGE, read: Some(read), write: None }
    }

    /// One that can be read and written.
    pub const fn rw(name: &'static str, read: Read, write: Write) -> Self {
        Self { name, mode: 0o644, size: PAGE, read: Some(read), write: Some(write) }
    }

    /// One that can be written.
    pub const fn wo(name: &'static str, write: Write) -> Self {
        Self { name, mode: 0o200, size: PAGE, read: None, write: Some(write) }
    }
}

/// What each directory of a kind has.
pub struct Folder {
    /// Its name, where it is in another folder.
    pub name: &'static str,
    /// Its attributes, in groups.
    pub attributes: &'static [&'static [Attribute]],
    /// Directories in it that have nothing but attributes.
    pub folders: &'static [Folder],
}

impl Folder {
    /// One with attributes.
    pub const fn of(attributes: &'static [&'static [Attribute]]) -> Self {
        Self { name: "", attributes, folders: &[] }
    }

    /// An attribute.
    pub fn attribute(&self, name: &str) -> Option<&'static Attribute> {
        self.attributes.iter().flat_map(|group| group.iter()).find(|attribute| attribute.name == name)
    }

    /// A directory.
    pub fn folder(&self, name: &str) -> Option<&'static Folder> {
        self.folders.iter().find(|folder| folder.name == name)
    }
}

/// A directory without anything constant in it.
pub static PLAIN: Folder = Folder::of(&[]);
