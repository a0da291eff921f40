//! What a server knows of a card and the card does not, so that a host can store it and a later server has it again.

use serde::{Deserialize, Serialize};

use crate::rdma_core::RdmaCore;
use crate::settings;

/// What a server knows of a card and the card does not: settings of traps, of health reporters, and of the parameters of VFs
/// and SFs; and what the RDMA core knows of devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    #[serde(default)]
    pub(crate) settings: settings::State,
    #[serde(default)]
    pub(crate) rdma: RdmaCore,
    /// The card's own network namespace, if something is abroad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) network: Option<u64>,
}

impl Kept {
    /// Whether nothing has been changed: a server without it is the same.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Writes a map as a list of its pairs, because keys of JSON are text.
pub(crate) mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}
