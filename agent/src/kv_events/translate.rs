//! Engine events into what routers need: which prefixes, by our own digests, one data-parallel rank of
//! one engine holds, and where.
//!
//! A block's digest is made of its tokens and of the digest of the block before it; what follows a
//! block that was never told waits until it is told. A block counts where it can be *used*: its
//! effective level is the slower of the fastest level it is held at and the effective level of the
//! block before it. So, at each level, what is held there or faster is closed under prefixes, and a
//! block is not told while what it follows is not held. It is told again when that comes back.
//!
//! Pure and bounded. What cannot be indexed is counted by [`Reason`].

use dataplane::digest::{self, Digest, Unit};
use dataplane::feed::Level;

use super::event::{Attention, EngineHash, Event, Extra, Medium, Stored};

mod tree;

use tree::{Content, Id, NONE, ROOT, Tree};

/// Most blocks kept for one rank of an engine, at about 200 bytes each: 16 million tokens in blocks of 16.
pub const RANK_BLOCKS_MAX: usize = 1 << 20;
/// Most blocks that wait for what they follow, with their tokens.
pub const PENDING_BLOCKS_MAX: usize = 1 << 16;
/// Most tokens in a block: beyond this a size is a mistake.
pub const BLOCK_TOKENS_MAX: u32 = 1 << 16;

/// Blocks of up to so many tokens are hashed without a buffer of their own.
const TOKENS_INLINE: usize = 64;

/// Why blocks are not told to routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// They lie on another machine.
    Remote,
    /// The medium's name is not known.
    Medium,
    /// They are of a KV cache group whose layers do not attend to everything.
    Group,
    /// Their size is not what it was, or not what their tokens come to.
    BlockSize,
    /// What they follow is not known yet; they are told when it is.
    Parent,
    /// Their name stands for something else, or would follow itself.
    Conflict,
    /// A level was announced for blocks never told.
    Placeholder,
    /// Token ids do not name them: images, draft tokens, adapters without a name.
    Opaque,
    /// More blocks than [`RANK_BLOCKS_MAX`]: the oldest ends of prompts went.
    Overflow,
    /// An event of a type that is not known.
    UnknownEvent,
    /// An event or batch that cannot be read.
    Malformed,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 11] = [
        Reason::Remote,
        Reason::Medium,
        Reason::Group,
        Reason::BlockSize,
        Reason::Parent,
        Reason::Conflict,
        Reason::Placeholder,
        Reason::Opaque,
        Reason::Overflow,
        Reason::UnknownEvent,
        Reason::Malformed,
    ];

    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Remote => "remote",
            Reason::Medium => "medium",
            Reason::Group => "group",
            Reason::BlockSize => "block_size",
            Reason::Parent => "parent",
            Reason::Conflict => "conflict",
            Reason::Placeholder => "placeholder",
            Reason::Opaque => "opaque",
            Reason::Overflow => "overflow",
            Reason::UnknownEvent => "unknown_event",
            Reason::Malformed => "malformed",
        }
    }
}

/// How often each [`Reason`] came, in their order.
pub type Dropped = [u64; Reason::ALL.len()];

/// A prefix whose level is another than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// [`Digest::short`]
    pub digest: u128,
    /// As last told.
    pub old: Option<Level>,
    /// From now on.
    pub new: Option<Level>,
}

/// How an engine counts.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The name clients ask for: part of every digest.
    pub model: String,
    /// Blocks off the GPU are held as often as they were announced (vLLM's offload connectors); else
    /// an announcement repeated says nothing new.
    pub are_copies_counted: bool,
    /// [`RANK_BLOCKS_MAX`], but for tests.
    pub blocks_max: usize,
    /// [`PENDING_BLOCKS_MAX`], but for tests.
    pub pending_max: usize,
}

/// One data-parallel rank of one engine.
#[derive(Debug)]
pub struct Translator {
    rules: Rules,
    tree: Tree,
    /// By the first event that had any; 0 before.
    block_tokens: u32,
    /// The KV cache group that is said to attend to everything, if one is.
    group: Option<u32>,
    pending: usize,
    /// Blocks whose effective level may differ from the published one.
    changed: Vec<Id>,
    /// Blocks that may be needed no more.
    idle: Vec<Id>,
    changes: Vec<Change>,
    dropped: Dropped,
}

impl Translator {
    /// Nothing is held yet.
    pub fn new(rules: Rules) -> Self {
        Translator {
            rules,
            tree: Tree::new(),
            block_tokens: 0,
            group: None,
            pending: 0,
            changed: Vec::new(),
            idle: Vec::new(),
            changes: Vec::new(),
            dropped: Dropped::default(),
        }
    }

    /// Tokens in a block, by the engine's word; 0 before it said.
    pub fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    /// Blocks kept, told or not.
    pub fn blocks(&self) -> usize {
        self.tree.len()
    }

    /// Takes a batch; gives what is different after it. A digest may be named twice where two blocks
    /// of the engine share it.
    pub fn apply(&mut self, events: Vec<Event>) -> Vec<Change> {
        for event in events {
            match event {
                Event::Stored(stored) => self.store(stored),
                Event::Removed { hashes, medium, group } => self.remove(&hashes, medium, group),
                Event::Cleared => self.forget(),
            }
        }
        self.finish()
    }

    /// Forgets everything held, as if all had been removed.
    pub fn clear(&mut self) -> Vec<Change> {
        self.forget();
        self.finish()
    }

    /// What was dropped since this was last asked.
    pub fn take_dropped(&mut self) -> Dropped {
        std::mem::take(&mut self.dropped)
    }

    /// Calls `each` with every digest told, none before what it follows.
    pub fn visit(&self, mut each: impl FnMut(u128)) {
        let mut open = Vec::new();
        self.tree.push_children(ROOT, &mut open);
        while let Some(id) = open.pop() {
            let node = self.tree.node(id);
            if let (Some(_), Content::Named(digest)) = (node.published, &node.content) {
                each(digest.short());
                self.tree.push_children(id, &mut open);
            }
        }
    }

    fn drop_for(&mut self, reason: Reason, blocks: usize) {
        let index = Reason::ALL.iter().position(|each| *each == reason);
        if let Some(count) = index.and_then(|index| self.dropped.get_mut(index)) {
            *count += blocks as u64;
        }
    }

    fn store(&mut self, stored: Stored) {
        let blocks = stored.hashes.len();
        let level = match stored.medium {
            Medium::Local(level) => level,
            Medium::All => Level::Gpu,
            Medium::Remote => return self.drop_for(Reason::Remote, blocks),
            Medium::Unknown => return self.drop_for(Reason::Medium, blocks),
        };
        if !self.is_indexed(stored.group, stored.attention) {
            return self.drop_for(Reason::Group, blocks);
        }
        let is_opaque = stored.extra.first() == Some(&Extra::Opaque);
        if stored.tokens.is_empty() && stored.block_tokens == 0 && !is_opaque {
            return self.announce(&stored.hashes, level);
        }
        if !is_opaque && !self.has_right_size(&stored) {
            return self.drop_for(Reason::BlockSize, blocks);
        }
        if let Err(done) = self.store_chain(&stored, level) {
            self.drop_for(Reason::Conflict, blocks - done);
        }
        self.shrink();
    }

    /// A size is believed when the tokens come to it, and then it stays.
    fn has_right_size(&mut self, stored: &Stored) -> bool {
        let size = stored.block_tokens;
        let adds_up = stored.hashes.len().checked_mul(size as usize) == Some(stored.tokens.len());
        if size == 0 || size > BLOCK_TOKENS_MAX || !adds_up {
            return false;
        }
        if self.block_tokens == 0 {
            self.block_tokens = size;
        }
        self.block_tokens == size
    }

    /// Of several groups only one that attends to everything says what of a prompt can be used.
    fn is_indexed(&mut self, group: Option<u32>, attention: Attention) -> bool {
        match attention {
            Attention::Full => match group {
                None => true,
                Some(group) => *self.group.get_or_insert(group) == group,
            },
            Attention::Partial => false,
            Attention::Unsaid => self.is_own_group(group),
        }
    }

    fn is_own_group(&self, group: Option<u32>) -> bool {
        group.is_none_or(|group| group == self.group.unwrap_or(0))
    }

    /// An offload tier says only that it holds a copy.
    fn announce(&mut self, hashes: &[EngineHash], level: Level) {
        for hash in hashes {
            match self.tree.find(*hash) {
                Some(id) => self.hold(id, level),
                None => self.drop_for(Reason::Placeholder, 1),
            }
        }
    }

    /// On a conflict, says how many blocks were stored before it.
    fn store_chain(&mut self, stored: &Stored, level: Level) -> Result<(), usize> {
        let mut parent = match stored.parent {
            None => ROOT,
            Some(hash) => self.tree.find(hash).unwrap_or_else(|| {
                let id = self.tree.create(hash);
                self.idle.push(id);
                id
            }),
        };
        let salt = match stored.extra.first() {
            Some(Extra::Salt(salt)) => salt.as_str(),
            _ => "",
        };
        let seed = (parent == ROOT)
            .then(|| digest::seed(Unit::Tokens, &self.rules.model, &stored.adapter, salt));
        let size = self.block_tokens as usize;
        let mut is_opaque = false;
        for (index, hash) in stored.hashes.iter().enumerate() {
            is_opaque |= stored.extra.get(index) == Some(&Extra::Opaque);
            let tokens = stored.tokens.get(index * size..(index + 1) * size).unwrap_or_default();
            let tokens = (!is_opaque).then_some(tokens);
            let before = self.before(parent, seed.as_ref());
            let id = self.block(*hash, parent, before, tokens).map_err(|Conflict| index)?;
            self.hold(id, level);
            match self.tree.node(id).content {
                Content::Barred => self.drop_for(Reason::Opaque, 1),
                Content::Unknown | Content::Pending(_) => self.drop_for(Reason::Parent, 1),
                Content::Named(_) => {}
            }
            parent = id;
        }
        Ok(())
    }

    /// What a block behind `parent` begins with.
    fn before(&self, parent: Id, seed: Option<&Digest>) -> Before {
        match (parent, seed, &self.tree.node(parent).content) {
            (ROOT, Some(seed), _) | (_, _, Content::Named(seed)) => Before::Named(*seed),
            (_, _, Content::Barred) => Before::Barred,
            _ => Before::Unknown,
        }
    }

    /// The block of that hash behind `parent`; a conflict if it is known as something else. `tokens`
    /// are none where they name nothing.
    fn block(
        &mut self,
        hash: EngineHash,
        parent: Id,
        before: Before,
        tokens: Option<&[u32]>,
    ) -> Result<Id, Conflict> {
        let Some(id) = self.tree.find(hash) else {
            let id = self.tree.create(hash);
            self.tree.attach(id, parent);
            self.fill(id, before, tokens);
            return Ok(id);
        };
        let node = self.tree.node(id);
        if node.parent == NONE {
            if self.tree.is_at_or_before(id, parent) {
                return Err(Conflict);
            }
            self.tree.attach(id, parent);
            self.fill(id, before, tokens);
            return Ok(id);
        }
        if node.parent != parent {
            return Err(Conflict);
        }
        let is_same = match (&node.content, tokens, before) {
            (Content::Unknown, _, _) => {
                self.fill(id, before, tokens);
                return Ok(id);
            }
            (Content::Pending(known), Some(tokens), _) => **known == *tokens,
            (Content::Named(known), Some(tokens), Before::Named(before)) => {
                *known == chain(&before, tokens)
            }
            (Content::Barred, _, _) => true,
            _ => false,
        };
        if is_same { Ok(id) } else { Err(Conflict) }
    }

    /// Gives content to a block that had none, and to what waited for it.
    fn fill(&mut self, id: Id, before: Before, tokens: Option<&[u32]>) {
        let content = match (before, tokens) {
            (Before::Barred, _) | (_, None) => Content::Barred,
            (Before::Named(before), Some(tokens)) => Content::Named(chain(&before, tokens)),
            (Before::Unknown, Some(tokens)) if self.pending < self.rules.pending_max => {
                self.pending += 1;
                Content::Pending(tokens.into())
            }
            // It stays unknown until it is told again.
            (Before::Unknown, Some(_)) => Content::Unknown,
        };
        self.tree.node_mut(id).content = content;
        if self.tree.node(id).is_leaf() {
            return;
        }
        let mut open = Vec::new();
        self.tree.push_children(id, &mut open);
        while let Some(id) = open.pop() {
            let node = self.tree.node(id);
            let Content::Pending(tokens) = &node.content else { continue };
            let content = match &self.tree.node(node.parent).content {
                Content::Named(before) => Content::Named(chain(before, tokens)),
                Content::Barred => Content::Barred,
                Content::Unknown | Content::Pending(_) => continue,
            };
            self.pending -= 1;
            self.tree.node_mut(id).content = content;
            self.tree.push_children(id, &mut open);
        }
    }

    fn hold(&mut self, id: Id, level: Level) {
        let is_counted = self.rules.are_copies_counted && level != Level::Gpu;
        let held = &mut self.tree.node_mut(id).held[level as usize];
        *held = if is_counted { held.saturating_add(1) } else { 1 };
        self.refresh(id);
    }

    fn remove(&mut self, hashes: &[EngineHash], medium: Medium, group: Option<u32>) {
        if !self.is_own_group(group) {
            return;
        }
        for hash in hashes {
            let Some(id) = self.tree.find(*hash) else { continue };
            let node = self.tree.node_mut(id);
            match medium {
                Medium::Local(level) => {
                    let held = &mut node.held[level as usize];
                    *held = held.saturating_sub(1);
                }
                Medium::All => node.held = [0; 3],
                Medium::Remote | Medium::Unknown => continue,
            }
            if !node.is_held() {
                self.idle.push(id);
            }
            self.refresh(id);
        }
    }

    /// Brings the effective level of a block, and of what follows it, up to date.
    fn refresh(&mut self, id: Id) {
        // Most blocks have nothing behind them: no list is made for those.
        let (mut next, mut open) = (Some(id), Vec::new());
        while let Some(id) = next.take().or_else(|| open.pop()) {
            let node = self.tree.node(id);
            let before = match node.parent {
                NONE => None,
                parent => self.tree.node(parent).effective,
            };
            let effective = match (&node.content, node.own_level(), before) {
                (Content::Named(_), Some(own), Some(before)) => Some(own.max(before)),
                _ => None,
            };
            let node = self.tree.node_mut(id);
            if node.effective == effective {
                continue;
            }
            node.effective = effective;
            if !std::mem::replace(&mut node.is_changed, true) {
                self.changed.push(id);
            }
            self.tree.push_children(id, &mut open);
        }
    }

    /// Lets the oldest ends of prompts go until the rest fits.
    fn shrink(&mut self) {
        while self.tree.len() > self.rules.blocks_max {
            let Some(id) = self.tree.oldest_leaf() else { return };
            if self.tree.node(id).is_held() {
                self.drop_for(Reason::Overflow, 1);
            }
            let parent = self.release(id);
            self.idle.push(parent);
        }
    }

    fn forget(&mut self) {
        let told = self.tree.live().filter_map(|node| match &node.content {
            Content::Named(digest) if node.published.is_some() => {
                Some(Change { digest: digest.short(), old: node.published, new: None })
            }
            _ => None,
        });
        self.changes.extend(told);
        self.tree = Tree::new();
        self.pending = 0;
        self.changed.clear();
        self.idle.clear();
    }

    /// Takes a leaf out of the tree; gives what it followed.
    fn release(&mut self, id: Id) -> Id {
        let node = self.tree.node(id);
        match &node.content {
            Content::Named(digest) if node.published.is_some() => {
                let (digest, old) = (digest.short(), node.published);
                self.changes.push(Change { digest, old, new: None });
            }
            Content::Pending(_) => self.pending -= 1,
            _ => {}
        }
        self.tree.release(id)
    }

    /// The end of a batch: what changed is told, what nothing needs is let go.
    fn finish(&mut self) -> Vec<Change> {
        for id in std::mem::take(&mut self.changed) {
            if !self.tree.is_live(id) {
                continue;
            }
            let node = self.tree.node_mut(id);
            node.is_changed = false;
            let (old, new) = (node.published, node.effective);
            if let Content::Named(digest) = &node.content
                && old != new
            {
                self.changes.push(Change { digest: digest.short(), old, new });
                node.published = new;
            }
        }
        for id in std::mem::take(&mut self.idle) {
            let mut id = id;
            while id != NONE && self.tree.is_idle(id) {
                id = self.release(id);
            }
        }
        std::mem::take(&mut self.changes)
    }
}

/// What stands before a block.
#[derive(Clone, Copy)]
enum Before {
    Named(Digest),
    Barred,
    Unknown,
}

/// A name that stands for something else already.
struct Conflict;

fn chain(before: &Digest, tokens: &[u32]) -> Digest {
    let mut inline = [0u8; 4 * TOKENS_INLINE];
    if tokens.len() <= TOKENS_INLINE {
        for (four, token) in inline.chunks_exact_mut(4).zip(tokens) {
            four.copy_from_slice(&token.to_le_bytes());
        }
        return digest::chain(before, &inline[..4 * tokens.len()]);
    }
    let mut bytes = Vec::with_capacity(tokens.len() * 4);
    bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    digest::chain(before, &bytes)
}

#[cfg(test)]
mod tests;
