//! The order against a model that keeps a list of blocks with their parents.
use proptest::prelude::*;

use super::*;

const ONE: NamespaceId = NamespaceId([1; 16]);
const OTHER: NamespaceId = NamespaceId([2; 16]);

#[derive(Clone, Debug)]
enum Step {
    /// A child of the block at this place of the list, or a root.
    Insert {
        below: Option<usize>,
        other: bool,
        fingerprint: u64,
        bytes: u64,
    },
    Touch(usize),
    /// The block and what hangs below it go for another reason.
    Remove(usize),
    Refuse(usize, bool),
    Again(usize, u64),
    Victim(Option<NamespaceId>),
    Thorough(Option<NamespaceId>),
    Wrong(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let at = any::<usize>;
    let of = prop::sample::select(vec![None, None, Some(ONE), Some(OTHER)]);
    prop_oneof![
        8 => (prop::option::weighted(0.8, at()), any::<bool>(), 0_u64..60, 0_u64..9).prop_map(
            |(below, other, fingerprint, bytes)| Step::Insert { below, other, fingerprint, bytes }
        ),
        5 => at().prop_map(Step::Touch),
        1 => at().prop_map(Step::Remove),
        3 => (at(), any::<bool>()).prop_map(|(at, refused)| Step::Refuse(at, refused)),
        1 => (at(), 0_u64..9).prop_map(|(at, bytes)| Step::Again(at, bytes)),
        6 => of.clone().prop_map(Step::Victim),
        2 => of.prop_map(Step::Thorough),
        1 => (0_u32..300).prop_map(Step::Wrong),
    ]
}

struct Block {
    id: u32,
    of: NamespaceId,
    parent: Option<u32>,
    bytes: u64,
    is_refused: bool,
    /// The step of its last use.
    used_at: usize,
}

/// The owner of the blocks, as a shard is: it parks and unparks.
struct Owner {
    eviction: Eviction,
    blocks: Vec<Block>,
    ids: std::ops::RangeFrom<u32>,
    free_ids: Vec<u32>,
    now: usize,
}

impl Owner {
    fn new(capacity_bytes: u64) -> Owner {
        let eviction = Eviction::new(capacity_bytes);
        Owner { eviction, blocks: Vec::new(), ids: 0.., free_ids: Vec::new(), now: 0 }
    }

    fn children(&self, id: u32) -> usize {
        self.blocks.iter().filter(|block| block.parent == Some(id)).count()
    }

    fn insert(
        &mut self,
        of: NamespaceId,
        parent: Option<u32>,
        fingerprint: u64,
        bytes: u64,
    ) -> u32 {
        let id = self.free_ids.pop().unwrap_or_else(|| self.ids.next().unwrap());
        self.eviction.insert(id, of, fingerprint, bytes);
        if let Some(parent) = parent.filter(|&parent| self.children(parent) == 0) {
            self.eviction.park(parent);
        }
        let bytes = bytes.max(1);
        self.blocks.push(Block { id, of, parent, bytes, is_refused: false, used_at: self.now });
        id
    }

    /// A block is gone from the order; what the shard does then.
    fn gone(&mut self, id: u32) {
        let at = self.blocks.iter().position(|block| block.id == id).expect("each comes out once");
        let block = self.blocks.remove(at);
        self.free_ids.push(id);
        if let Some(parent) = block.parent.filter(|&parent| self.children(parent) == 0) {
            self.eviction.unpark(parent);
        }
    }

    fn remove(&mut self, id: u32) {
        let children = self.blocks.iter().filter(|block| block.parent == Some(id));
        for child in children.map(|block| block.id).collect::<Vec<_>>() {
            self.remove(child);
        }
        self.eviction.remove(id);
        self.gone(id);
    }

    fn candidates(&self, of: Option<NamespaceId>) -> Vec<u32> {
        let asked = self.blocks.iter().filter(|block| of.is_none_or(|of| block.of == of));
        let may_go = |block: &&Block| !block.is_refused && self.children(block.id) == 0;
        asked.filter(may_go).map(|block| block.id).collect()
    }

    fn victim(&mut self, of: Option<NamespaceId>, is_thorough: bool) -> Option<u32> {
        let candidates = self.candidates(of);
        let refused: Vec<u32> =
            self.blocks.iter().filter(|block| block.is_refused).map(|block| block.id).collect();
        let may_go = |id| !refused.contains(&id);
        let victim = match is_thorough {
            true => self.eviction.victim_thorough(of, may_go),
            false => self.eviction.victim(of, may_go),
        };
        match victim {
            Some(id) => {
                assert!(candidates.contains(&id), "{id} has children or was refused");
                self.gone(id);
            }
            None if is_thorough => assert_eq!(candidates, [0; 0], "some might have gone"),
            None => assert!(candidates.is_empty() || self.blocks.len() > REFUSED_STEPS_MAX),
        }
        victim
    }

    fn step(&mut self, step: Step) {
        self.now += 1;
        let len = self.blocks.len();
        match step {
            Step::Insert { below, other, fingerprint, bytes } => {
                let parent = below.filter(|_| len > 0).map(|at| &self.blocks[at % len]);
                let of = parent.map_or(if other { OTHER } else { ONE }, |parent| parent.of);
                let parent = parent.map(|parent| parent.id);
                self.insert(of, parent, fingerprint, bytes);
            }
            Step::Victim(of) => _ = self.victim(of, false),
            Step::Thorough(of) => _ = self.victim(of, true),
            Step::Wrong(id) => {
                if !self.blocks.iter().any(|block| block.id == id) {
                    self.eviction.touch(id);
                    self.eviction.park(id);
                    self.eviction.unpark(id);
                    self.eviction.remove(id);
                }
            }
            _ if len == 0 => {}
            Step::Touch(at) => self.eviction.touch(self.blocks[at % len].id),
            Step::Remove(at) => self.remove(self.blocks[at % len].id),
            Step::Refuse(at, refused) => self.blocks[at % len].is_refused = refused,
            Step::Again(at, bytes) => {
                let block = &mut self.blocks[at % len];
                block.bytes = bytes.max(1);
                self.eviction.insert(block.id, block.of, 7, bytes);
            }
        }
        assert_eq!(self.eviction.len(), self.blocks.len());
        let parents = self.blocks.iter().filter(|block| self.children(block.id) > 0);
        assert_eq!(self.eviction.parked(), parents.count());
        assert_eq!(self.eviction.is_empty(), self.blocks.is_empty());
        let bytes: u64 = self.blocks.iter().map(|block| block.bytes).sum();
        assert_eq!(self.eviction.bytes(), bytes);
        assert!(self.eviction.ghost.bytes().iter().sum::<u64>() <= self.eviction.capacity_bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn parents_outlive_children_in_any_history(
        capacity in 0_u64..120, steps in prop::collection::vec(step(), 1..250)
    ) {
        let mut owner = Owner::new(capacity);
        steps.into_iter().for_each(|step| owner.step(step));
        owner.blocks.iter_mut().for_each(|block| block.is_refused = false);
        while !owner.blocks.is_empty() {
            prop_assert!(owner.victim(None, true).is_some(), "all go when none is refused");
        }
        prop_assert_eq!(owner.victim(None, true), None);
        let numbers = [ONE, OTHER].map(|of| owner.eviction.groups.number(of));
        prop_assert_eq!(numbers, [None, None]);
    }

    #[test]
    fn within_a_class_the_longest_unused_goes_first(
        steps in prop::collection::vec((0_u8..4, any::<usize>()), 1..250)
    ) {
        let mut owner = Owner::new(40);
        for (what, at) in steps {
            owner.now += 1;
            let (now, len) = (owner.now, owner.blocks.len());
            match what {
                0 if len > 0 => {
                    owner.blocks[at % len].used_at = now;
                    owner.eviction.touch(owner.blocks[at % len].id);
                }
                3 if len > 0 => {
                    let class = |owner: &Owner, id: u32| owner.eviction.entries[id as usize].class;
                    let ages = |owner: &Owner| -> Vec<(u8, usize, u32)> {
                        let blocks = owner.blocks.iter();
                        blocks.map(|block| (class(owner, block.id), block.used_at, block.id)).collect()
                    };
                    let before = ages(&owner);
                    let victim = owner.victim(None, false).unwrap();
                    let gone = before.iter().find(|&&(.., id)| id == victim).unwrap();
                    let older = before.iter().find(|other| other.0 == gone.0 && other.1 < gone.1);
                    prop_assert_eq!(older, None);
                }
                _ => { owner.insert(ONE, None, at as u64 % 200, 1); }
            }
        }
    }
}

/// Inserts a chain of new blocks of one byte, and evicts down to `capacity`.
fn chain(owner: &mut Owner, fingerprints: Range<u64>, capacity: u64) -> Vec<u32> {
    let mut ids: Vec<u32> = Vec::new();
    for fingerprint in fingerprints {
        while owner.eviction.bytes() >= capacity {
            let gone = owner.victim(None, false).unwrap();
            assert!(!ids.contains(&gone), "a chain that is coming in eats itself");
        }
        ids.push(owner.insert(ONE, ids.last().copied(), fingerprint, 1));
    }
    ids
}

#[test]
fn a_used_chain_outlives_scans_and_goes_from_its_end() {
    let mut owner = Owner::new(100);
    let kept = chain(&mut owner, 0..20, 100);
    for _ in 0..4 {
        kept.iter().for_each(|&id| owner.eviction.touch(id));
    }
    let present = |owner: &Owner, id: u32| owner.blocks.iter().any(|block| block.id == id);
    for scan in 1..30 {
        chain(&mut owner, scan * 1000..scan * 1000 + 10, 100);
        assert!(kept.iter().all(|&id| present(&owner, id)), "140 new blocks pass by");
        if scan % 14 == 0 {
            kept.iter().for_each(|&id| owner.eviction.touch(id));
        }
    }
    kept.iter().for_each(|&id| owner.eviction.touch(id));
    while owner.blocks.len() > 10 {
        owner.victim(None, false).unwrap();
    }
    let left: Vec<u32> = owner.blocks.iter().map(|block| block.id).collect();
    assert_eq!(left, kept[..10], "the scanned go first, then the chain from its end");
}

#[test]
fn a_parent_goes_right_after_its_last_child() {
    let mut owner = Owner::new(100);
    let old = chain(&mut owner, 0..3, 100);
    let new = chain(&mut owner, 10..12, 100);
    owner.remove(new[1]);
    let order: Vec<u32> = std::iter::from_fn(|| owner.victim(None, false)).collect();
    assert_eq!(order, [old[2], old[1], old[0], new[0]]);
}

#[test]
fn a_chain_that_comes_in_is_no_victim_yet() {
    let mut owner = Owner::new(100);
    chain(&mut owner, 0..98, 100);
    owner.eviction.handicap = HANDICAP_MAX;
    chain(&mut owner, 1000..1006, 100);
    chain(&mut owner, 2000..2010, 100);
    let of = |block: &Block| owner.eviction.entries[block.id as usize].fingerprint;
    assert!(owner.blocks.iter().any(|block| of(block) == 1004));
    assert!(owner.blocks.iter().all(|block| of(block) != 1005), "nothing continued this one");
}

#[test]
fn what_comes_back_is_worth_more_than_at_first() {
    let mut owner = Owner::new(10);
    chain(&mut owner, 0..5, 10);
    chain(&mut owner, 100..110, 10);
    let back = chain(&mut owner, 0..5, 10);
    assert_eq!(usize::from(owner.eviction.entries[back[0] as usize].class), USED);
    assert!(owner.eviction.head_start < HEAD_START, "unused blocks should have stayed longer");
}

#[test]
fn refused_blocks_bound_the_work_and_are_asked_for_again() {
    let mut eviction = Eviction::new(1 << 20);
    let blocks = STEPS_MAX as u32 * 3;
    (0..blocks).for_each(|id| eviction.insert(id, ONE, u64::from(id), 1));
    let mut asked = 0;
    let none = eviction.victim(None, |_| {
        asked += 1;
        false
    });
    assert_eq!((none, asked), (None, STEPS_MAX));
    assert_eq!(eviction.victim_thorough(None, |id| id == blocks - 1), Some(blocks - 1));
    assert_eq!(eviction.victim_thorough(None, |_| false), None);
    assert_eq!(eviction.victim(None, |_| true), Some(0), "the oldest of the refused");
    let again = REFUSED_STEPS_MAX as u32;
    assert_eq!(eviction.victim(None, |id| id > again), None, "some are asked for in each call");
    assert_eq!(eviction.victim(None, |id| id > again), Some(again + 1));
}

#[test]
fn a_namespace_over_its_quota_finds_its_own_at_once() {
    let mut eviction = Eviction::new(1 << 20);
    let blocks = STEPS_MAX as u32 * 4;
    (0..blocks).for_each(|id| eviction.insert(id, ONE, u64::from(id), 1));
    (blocks..blocks + 3).for_each(|id| eviction.insert(id, OTHER, u64::from(id), 1));
    let mut asked = 0;
    for id in blocks..blocks + 3 {
        let victim = eviction.victim(Some(OTHER), |_| {
            asked += 1;
            true
        });
        assert_eq!(victim, Some(id));
    }
    assert_eq!(asked, 3);
    assert_eq!(eviction.victim(Some(OTHER), |_| true), None);
    assert_eq!(eviction.victim(None, |_| true), Some(0), "the others lost nothing of their order");
}

#[test]
fn who_has_no_need_gets_only_what_has_outlived_its_head_start() {
    let mut eviction = Eviction::new(100);
    (0..10).for_each(|id| eviction.insert(id, ONE, u64::from(id), 10));
    (0..10).for_each(|id| eviction.touch(id));
    assert!(!eviction.is_next_spent(None));
    assert_eq!(eviction.victim_spent(None, |_| true), None, "each was used a moment ago");
    eviction.insert(10, ONE, 10, 10);
    assert_eq!(eviction.victim_spent(None, |_| true), None, "nor is the newcomer older than one");
    eviction.insert(11, ONE, 11, 10);
    assert!(eviction.is_next_spent(None) && eviction.is_next_spent(Some(ONE)));
    assert!(!eviction.is_next_spent(Some(OTHER)));
    assert_eq!(eviction.victim_spent(None, |id| id != 10), None, "leased");
    assert_eq!(eviction.victim_spent(Some(ONE), |_| true), None, "it waits for its turn aside");
    assert_eq!(eviction.victim(None, |_| true), Some(10), "and is the next");
    // Half of the capacity later the used ones have lost their head start.
    (12..17).for_each(|id| eviction.insert(id, OTHER, u64::from(id), 10));
    assert_eq!(eviction.victim_spent(None, |_| true), Some(11));
    let spent = std::iter::from_fn(|| eviction.victim_spent(Some(ONE), |_| true));
    assert_eq!(spent.collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
}
