//! Attributes that are kept.

/// The type of an attribute, and its value.
pub type Attr = (u16, Vec<u8>);
