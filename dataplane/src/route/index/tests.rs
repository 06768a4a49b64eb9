//! The index against a naive model, at its limits, and under readers and a writer at once.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;
use crate::digest::{Unit, of_tokens, seed};

const WORKERS: u32 = 5;

fn chain(tokens: &[u32]) -> Vec<u128> {
    of_tokens(&seed(Unit::Tokens, "m", "", ""), tokens, 1).iter().map(Digest::short).collect()
}

fn index(blocks_max: usize, workers_max: usize) -> Index {
    Index::new(Limits { blocks_max, workers_max }, 0x5eed).unwrap()
}

fn found(index: &Index, digests: &[u128]) -> HashMap<u32, [u32; 3]> {
    let mut depths = Depths::new();
    index.lookup_short(digests, &mut depths);
    let found: HashMap<_, _> =
        depths.workers().iter().map(|depth| (depth.worker.0, depth.blocks)).collect();
    assert_eq!(found.len(), depths.workers().len(), "a worker was named twice");
    found
}

/// Everything a walk over the index meets; nothing twice.
fn visited(index: &Index) -> HashMap<(u32, u128), Level> {
    let mut all = HashMap::new();
    let mut next = Some(Bookmark::default());
    while let Some(from) = next {
        next = index.visit(from, |worker, level, digest| {
            assert_eq!(all.insert((worker.0, digest), level), None, "visited twice");
        });
    }
    all
}

fn digests(from: u32, count: u32) -> Vec<u128> {
    (from..from + count).map(|n| chain(&[n])[0]).collect()
}

/// What each worker has: the level of each block, a block being the path of tokens to it.
#[derive(Default)]
struct Model(HashMap<u32, HashMap<Vec<u32>, Level>>);

impl Model {
    fn of(&mut self, worker: u32) -> &mut HashMap<Vec<u32>, Level> {
        self.0.entry(worker).or_default()
    }

    /// Whatever the worker has at or below a path.
    fn below(&mut self, worker: u32, path: &[u32]) -> Vec<Vec<u32>> {
        self.of(worker).keys().filter(|held| held.starts_with(path)).cloned().collect()
    }

    fn all(&self) -> HashMap<(u32, u128), Level> {
        let of = |(&worker, held): (&u32, &HashMap<Vec<u32>, Level>)| {
            let named = held.iter().map(|(path, &level)| ((worker, last(path)), level));
            named.collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }

    fn depths(&self, path: &[u32]) -> HashMap<u32, [u32; 3]> {
        let depth = |held: &HashMap<Vec<u32>, Level>, level: Level| {
            let is_held =
                |end: &usize| held.get(&path[..*end]).is_some_and(|&found| found <= level);
            (1..=path.len()).take_while(is_held).count() as u32
        };
        let all = self
            .0
            .iter()
            .map(|(&worker, held)| (worker, Level::ALL.map(|level| depth(held, level))));
        all.filter(|(_, blocks)| blocks[2] > 0).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A prompt was computed or loaded: its blocks are at the level or where they are if that is faster.
    Store(u32, Level, Vec<u32>),
    /// A block and what is behind it moved to a slower level.
    Demote(u32, Level, Vec<u32>),
    /// A block and what is behind it were dropped.
    Evict(u32, Vec<u32>),
    Clear(u32),
    RemoveWorker(u32),
}

fn path() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0u32..2, 1..40)
}

fn step() -> impl Strategy<Value = Step> {
    let level = || prop::sample::select(Level::ALL.to_vec());
    prop_oneof![
        8 => (0..WORKERS, level(), path()).prop_map(|(w, l, p)| Step::Store(w, l, p)),
        3 => (0..WORKERS, level(), path()).prop_map(|(w, l, p)| Step::Demote(w, l, p)),
        3 => (0..WORKERS, path()).prop_map(|(w, p)| Step::Evict(w, p)),
        1 => (0..WORKERS).prop_map(Step::Clear),
        1 => (0..WORKERS).prop_map(Step::RemoveWorker),
    ]
}

fn last(path: &[u32]) -> u128 {
    chain(path)[path.len() - 1]
}

fn apply(index: &Index, model: &mut Model, step: Step) {
    match step {
        Step::Store(worker, level, path) => {
            for end in 1..=path.len() {
                let held = model.of(worker).entry(path[..end].to_vec()).or_insert(level);
                *held = level.min(*held);
                index.set(WorkerNumber(worker), *held, &[last(&path[..end])]);
            }
        }
        Step::Demote(worker, level, path) => {
            let below = model.below(worker, &path[..path.len().div_ceil(4)]);
            let moved = below.into_iter().filter(|held| model.of(worker)[held] < level);
            let moved: Vec<_> = moved.collect();
            let digests: Vec<u128> = moved.iter().map(|held| last(held)).collect();
            index.set(WorkerNumber(worker), level, &digests);
            model.of(worker).extend(moved.into_iter().map(|held| (held, level)));
        }
        Step::Evict(worker, path) => {
            let below = model.below(worker, &path[..path.len().div_ceil(4)]);
            let digests: Vec<u128> = below.iter().map(|held| last(held)).collect();
            index.remove(WorkerNumber(worker), &digests);
            model.of(worker).retain(|held, _| !below.contains(held));
        }
        Step::Clear(worker) => {
            index.clear(WorkerNumber(worker));
            model.of(worker).clear();
        }
        Step::RemoveWorker(worker) => {
            index.remove_worker(WorkerNumber(worker));
            model.0.remove(&worker);
        }
    }
}

proptest! {
    #[test]
    fn depths_are_those_of_a_naive_model(
        steps in prop::collection::vec(step(), 1..60),
        queries in prop::collection::vec(path(), 1..8),
    ) {
        let (index, mut model) = (index(1 << 12, WORKERS as usize), Model::default());
        for step in steps {
            let asked = match &step {
                Step::Store(_, _, path) | Step::Demote(_, _, path) | Step::Evict(_, path) => {
                    path.clone()
                }
                Step::Clear(_) | Step::RemoveWorker(_) => vec![0],
            };
            apply(&index, &mut model, step);
            for query in queries.iter().chain([&asked]) {
                prop_assert_eq!(found(&index, &chain(query)), model.depths(query));
            }
        }
        prop_assert_eq!((index.refused(), index.gave_up()), (0, 0));
        prop_assert_eq!(visited(&index), model.all());
    }

    /// Whatever a feed says, in whatever order, of whatever worker.
    #[test]
    fn a_feed_that_breaks_its_word_breaks_nothing_else(
        steps in prop::collection::vec(
            (0u32..6, 0usize..3, prop::collection::vec(0u32..200, 0..40), 0u32..8),
            1..80,
        ),
        query in prop::collection::vec(0u32..200, 0..40),
    ) {
        let index = index(64, 3);
        let bytes = |index: &Index| index.bytes();
        let all = digests(0, 200);
        for (worker, level, blocks, what) in steps {
            let worker = WorkerNumber(worker);
            let blocks: Vec<u128> = blocks.iter().map(|&block| all[block as usize]).collect();
            match what {
                0 => index.clear(worker),
                1..4 => index.remove(worker, &blocks),
                _ => index.set(worker, Level::ALL[level], &blocks),
            }
            prop_assert!(index.len() <= 64);
            let asked: Vec<u128> = query.iter().map(|&block| all[block as usize]).collect();
            for (_, depth) in found(&index, &asked) {
                prop_assert!(depth[0] <= depth[1] && depth[1] <= depth[2]);
                prop_assert!((1..=asked.len() as u32).contains(&depth[2]));
            }
        }
        prop_assert!(bytes(&index) < 2 << 20);
        prop_assert_eq!(index.gave_up(), 0);
        (0..6).for_each(|worker| index.clear(WorkerNumber(worker)));
        prop_assert!(all.iter().all(|&digest| found(&index, &[digest]).is_empty()));
    }
}

#[test]
fn levels_are_told_apart() {
    let index = index(100, 2);
    let prompt = chain(&[1, 2, 3, 4, 5, 6]);
    let (a, b) = (WorkerNumber(70), WorkerNumber(u32::MAX));
    index.set(a, Level::Gpu, &prompt[..2]);
    index.set(a, Level::Host, &prompt[2..3]);
    index.set(a, Level::Disk, &prompt[3..5]);
    index.set(b, Level::Host, &prompt[..1]);
    let expected = HashMap::from([(70, [2, 3, 5]), (u32::MAX, [0, 1, 1])]);
    assert_eq!(found(&index, &prompt), expected);
    let mut depths = Depths::new();
    index.lookup_short(&prompt, &mut depths);
    assert_eq!(depths.of(a).unwrap().at(Level::Host), 3);
    assert_eq!(depths.of(WorkerNumber(3)), None);
    index.lookup(&of_tokens(&seed(Unit::Tokens, "m", "", ""), &[1, 2], 1), &mut depths);
    assert_eq!(depths.of(a).unwrap().blocks, [2, 2, 2]);
    index.lookup_short(&[], &mut depths);
    assert_eq!(depths.workers(), []);
}

#[test]
fn an_index_holds_what_it_was_made_for_and_refuses_the_rest() {
    const BLOCKS: usize = 50_000;
    let index = index(BLOCKS, 1);
    let random = |n: usize| Digest(*blake3::hash(&n.to_le_bytes()).as_bytes()).short();
    let blocks: Vec<u128> = (0..BLOCKS + 100).map(random).collect();
    blocks.chunks(77).for_each(|blocks| index.set(WorkerNumber(0), Level::Gpu, blocks));
    assert_eq!((index.len(), index.refused()), (BLOCKS, 100));
    let kept = blocks[..BLOCKS].iter().map(|&block| ((0, block), Level::Gpu));
    assert_eq!(visited(&index), kept.collect(), "in several pieces");
    assert!(blocks[..BLOCKS].iter().all(|&block| found(&index, &[block]).len() == 1));
    assert!(blocks[BLOCKS..].iter().all(|&block| found(&index, &[block]).is_empty()));
    assert!(index.bytes() as f64 / BLOCKS as f64 <= BYTES_PER_BLOCK + 0.1, "{}", index.bytes());
    index.set(WorkerNumber(1), Level::Gpu, &blocks[..3]);
    assert_eq!(index.refused(), 103, "a worker too many");
    index.remove(WorkerNumber(0), &blocks);
    assert!(index.is_empty());
}

/// Entries that passed others are found, however entries come and go around them.
#[test]
fn a_table_that_is_full_and_churned_forgets_nothing() {
    let index = index(300, 1);
    let blocks = digests(0, 1_000);
    for round in 0..700_usize {
        index.remove(WorkerNumber(0), &blocks[round.saturating_sub(1)..round]);
        index.set(WorkerNumber(0), Level::Gpu, &blocks[round + 299..round + 300]);
        if round == 0 {
            index.set(WorkerNumber(0), Level::Gpu, &blocks[..299]);
        }
        for (at, &block) in blocks.iter().enumerate() {
            let is_there = (round..round + 300).contains(&at);
            assert_eq!(found(&index, &[block]).len(), usize::from(is_there), "{round} {at}");
        }
    }
    assert_eq!(index.refused(), 0);
}

#[test]
fn lost_workers_make_room_for_others() {
    let index = index(1_000, 4);
    for worker in 0..1_000 {
        let blocks = digests(worker * 10_000, 400);
        index.set(WorkerNumber(worker), Level::Gpu, &blocks);
        assert_eq!(index.refused(), 0, "at {worker}");
        assert!(found(&index, &blocks[399..]).contains_key(&worker));
        index.remove_worker(WorkerNumber(worker));
        assert!(found(&index, &blocks[399..]).is_empty());
    }
}

#[test]
fn a_restarted_worker_has_only_what_came_after() {
    let index = index(1_000, 2);
    let prompt = chain(&[1, 2, 3]);
    index.set(WorkerNumber(1), Level::Gpu, &prompt);
    for _ in 0..10_000 {
        index.set(WorkerNumber(0), Level::Gpu, &prompt);
        index.clear(WorkerNumber(0));
        index.set(WorkerNumber(0), Level::Host, &prompt[..1]);
        assert_eq!(found(&index, &prompt), HashMap::from([(0, [0, 1, 1]), (1, [3, 3, 3])]));
    }
    assert_eq!(index.refused(), 0);
}

/// More different sets than the arena has room for: some holders are refused, none is made up.
#[test]
fn sets_are_bounded() {
    let (blocks_max, workers) = (1 << 16, 256u32);
    let index = index(blocks_max, workers as usize);
    let blocks = digests(0, 30_000);
    let pair = |at: usize| (at as u32 % workers, (at as u32 / workers + at as u32 + 1) % workers);
    for (at, &block) in blocks.iter().enumerate() {
        let (a, b) = pair(at);
        index.set(WorkerNumber(a), Level::ALL[at % 3], &[block]);
        index.set(WorkerNumber(b), Level::ALL[at / 7 % 3], &[block]);
    }
    assert!(index.refused() > 1_000, "{} refused", index.refused());
    let bound = blocks_max as f64 * (BYTES_PER_BLOCK + 2.5 * SET_BYTES_PER_BLOCK_MAX as f64);
    assert!((index.bytes() as f64) < bound, "{} bytes", index.bytes());
    for (at, &block) in blocks.iter().enumerate() {
        let found = found(&index, &[block]);
        let (a, b) = pair(at);
        assert!(found.contains_key(&a) && found.keys().all(|worker| [a, b].contains(worker)));
    }
    (0..workers).for_each(|worker| index.remove(WorkerNumber(worker), &blocks));
    assert!(index.is_empty());
}

#[test]
fn limits_are_checked() {
    let of = |blocks_max, workers_max| Index::new(Limits { blocks_max, workers_max }, 0).err();
    assert_eq!(of(0, 1), Some(LimitsError::Blocks(0)));
    assert_eq!(of(1, WORKERS_MAX + 1), Some(LimitsError::Workers(WORKERS_MAX + 1)));
    assert_eq!(of(1, WORKERS_MAX), None);
}

/// The largest set there can be, beside every level.
#[test]
fn every_worker_can_hold_one_block() {
    let index = index(8, WORKERS_MAX);
    let block = digests(0, 1);
    let workers = 0..WORKERS_MAX as u32;
    // From the last down, so that each new member goes to the front of the set.
    workers.clone().rev().step_by(16).for_each(|worker| {
        index.set(WorkerNumber(worker), Level::ALL[worker as usize % 3], &block);
    });
    assert_eq!(found(&index, &block).len(), WORKERS_MAX / 16);
}

/// Readers beside a writer that churns the same chain, the same buckets, the same sets and the slots:
/// what does not change is always found, what does is found as it was at some time.
#[test]
fn readers_see_only_what_was_true() {
    const ROUNDS: u32 = 3_000;
    // Small, so that all meet in the same buckets. The machine may stop the writer anywhere.
    let index = index(256, 6);
    let prompt: Vec<u128> = chain(&(0..60).collect::<Vec<_>>());
    let (steady, flaps, restarts) = (WorkerNumber(1), WorkerNumber(2), WorkerNumber(3));
    index.set(steady, Level::Gpu, &prompt[..20]);
    index.set(steady, Level::Host, &prompt[20..40]);
    index.set(flaps, Level::Gpu, &prompt[..10]);
    let (is_done, empty) = (AtomicBool::new(false), AtomicUsize::new(0));
    let read = || {
        let mut depths = Depths::new();
        let mut lookups = 0;
        while !is_done.load(Relaxed) || lookups < 100 {
            lookups += 1;
            index.lookup_short(&prompt, &mut depths);
            if depths.workers().is_empty() {
                empty.fetch_add(1, Relaxed);
                continue;
            }
            assert_eq!(depths.of(steady).map(|depth| depth.blocks), Some([20, 40, 40]));
            let flapping = depths.of(flaps).unwrap().blocks;
            assert!(flapping[0] >= 10 && flapping[2] <= 60, "{flapping:?}");
            for depth in depths.workers() {
                let is_known = [steady, flaps, restarts].contains(&depth.worker);
                assert!(is_known, "{depth:?} holds nothing of this");
            }
        }
    };
    let write = || {
        for round in 0..ROUNDS {
            index.set(flaps, Level::ALL[round as usize % 3], &prompt[10..]);
            index.set(restarts, Level::Gpu, &prompt[..(round as usize % 50)]);
            let others = digests(1_000 + round * 100, 90);
            index.set(WorkerNumber(100 + round), Level::Disk, &others);
            (10..60).rev().for_each(|at| index.remove(flaps, &prompt[at..=at]));
            index.clear(restarts);
            index.remove_worker(WorkerNumber(100 + round));
        }
        is_done.store(true, Relaxed);
    };
    std::thread::scope(|scope| {
        scope.spawn(read);
        scope.spawn(read);
        scope.spawn(write);
    });
    assert!(empty.load(Relaxed) <= index.gave_up(), "a lookup lost what did not change");
}
