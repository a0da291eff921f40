//! What the files of a card hold, as JSON.

use devlink::Kept;
use eswitch::{Agreed, CardConfig};
use serde::{Deserialize, Serialize};

/// What is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The configuration under which it was agreed.
    pub config: CardConfig,
    /// What was agreed.
    pub agreed: Agreed,
    /// What the control socket's server knew besides. The default is for states that older versions wrote.
    #[serde(default, skip_serializing_if = "Kept::is_empty")]
    pub kept: Kept,
}

/// The content of a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// What is stored; `None` once it was forgotten.
    pub stored: Option<Stored>,
    /// The checksum of the database of version 1 from which this was read, until that has been moved aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_from: Option<String>,
}
