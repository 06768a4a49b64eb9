//! Frames of one worker: numbers, joins and cuts.

use std::collections::BTreeMap;

use dataplane::feed::{Follower, Step};
use proptest::prelude::*;

use super::*;
use crate::kv_events::event::{Attention, EngineHash, Event, Extra, Medium, Stored};

const GPU: Medium = Medium::Local(Level::Gpu);

fn writer(ranks: u32) -> Writer {
    Writer::new("n/d/0", 3, "m", false, ranks)
}

/// One block, a prompt of its own.
fn store(block: u32, medium: Medium) -> Event {
    chain(block..block + 1, medium)
}

/// Blocks in a row.
fn chain(blocks: std::ops::Range<u32>, medium: Medium) -> Event {
    Event::Stored(Stored {
        hashes: blocks.clone().map(|block| EngineHash(block.into())).collect(),
        parent: None,
        tokens: blocks.collect(),
        block_tokens: 1,
        medium,
        adapter: String::new(),
        extra: vec![Extra::None],
        group: None,
        attention: Attention::Unsaid,
    })
}

fn remove(block: u32, medium: Medium) -> Event {
    Event::Removed { hashes: vec![EngineHash(block.into())], medium, group: None }
}

fn batch(events: Vec<Event>) -> Batch {
    Batch { events, ..Batch::default() }
}

type Held = BTreeMap<u128, Level>;

fn follow(held: &mut Held, follower: &mut Follower, frames: Vec<ToRouter>) {
    for frame in frames {
        let ops = match follower.take(frame) {
            Step::Apply(ops) => ops,
            Step::Reset(ops) => {
                held.clear();
                ops
            }
            Step::Nothing => continue,
            Step::Resync { .. } => panic!("a line without loss has no gaps"),
        };
        for op in ops {
            match op {
                Op::Set { level, digests } => held.extend(digests.iter().map(|d| (*d, level))),
                Op::Remove { digests } => held.retain(|digest, _| !digests.contains(digest)),
                Op::Clear => held.clear(),
            }
        }
    }
}

fn of_snapshot(writer: &Writer) -> Held {
    let snapshot = writer.snapshot();
    let (mut held, mut follower) = (Held::new(), Follower::default());
    let parts = (0..snapshot.parts()).map(|part| snapshot.part(part)).collect();
    follow(&mut held, &mut follower, parts);
    assert!(follower.is_in_step());
    held
}

#[test]
fn a_block_stays_while_any_rank_holds_it() {
    let mut writer = writer(2);
    assert_eq!(writer.take(0, batch(vec![store(1, GPU)])).len(), 1);
    assert_eq!(writer.take(1, batch(vec![store(1, Medium::Local(Level::Host))])), []);
    let frames = writer.take(0, batch(vec![remove(1, GPU)]));
    let [ToRouter::Batch { seq: 2, epoch: 3, ops, .. }] = frames.as_slice() else {
        panic!("{frames:?}")
    };
    assert!(matches!(ops.as_slice(), [Op::Set { level: Level::Host, .. }]));
    assert_eq!(writer.blocks(), [0, 1, 0]);
    assert_eq!(writer.known(), Known::None);
}

#[test]
fn as_much_is_known_as_of_the_least_known_rank() {
    let mut writer = writer(2);
    assert!(writer.set_known(0, Known::Whole));
    assert_eq!(writer.known(), Known::None);
    assert!(writer.set_known(1, Known::Partial));
    assert!(!writer.set_known(1, Known::Partial));
    assert_eq!(writer.known(), Known::Partial);
    writer.take(1, batch(vec![Event::Cleared]));
    assert_eq!(writer.known(), Known::Whole);
    writer.take(1, Batch { malformed: 1, ..batch(vec![store(1, GPU)]) });
    assert_eq!((writer.known(), writer.blocks()), (Known::Partial, [0; 3]));
}

#[test]
fn long_lists_are_cut_and_a_large_end_is_one_word() {
    let mut writer = writer(1);
    let (mut held, mut follower) = (Held::new(), Follower::default());
    follow(&mut held, &mut follower, vec![writer.state()]);
    let many = (DIGESTS_MAX * 2 + 5) as u32;
    let frames = writer.take(0, batch(vec![chain(0..many, GPU)]));
    assert_eq!(frames.len(), 3);
    assert_eq!(writer.snapshot().parts(), 3);
    follow(&mut held, &mut follower, frames);
    assert_eq!(held.len(), many as usize);
    assert_eq!(held, of_snapshot(&writer));
    let frames = writer.clear(0, Known::Partial);
    let [ToRouter::Batch { ops, .. }] = frames.as_slice() else { panic!("{}", frames.len()) };
    assert_eq!(ops.as_slice(), [Op::Clear]);
    assert_eq!(writer.clear(0, Known::Partial), []);
    assert_eq!(writer.snapshot().parts(), 1);
}

/// After each part of a snapshot a block's beginning is there, and no slower than it.
#[test]
fn a_snapshot_tells_beginnings_first() {
    let mut writer = writer(1);
    let many = DIGESTS_MAX as u32 + 100;
    let host = Medium::Local(Level::Host);
    writer.take(0, batch(vec![chain(0..many, GPU), remove(50, GPU)]));
    assert_eq!(writer.blocks(), [50, 0, 0]);
    writer.take(0, batch(vec![chain(0..many, host)]));
    assert_eq!(writer.blocks(), [50, u64::from(many) - 50, 0]);
    let tokens: Vec<u32> = (0..many).collect();
    let seed = dataplane::digest::seed(dataplane::digest::Unit::Tokens, "m", "", "");
    let whole: Vec<u128> =
        dataplane::digest::of_tokens(&seed, &tokens, 1).iter().map(|d| d.short()).collect();
    let snapshot = writer.snapshot();
    let mut told = Vec::new();
    for part in 0..snapshot.parts() {
        let ToRouter::Snapshot { sets, .. } = snapshot.part(part) else { panic!() };
        for set in sets {
            let Op::Set { digests, .. } = set else { panic!() };
            told.extend(digests);
        }
        assert_eq!(told, whole[..told.len()]);
    }
    assert_eq!(told.len(), whole.len());
}

proptest! {
    /// Two ranks and blocks that share digests: followed batch by batch or told at once, it is the same.
    #[test]
    fn batches_come_to_what_a_snapshot_says(
        deeds in prop::collection::vec((0u32..2, 0u32..12, 0usize..3, 0u8..12), 0..80),
    ) {
        let mut writer = writer(2);
        let (mut held, mut follower) = (Held::new(), Follower::default());
        follow(&mut held, &mut follower, vec![writer.state()]);
        for (rank, block, level, deed) in deeds {
            let medium = Medium::Local(Level::ALL[level]);
            let frames = match deed {
                0 => writer.clear(rank, Known::Partial),
                1..=6 => writer.take(rank, batch(vec![store(block, medium), chain(20..20 + block, GPU)])),
                _ => writer.take(rank, batch(vec![remove(block, medium), remove(20 + block, GPU)])),
            };
            follow(&mut held, &mut follower, frames);
            prop_assert_eq!(&held, &of_snapshot(&writer));
            let count = writer.blocks().iter().sum::<u64>();
            prop_assert_eq!(held.len() as u64, count);
        }
    }
}
