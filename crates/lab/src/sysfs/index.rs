//! The index files in which `kmod` looks modules up (`modules.dep.bin`): a trie of keys, each with values in the order
//! of their priorities. All integers are big-endian. Offsets count from the beginning of the file, and have three flags
//! that tell what the node has (`libkmod-index.c`).

use std::collections::BTreeMap;

const MAGIC: u32 = 0xB007_F457;
const VERSION: u32 = 0x0002_0001;
const HAS_PREFIX: u32 = 0x8000_0000;
const HAS_VALUES: u32 = 0x4000_0000;
const HAS_CHILDREN: u32 = 0x2000_0000;
const MAX_OFFSET: usize = 0x0fff_ffff;

/// Keys and their values, in the order of the values' priorities.
pub(super) type Keys = BTreeMap<String, Vec<String>>;

/// Writes an index file. Keys with other than ASCII characters are left out.
pub(super) fn write(keys: &Keys) -> Vec<u8> {
    let keys: Vec<(&[u8], &[String])> = keys
        .iter()
        .filter(|(key, _)| key.is_ascii())
        .map(|(key, values)| (key.as_bytes(), values.as_slice()))
        .collect();
    let mut out = [MAGIC, VERSION, 0].map(u32::to_be_bytes).concat();
    let root = node(&mut out, &keys, 0);
    out[8..12].copy_from_slice(&root.to_be_bytes());
    out
}

/// Writes the node of keys that are the same up to `from`, after the nodes below it. Returns its offset and flags.
fn node(out: &mut Vec<u8>, keys: &[(&[u8], &[String])], from: usize) -> u32 {
    let (first, last) = match keys {
        [(first, _), .., (last, _)] => (*first, *last),
        [(only, _)] => (*only, *only),
        [] => (&[][..], &[][..]),
    };
    // Keys are sorted, so all have the common prefix of the first and the last.
    let same = first.iter().zip(last).skip(from).take_while(|(a, b)| a == b).count();
    let at = from + same;
    let (own, below) = keys.split_at(keys.partition_point(|(key, _)| key.len() <= at));
    let children: Vec<(u8, u32)> = below
        .chunk_by(|(a, _), (b, _)| a.get(at) == b.get(at))
        .filter_map(|chunk| Some((*chunk.first()?.0.get(at)?, node(out, chunk, at + 1))))
        .collect();
    let offset = out.len().min(MAX_OFFSET) as u32;
    let mut flags = 0;
    if same > 0 {
        flags |= HAS_PREFIX;
        out.extend_from_slice(&first[from..at]);
        out.push(0);
    }
    if let [(low, _), ..] = children.as_slice()
        && let [.., (high, _)] = children.as_slice()
    {
        flags |= HAS_CHILDREN;
        out.extend_from_slice(&[*low, *high]);
        for byte in *low..=*high {
            let child = children.iter().find(|(key, _)| *key == byte).map_or(0, |(_, offset)| *offset);
            out.extend_from_slice(&child.to_be_bytes());
        }
    }
    let values: Vec<&String> = own.iter().flat_map(|(_, values)| values.iter()).collect();
    if !values.is_empty() {
        flags |= HAS_VALUES;
        out.extend_from_slice(&(values.len() as u32).to_be_bytes());
        for (priority, value) in values.into_iter().enumerate() {
            out.extend_from_slice(&(priority as u32).to_be_bytes());
            out.extend_from_slice(value.as_bytes());
            out.push(0);
        }
    }
    offset | flags
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an index back.
    fn read(file: &[u8], offset: u32, key: &mut Vec<u8>, found: &mut Keys) {
        let mut at = (offset & 0x0fff_ffff) as usize;
        let word = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().unwrap());
        let text = |at: usize| {
            let end = at + file[at..].iter().position(|byte| *byte == 0).unwrap();
            (String::from_utf8(file[at..end].to_vec()).unwrap(), end + 1)
        };
        let before = key.len();
        if offset & HAS_PREFIX != 0 {
            let (prefix, end) = text(at);
            key.extend_from_slice(prefix.as_bytes());
            at = end;
        }
        if offset & HAS_CHILDREN != 0 {
            let (low, high) = (file[at], file[at + 1]);
            at += 2;
            for byte in low..=high {
                let child = word(at);
                at += 4;
                if child != 0 {
                    key.push(byte);
                    read(file, child, key, found);
                    key.pop();
                }
            }
        }
        if offset & HAS_VALUES != 0 {
            let count = word(at);
            at += 4;
            for priority in 0..count {
                assert_eq!(word(at), priority);
                let (value, end) = text(at + 4);
                at = end;
                found.entry(String::from_utf8(key.clone()).unwrap()).or_default().push(value);
            }
        }
        key.truncate(before);
    }

    #[test]
    fn an_index_that_is_written_can_be_read() {
        let many: Vec<String> = (0..200).map(|n| format!("pci:v{n:08X}d*sv*")).collect();
        let few = ["ask", "ate", "on", "once", "one", ""].map(str::to_owned);
        for names in [&[][..], &few[..1], &few, &many] {
            let value = |name: &String| (name.clone(), vec![format!("{name}: x"), "second".to_owned()]);
            let keys: Keys = names.iter().map(value).collect();
            let file = write(&keys);
            assert_eq!(file[..8], [0xb0, 0x07, 0xf4, 0x57, 0, 2, 0, 1]);
            let mut found = Keys::new();
            read(&file, u32::from_be_bytes(file[8..12].try_into().unwrap()), &mut Vec::new(), &mut found);
            assert_eq!(found, keys);
        }
    }
}
