//! KV events in one form, whoever's they were. What an engine calls its blocks stays as it is; our own
//! names come later ([`super::translate`]).

use dataplane::feed::Level;

/// An engine's own name of a block, within one worker.
///
/// Integers, signed or not, are their 64 bits; longer digests are their last 16 bytes, so the integer
/// that vLLM makes of a digest and the digest itself agree in their last eight. Two blocks of one
/// worker that share a name are told apart by their tokens ([`super::translate`] drops the second).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineHash(pub u128);

impl EngineHash {
    /// The last 16 bytes of a digest.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let mut last = [0; 16];
        let tail = &bytes[bytes.len().saturating_sub(16)..];
        last[16 - tail.len()..].copy_from_slice(tail);
        EngineHash(u128::from_be_bytes(last))
    }
}

/// Where an engine says that blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// On this node.
    Local(Level),
    /// On every level at once: TensorRT-LLM does not say which when it removes.
    All,
    /// On another machine. Not indexed: whoever fetches from there does not need this worker for it.
    Remote,
    /// A word that is not known. Not taken for the GPU, which would promise too much.
    Unknown,
}

/// What stands for the content of a block beside its tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Extra {
    /// Nothing.
    #[default]
    None,
    /// The request's cache salt; only the first block of a prompt has it.
    Salt(String),
    /// Images, embedded prompts and the like: token ids do not name this block or any behind it.
    Opaque,
}

/// One thing that happened to blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Blocks in a row are held.
    Stored(Stored),
    /// Blocks are not held any more.
    Removed {
        /// Which.
        hashes: Vec<EngineHash>,
        /// Where they were.
        medium: Medium,
        /// Of which KV cache group.
        group: Option<u32>,
    },
    /// No blocks are held any more.
    Cleared,
}

/// Blocks in a row that are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Their names. At least one.
    pub hashes: Vec<EngineHash>,
    /// The block before the first; none at the start of a prompt.
    pub parent: Option<EngineHash>,
    /// The tokens of all of them; none where only a level is announced for blocks told before.
    pub tokens: Vec<u32>,
    /// Tokens in each; 0 where only a level is announced.
    pub block_tokens: u32,
    /// Where they are.
    pub medium: Medium,
    /// LoRA name; empty for none.
    pub adapter: String,
    /// Of the first blocks; the rest have none.
    pub extra: Vec<Extra>,
    /// KV cache group.
    pub group: Option<u32>,
    /// What the group's layers attend to, where the engine says.
    pub attention: Attention,
}

/// What the layers of a KV cache group attend to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attention {
    /// It does not say.
    #[default]
    Unsaid,
    /// All tokens before.
    Full,
    /// A window, or a state instead of tokens.
    Partial,
}

/// The events of one message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Data-parallel rank, where it says.
    pub rank: Option<u32>,
    /// What happened, in order.
    pub events: Vec<Event>,
    /// Events of a type that is not known: skipped.
    pub unknown: u32,
    /// Events that could not be read: what they said is lost.
    pub malformed: u32,
}

/// What a word for a medium means. `None`: an engine too old to say has only a GPU.
pub fn medium(word: Option<&str>) -> Medium {
    let Some(word) = word else { return Medium::Local(Level::Gpu) };
    match word.to_ascii_uppercase().as_str() {
        "GPU" | "DEVICE" => Medium::Local(Level::Gpu),
        "CPU" | "CPU_PINNED" | "CPU_TIER1" | "CPU_TIER2" | "HOST" => Medium::Local(Level::Host),
        "DISK" | "NVME" | "STORAGE" => Medium::Local(Level::Disk),
        "EXTERNAL" | "NETWORK" | "REMOTE" | "SHARED" => Medium::Remote,
        _ => Medium::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_are_mapped_defensively() {
        for (word, meant) in [
            (None, Medium::Local(Level::Gpu)),
            (Some("GPU"), Medium::Local(Level::Gpu)),
            (Some("gpu"), Medium::Local(Level::Gpu)),
            (Some("CPU"), Medium::Local(Level::Host)),
            (Some("CPU_PINNED"), Medium::Local(Level::Host)),
            (Some("STORAGE"), Medium::Local(Level::Disk)),
            (Some("DISK"), Medium::Local(Level::Disk)),
            (Some("EXTERNAL"), Medium::Remote),
            (Some("SHARED"), Medium::Remote),
            (Some("CXL"), Medium::Unknown),
            (Some(""), Medium::Unknown),
        ] {
            assert_eq!(medium(word), meant, "{word:?}");
        }
    }

    #[test]
    fn a_digest_and_its_integer_share_their_end() {
        let digest: Vec<u8> = (0..32).collect();
        let EngineHash(hash) = EngineHash::of_bytes(&digest);
        assert_eq!(hash as u64, u64::from_be_bytes(digest[24..].try_into().unwrap()));
        assert_eq!(EngineHash::of_bytes(&[1, 2]), EngineHash(0x0102));
        assert_eq!(EngineHash::of_bytes(&[]), EngineHash(0));
    }
}
