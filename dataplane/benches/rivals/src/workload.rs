//! The workload: conversations on workers, as descriptions that each rival turns into its own events.
//!
//! 64 system prompts of 2,048 tokens begin all conversations. A conversation is as long as the prompts
//! asked for and lies on one worker, every fourth on two. A block's content is a number; hashes are
//! drawn from it, so no rival's hashing is part of any time.

/// System prompts.
const SYSTEMS: u64 = 64;
/// Their length in blocks of 16 tokens.
pub const SYSTEM_BLOCKS: u32 = 128;

/// Numbers without end from a seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

pub fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A run of a conversation's blocks was stored at a worker, or removed.
#[derive(Clone, Copy)]
pub struct Change {
    pub worker: u32,
    pub conversation: u32,
    pub from: u32,
    pub to: u32,
    pub is_store: bool,
}

pub struct Workload {
    pub workers: u32,
    pub conversation_blocks: u32,
    /// The workers of each conversation.
    places: Vec<(u32, Option<u32>)>,
    pub held: u64,
}

impl Workload {
    /// Conversations until `held` blocks are held, one held by two workers counted twice.
    pub fn new(held: u64, conversation_blocks: u32, workers: u32) -> Self {
        let mut random = Random(7);
        let (mut places, mut sum) = (Vec::new(), 0);
        let mut systems = std::collections::HashSet::new();
        while sum < held {
            let at = random.below(u64::from(workers)) as u32;
            let second = (random.below(4) == 0).then(|| (at + 1) % workers);
            for worker in [Some(at), second].into_iter().flatten() {
                let is_new = systems.insert((places.len() as u64 % SYSTEMS, worker));
                sum += u64::from(conversation_blocks - SYSTEM_BLOCKS);
                sum += if is_new { u64::from(SYSTEM_BLOCKS) } else { 0 };
            }
            places.push((at, second));
        }
        Workload { workers, conversation_blocks, places, held: sum }
    }

    /// What names the content of a prefix that ends at `position`.
    pub fn prefix(&self, conversation: u32, position: u32) -> u64 {
        let system = u64::from(conversation) % SYSTEMS;
        let of = if position < SYSTEM_BLOCKS { system } else { SYSTEMS + u64::from(conversation) };
        mix(of << 32 | u64::from(position))
    }

    /// All stores that fill the index, in runs of at most 256 blocks.
    pub fn fill(&self) -> impl Iterator<Item = Change> + '_ {
        let all = self.places.iter().zip(0..);
        all.flat_map(move |(&(first, second), conversation)| {
            [Some(first), second].into_iter().flatten().flat_map(move |worker| {
                let end = self.conversation_blocks;
                (0..end).step_by(256).map(move |from| Change {
                    worker,
                    conversation,
                    from,
                    to: (from + 256).min(end),
                    is_store: true,
                })
            })
        })
    }

    /// One block at a time comes and goes at the end of some conversation, as while engines decode.
    pub fn churn(&self) -> impl Iterator<Item = Change> + '_ {
        let mut random = Random(99);
        let mut is_longer = vec![false; self.places.len()];
        std::iter::repeat_with(move || {
            let conversation = random.below(self.places.len() as u64) as u32;
            let is_store = !is_longer[conversation as usize];
            is_longer[conversation as usize] = is_store;
            let end = self.conversation_blocks;
            let worker = self.places[conversation as usize].0;
            Change { worker, conversation, from: end, to: end + 1, is_store }
        })
    }

    /// A query's prefixes, and how many of them somebody holds: none in half of the queries, else as
    /// many as chance says.
    pub fn query(&self, random: &mut Random, prefixes: &mut Vec<u64>) -> u32 {
        let conversation = random.below(self.places.len() as u64) as u32;
        let depth = if random.below(2) == 0 {
            0
        } else {
            1 + random.below(u64::from(self.conversation_blocks)) as u32
        };
        prefixes.clear();
        prefixes.extend((0..depth).map(|at| self.prefix(conversation, at)));
        prefixes.extend((depth..self.conversation_blocks).map(|_| random.next()));
        depth
    }
}
