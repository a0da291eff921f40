//! Attributes, which are files with a value, and the templates of directories.

use control::Command;
use netlink::Errno;

use super::AttributeContext;
use crate::UeventAction;

/// What a write to an attribute does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Succeeds, and does nothing.
    Nothing,
    /// Succeeds for a process with CAP_SYS_ADMIN, and does nothing; others get EPERM.
    NothingForAdministrators,
    /// Has one card, or all, carry out a command.
    Perform {
        /// The card's index; `None`: all cards.
        card: Option<usize>,
        /// The command.
        command: Command,
    },
    /// Has a card keep what is written as the description of its RDMA device, with the newline.
    DescribeRdma {
        /// The card's index.
        card: usize,
        /// The device's index at the card.
        index: u32,
    },
    /// Writes the text to the kernel's file of the same path.
    Kernel,
    /// Sends a uevent of the device whose directory it is.
    Uevent(UeventAction),
}

/// The text of an attribute, or the error of reading it.
pub type Text = Result<Vec<u8>, Errno>;

/// Makes the text of an attribute.
pub type Read = fn(&AttributeContext<'_>) -> Text;

/// Decides what a write does. The text is without the newline at its end.
pub type Write = fn(&AttributeContext<'_>, &str) -> Result<Act, Errno>;

/// An attribute: a file with a value.
pub struct Attribute {
    /// Its name.
    pub name: &'static str,
    /// Its permissions.
    pub mode: u16,
    /// The size that `stat` reports, in bytes.
    pub size: u64,
    /// Reads it; `None`: it cannot be read.
    pub read: Option<Read>,
    /// Writes it; `None`: it cannot be written.
    pub write: Option<Write>,
}

const PAGE: u64 = 4096;

impl Attribute {
    /// A read-only attribute.
    pub const fn ro(name: &'static str, read: Read) -> Self {
        Self { name, mode: 0o444, size: PAGE, read: Some(read), write: None }
    }

    /// A read-write attribute.
    pub const fn rw(name: &'static str, read: Read, write: Write) -> Self {
        Self { name, mode: 0o644, size: PAGE, read: Some(read), write: Some(write) }
    }

    /// A write-only attribute.
    pub const fn wo(name: &'static str, write: Write) -> Self {
        Self { name, mode: 0o200, size: PAGE, read: None, write: Some(write) }
    }
}

/// The constant content of all directories of a kind.
pub struct Template {
    /// The directory's name, if this is a subdirectory of another template; else empty.
    pub name: &'static str,
    /// Its attributes, in groups.
    pub attributes: &'static [&'static [Attribute]],
    /// Subdirectories, whose content is constant too.
    pub subdirs: &'static [Template],
}

impl Template {
    /// A template with attributes, and without subdirectories.
    pub const fn of(attributes: &'static [&'static [Attribute]]) -> Self {
        Self { name: "", attributes, subdirs: &[] }
    }

    /// The attribute of a name.
    pub fn attribute(&self, name: &str) -> Option<&'static Attribute> {
        self.attributes.iter().flat_map(|group| group.iter()).find(|attribute| attribute.name == name)
    }

    /// The subdirectory of a name.
    pub fn subdir(&self, name: &str) -> Option<&'static Template> {
        self.subdirs.iter().find(|template| template.name == name)
    }
}

/// A template without content.
pub static EMPTY: Template = Template::of(&[]);
