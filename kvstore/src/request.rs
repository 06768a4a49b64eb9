//! What a thread asks of another's shard, and how a shard goes about it.
//!
//! Each request carries the desk its answer is put on. Those that take one step are served at once;
//! those that wait for a tier become tasks.

use std::rc::Rc;
use std::time::Instant;

use crate::arena::Slot;
use crate::block::Lease;
use crate::config::Limits;
use crate::disk::Event;
use crate::executor::spawn;
use crate::key::{Key, NamespaceId};
use crate::mesh::Reply;
use crate::shard::{Reach, Shard};
use crate::store::{About, Claim, Listed, StoreError, Tier};

/// A page of a listing: blocks, and the id to go on at.
pub type Page = (Vec<Listed>, Option<u32>);

/// One request.
#[derive(Debug)]
pub enum Request {
    /// Where these lie.
    Lookup {
        /// All of the shard asked.
        keys: Vec<Key>,
        /// One answer a key, in order.
        reply: Reply<Vec<Option<Tier>>>,
    },
    /// A block's bytes.
    Get {
        /// Which.
        key: Key,
        /// How far to look for it.
        reach: Reach,
        /// When the answer is of no use any more.
        deadline: Option<Instant>,
        /// The lease, if there is such a block.
        reply: Reply<Result<Option<Lease>, StoreError>>,
    },
    /// Memory for a block.
    Reserve {
        /// Which.
        key: Key,
        /// Its bytes.
        len: usize,
        /// Whose place it may take.
        claim: Claim,
        /// The memory.
        reply: Reply<Result<Slot, StoreError>>,
    },
    /// Whether a block that a peer offers would find memory.
    Welcome {
        /// Which.
        key: Key,
        /// Its bytes.
        len: usize,
        /// Whether it would.
        reply: Reply<bool>,
    },
    /// A block that is written.
    Commit {
        /// Its memory, of the shard asked.
        slot: Slot,
        /// What it is.
        about: About,
        /// Whether it is stored.
        reply: Reply<Result<(), StoreError>>,
    },
    /// Take a block out.
    Remove {
        /// Which.
        key: Key,
        /// Whether it was there.
        reply: Reply<Result<bool, StoreError>>,
    },
    /// Compare a block with its hash.
    Verify {
        /// Which.
        key: Key,
        /// Whether it is right, if it is there.
        reply: Reply<Result<Option<bool>, StoreError>>,
    },
    /// Keep a block in RAM, or let it go.
    Pin {
        /// Which.
        key: Key,
        /// Keep it.
        is_pinned: bool,
        /// Whether it is there.
        reply: Reply<bool>,
    },
    /// A child of `parent` comes.
    Adopt {
        /// The block it follows.
        parent: Key,
        /// Whether that is there.
        reply: Reply<bool>,
    },
    /// The counts of a block's children change.
    Relate {
        /// The block they follow.
        parent: Key,
        /// By how many in all.
        children: i32,
        /// By how many in RAM.
        in_ram: i32,
    },
    /// Let a block go: another shard has none without children, and the last child of one may be here.
    Shed {
        /// Only of this namespace.
        namespace: Option<NamespaceId>,
        /// Whether one went.
        reply: Reply<bool>,
    },
    /// The disk gave up or moved a block.
    Disk(Event),
    /// Blocks, piece by piece.
    List {
        /// Only of this namespace.
        namespace: Option<NamespaceId>,
        /// The id to begin at.
        cursor: u32,
        /// How many at most.
        max: usize,
        /// Some of them.
        reply: Reply<Page>,
    },
    /// Write down what the shard holds.
    Measure {
        /// That it is done.
        reply: Reply<()>,
    },
    /// Other limits from here on.
    Limits {
        /// All of them.
        limits: Limits,
    },
    /// Take no more blocks.
    Drain {
        /// That it is so.
        reply: Reply<()>,
    },
}

/// Serves one request, at once or as a task of its own.
pub fn serve(shard: &Rc<Shard>, request: Request) {
    match request {
        Request::Lookup { keys, reply } => {
            let mut tiers = Vec::with_capacity(keys.len());
            shard.lookup(&keys, &mut tiers);
            reply.send(tiers);
        }
        Request::Get { key, reach, deadline, reply } => match shard.get_from_ram(key) {
            Some(lease) => reply.send(Ok(Some(lease))),
            None => {
                later(shard, async move |shard| reply.send(shard.get(key, reach, deadline).await))
            }
        },
        Request::Reserve { key, len, claim: Claim::Asked, reply } => {
            later(shard, async move |shard| reply.send(shard.reserve(key, len).await));
        }
        Request::Reserve { key, len, claim: Claim::Offered, reply } => {
            reply.send(shard.reserve_offered(key, len));
        }
        Request::Welcome { key, len, reply } => reply.send(shard.welcomes(key, len)),
        Request::Commit { slot, about, reply } => later(shard, async move |shard| {
            reply.send(shard.commit(slot, about).await);
        }),
        Request::Remove { key, reply } => {
            later(shard, async move |shard| reply.send(shard.remove(key).await));
        }
        Request::Verify { key, reply } => {
            later(shard, async move |shard| reply.send(shard.verify(key).await));
        }
        Request::Pin { key, is_pinned, reply } => reply.send(shard.pin(key, is_pinned)),
        Request::Adopt { parent, reply } => reply.send(shard.adopt(parent)),
        Request::Relate { parent, children, in_ram } => shard.relate(parent, children, in_ram),
        Request::Shed { namespace, reply } => reply.send(shard.shed(namespace)),
        Request::Disk(event) => shard.disk_event(event),
        Request::List { namespace, cursor, max, reply } => {
            reply.send(shard.list(namespace, cursor, max));
        }
        Request::Measure { reply } => {
            shard.measure();
            reply.send(());
        }
        Request::Limits { limits } => shard.set_limits(limits),
        Request::Drain { reply } => {
            shard.drain();
            reply.send(());
        }
    }
}

/// Serves on a task of its own. There are never more than requests that somebody waits for.
fn later<F: Future<Output = ()> + 'static>(
    shard: &Rc<Shard>,
    work: impl FnOnce(Rc<Shard>) -> F + 'static,
) {
    spawn(work(shard.clone()));
}
