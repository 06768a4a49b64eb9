//! The name of a block: a namespace and 32 bytes within it.
//!
//! Both halves are digests, so keys are uniform: their first bytes say which shard owns a block. What
//! the client called the block is its *label*, which lives beside the block and not here.

use std::fmt;

/// A namespace, by the first half of BLAKE3 over its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespaceId(pub [u8; 16]);

impl NamespaceId {
    /// The id of the namespace called `name`.
    pub fn of(name: &str) -> NamespaceId {
        NamespaceId(dataplane::kv::namespace_id(name))
    }
}

/// A block within its namespace: a chained digest (native door), or BLAKE3 of a client's key (RESP).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(pub [u8; 32]);

impl Name {
    /// The name of what a client calls `label`.
    pub fn of(label: &[u8]) -> Name {
        Name(dataplane::kv::name_of_label(label))
    }
}

/// The whole name of a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Whose block it is.
    pub namespace: NamespaceId,
    /// Which block.
    pub name: Name,
}

impl Key {
    /// Joins the two.
    pub fn new(namespace: NamespaceId, name: Name) -> Key {
        Key { namespace, name }
    }

    /// 64 bits that stand for the key where a mistake costs nothing but efficiency.
    pub fn fingerprint(&self) -> u64 {
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        // A native client chooses its digests, so they are stirred: two keys in one shard's worst row
        // would need two equal products.
        (word(&self.name.0[..8]) ^ word(&self.namespace.0[..8]).rotate_left(32))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    /// Which of `shards` owns the block.
    pub fn shard(&self, shards: usize) -> usize {
        // High bits of the product, scaled: no division, no bias that matters.
        ((u128::from(self.fingerprint()) * shards.max(1) as u128) >> 64) as usize
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Display for NamespaceId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Name({self})")
    }
}

impl fmt::Debug for NamespaceId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "NamespaceId({self})")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Key({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_spread_evenly_over_any_number_of_shards() {
        let namespace = NamespaceId::of("model");
        for shards in 1..9 {
            let mut counts = vec![0u32; shards];
            for number in 0..8_000u32 {
                counts[Key::new(namespace, Name::of(&number.to_le_bytes())).shard(shards)] += 1;
            }
            let mean = 8_000 / shards as u32;
            assert!(counts.iter().all(|&count| count > mean * 3 / 4 && count < mean * 5 / 4));
        }
    }

    #[test]
    fn the_same_name_in_two_namespaces_is_two_keys() {
        let name = Name::of(b"k");
        assert_ne!(Key::new(NamespaceId::of("a"), name), Key::new(NamespaceId::of("b"), name));
    }
}
