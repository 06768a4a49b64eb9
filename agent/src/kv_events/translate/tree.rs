//! The blocks of one engine as a tree: who follows whom, found by the engine's hashes.
//!
//! Only structure: links, free places, and the leaves in the order they became leaves. The root is the
//! beginning of every prompt. A block that was only heard of as a parent hangs nowhere yet.

use std::collections::HashMap;

use dataplane::digest::Digest;
use dataplane::feed::Level;
use foldhash::fast::RandomState;

use crate::kv_events::event::EngineHash;

/// Index of a block in the tree.
pub(super) type Id = u32;
/// The beginning of every prompt; held everywhere.
pub(super) const ROOT: Id = 0;
/// No block.
pub(super) const NONE: Id = Id::MAX;

/// What a block is known to contain.
#[derive(Debug)]
pub(super) enum Content {
    /// Nothing is known.
    Unknown,
    /// These tokens, behind something that is not known yet.
    Pending(Box<[u32]>),
    /// A prefix of this name.
    Named(Digest),
    /// Something that token ids do not name.
    Barred,
}

#[derive(Debug)]
pub(super) struct Node {
    pub hash: EngineHash,
    pub content: Content,
    pub parent: Id,
    first_child: Id,
    next: Id,
    previous: Id,
    younger_leaf: Id,
    older_leaf: Id,
    /// How often it is held at each level.
    pub held: [u16; 3],
    /// The slower of where it is and where what it follows is; none if it cannot be used.
    pub effective: Option<Level>,
    /// As last told.
    pub published: Option<Level>,
    /// Stands in the list of changes.
    pub is_changed: bool,
    is_live: bool,
}

impl Node {
    fn new(hash: EngineHash) -> Self {
        Node {
            hash,
            content: Content::Unknown,
            parent: NONE,
            first_child: NONE,
            next: NONE,
            previous: NONE,
            younger_leaf: NONE,
            older_leaf: NONE,
            held: [0; 3],
            effective: None,
            published: None,
            is_changed: false,
            is_live: true,
        }
    }

    pub fn is_held(&self) -> bool {
        self.held != [0; 3]
    }

    pub fn is_leaf(&self) -> bool {
        self.first_child == NONE
    }

    /// The fastest level it is held at.
    pub fn own_level(&self) -> Option<Level> {
        Level::ALL.into_iter().zip(self.held).find(|(_, held)| *held > 0).map(|(level, _)| level)
    }
}

#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    free: Vec<Id>,
    by_hash: HashMap<EngineHash, Id, RandomState>,
    oldest_leaf: Id,
    youngest_leaf: Id,
}

impl Tree {
    pub fn new() -> Self {
        let mut root = Node::new(EngineHash(0));
        root.effective = Some(Level::Gpu);
        Tree {
            nodes: vec![root],
            free: Vec::new(),
            by_hash: HashMap::default(),
            oldest_leaf: NONE,
            youngest_leaf: NONE,
        }
    }

    /// Blocks heard of, held or not.
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    pub fn find(&self, hash: EngineHash) -> Option<Id> {
        self.by_hash.get(&hash).copied()
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    pub fn node_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    /// Whether `id`, which may be an old one, is a block that nothing needs.
    pub fn is_idle(&self, id: Id) -> bool {
        let node = self.node(id);
        id != ROOT && node.is_live && node.is_leaf() && !node.is_held()
    }

    /// Whether `id`, which may be an old one, is there.
    pub fn is_live(&self, id: Id) -> bool {
        self.node(id).is_live
    }

    /// A new block that hangs nowhere yet; there must be none of that hash.
    pub fn create(&mut self, hash: EngineHash) -> Id {
        let node = Node::new(hash);
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as Id
            }
        };
        self.by_hash.insert(hash, id);
        self.push_leaf(id);
        id
    }

    /// Hangs a block that hangs nowhere below `parent`.
    pub fn attach(&mut self, id: Id, parent: Id) {
        let first = std::mem::replace(&mut self.node_mut(parent).first_child, id);
        if first == NONE {
            self.unlink_leaf(parent);
        } else {
            self.node_mut(first).previous = id;
        }
        let node = self.node_mut(id);
        node.parent = parent;
        node.next = first;
        node.previous = NONE;
    }

    /// Whether `id` is `from` or before it.
    pub fn is_at_or_before(&self, id: Id, from: Id) -> bool {
        let mut at = from;
        while at != NONE && at != ROOT {
            if at == id {
                return true;
            }
            at = self.node(at).parent;
        }
        at == id
    }

    /// Takes a leaf out. Gives what it followed.
    pub fn release(&mut self, id: Id) -> Id {
        self.unlink_leaf(id);
        let node = self.node_mut(id);
        node.is_live = false;
        node.content = Content::Unknown;
        let (hash, parent, next, previous) = (node.hash, node.parent, node.next, node.previous);
        self.by_hash.remove(&hash);
        self.free.push(id);
        if next != NONE {
            self.node_mut(next).previous = previous;
        }
        if previous != NONE {
            self.node_mut(previous).next = next;
        } else if parent != NONE {
            self.node_mut(parent).first_child = next;
            if next == NONE {
                self.push_leaf(parent);
            }
        }
        parent
    }

    /// The block that has been a leaf for longest.
    pub fn oldest_leaf(&self) -> Option<Id> {
        (self.oldest_leaf != NONE).then_some(self.oldest_leaf)
    }

    /// What follows `id`, appended to `into`.
    pub fn push_children(&self, id: Id, into: &mut Vec<Id>) {
        let mut child = self.node(id).first_child;
        while child != NONE {
            into.push(child);
            child = self.node(child).next;
        }
    }

    /// All blocks there are.
    pub fn live(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().skip(1).filter(|node| node.is_live)
    }

    fn push_leaf(&mut self, id: Id) {
        if id == ROOT {
            return;
        }
        let youngest = std::mem::replace(&mut self.youngest_leaf, id);
        let node = self.node_mut(id);
        node.older_leaf = youngest;
        node.younger_leaf = NONE;
        if youngest == NONE {
            self.oldest_leaf = id;
        } else {
            self.node_mut(youngest).younger_leaf = id;
        }
    }

    fn unlink_leaf(&mut self, id: Id) {
        if id == ROOT {
            return;
        }
        let node = self.node(id);
        let (older, younger) = (node.older_leaf, node.younger_leaf);
        match older {
            NONE => self.oldest_leaf = younger,
            _ => self.node_mut(older).younger_leaf = younger,
        }
        match younger {
            NONE => self.youngest_leaf = older,
            _ => self.node_mut(younger).older_leaf = older,
        }
    }
}
