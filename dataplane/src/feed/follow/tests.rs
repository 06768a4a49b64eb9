//! A follower against an agent with a line between them that drops, doubles and delays.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::super::Level;
use super::*;

/// What somebody holds.
type Held = BTreeMap<u128, Level>;

fn apply(held: &mut Held, ops: &[Op]) {
    for op in ops {
        match op {
            Op::Set { level, digests } => held.extend(digests.iter().map(|d| (*d, *level))),
            Op::Remove { digests } => held.retain(|d, _| !digests.contains(d)),
            Op::Clear => held.clear(),
        }
    }
}

/// The agent's side: what is held, and what it would send.
#[derive(Default)]
struct Agent {
    epoch: u64,
    seq: u64,
    held: Held,
}

impl Agent {
    fn state(&self) -> ToRouter {
        ToRouter::State {
            worker: "w".into(),
            epoch: self.epoch,
            seq: self.seq,
            known: Known::Whole,
            block_tokens: 16,
        }
    }

    fn batch(&mut self, ops: Vec<Op>) -> ToRouter {
        apply(&mut self.held, &ops);
        self.seq += 1;
        ToRouter::Batch { worker: "w".into(), epoch: self.epoch, seq: self.seq, ops }
    }

    fn restart(&mut self) -> [ToRouter; 2] {
        let gone = ToRouter::Gone { worker: "w".into(), epoch: self.epoch };
        *self = Agent { epoch: self.epoch + 1, ..Agent::default() };
        [gone, self.state()]
    }

    /// Three blocks a part, at least one part.
    fn snapshot(&self) -> Vec<ToRouter> {
        let held: Vec<_> = self.held.iter().collect();
        let parts = held.len().div_ceil(3).max(1);
        let part = |part: usize| ToRouter::Snapshot {
            worker: "w".into(),
            epoch: self.epoch,
            seq: self.seq,
            part: part as u32,
            last: part + 1 == parts,
            sets: held
                .chunks(3)
                .nth(part)
                .unwrap_or_default()
                .iter()
                .map(|(digest, level)| Op::Set { level: **level, digests: vec![**digest] })
                .collect(),
        };
        (0..parts).map(part).collect()
    }
}

#[derive(Clone, Debug)]
enum Deed {
    Set(u8, u8),
    Remove(u8),
    Clear,
    Restart,
    Heartbeat,
    Reconnect,
    /// The line delivers its `n`-th frame next.
    Deliver(usize),
    Drop(usize),
    Double(usize),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        8 => (0u8..12, 0u8..3).prop_map(|(digest, level)| Deed::Set(digest, level)),
        4 => (0u8..12).prop_map(Deed::Remove),
        1 => Just(Deed::Clear),
        1 => Just(Deed::Restart),
        3 => Just(Deed::Heartbeat),
        1 => Just(Deed::Reconnect),
        20 => Just(Deed::Deliver(0)),
        3 => (0usize..6).prop_map(Deed::Deliver),
        2 => (0usize..6).prop_map(Deed::Drop),
        2 => (0usize..6).prop_map(Deed::Double),
    ]
}

#[derive(Default)]
struct World {
    agent: Agent,
    line: VecDeque<ToRouter>,
    follower: Follower,
    held: Held,
}

impl World {
    fn deliver(&mut self, index: usize) {
        let Some(frame) = self.line.remove(index) else { return };
        match self.follower.take(frame) {
            Step::Nothing => {}
            Step::Apply(ops) => apply(&mut self.held, &ops),
            Step::Reset(ops) => {
                self.held.clear();
                apply(&mut self.held, &ops);
            }
            Step::Resync { forget } => {
                if forget {
                    self.held.clear();
                }
                self.line.extend(self.agent.snapshot());
            }
        }
        if self.follower.is_in_step()
            && self.follower.position() == (self.agent.epoch, self.agent.seq)
        {
            assert_eq!(self.held, self.agent.held, "in step is equal");
        }
    }

    fn run(&mut self, deed: Deed) {
        match deed {
            Deed::Set(digest, level) => {
                let level = Level::ALL[usize::from(level)];
                let batch = self.agent.batch(vec![Op::Set { level, digests: vec![digest.into()] }]);
                self.line.push_back(batch);
            }
            Deed::Remove(digest) => {
                let batch = self.agent.batch(vec![Op::Remove { digests: vec![digest.into()] }]);
                self.line.push_back(batch);
            }
            Deed::Clear => {
                let batch = self.agent.batch(vec![Op::Clear]);
                self.line.push_back(batch);
            }
            Deed::Restart => self.line.extend(self.agent.restart()),
            Deed::Heartbeat => self.line.push_back(self.agent.state()),
            Deed::Reconnect => {
                self.line.clear();
                self.follower.disconnected();
                self.line.push_back(self.agent.state());
            }
            Deed::Deliver(index) => self.deliver(index),
            Deed::Drop(index) => drop(self.line.remove(index)),
            Deed::Double(index) => {
                if let Some(frame) = self.line.get(index).cloned() {
                    self.line.push_back(frame);
                }
            }
        }
    }

    /// The line is good from here on: two heartbeats, since the first may only end a snapshot that
    /// does not come any further.
    fn settle(&mut self) {
        for _ in 0..3 {
            self.line.push_back(self.agent.state());
            while !self.line.is_empty() {
                self.deliver(0);
            }
        }
    }
}

proptest! {
    #[test]
    fn after_any_trouble_a_quiet_line_ends_in_the_agents_state(
        deeds in prop::collection::vec(deed(), 0..120),
    ) {
        let mut world = World::default();
        world.agent.epoch = 1;
        deeds.into_iter().for_each(|deed| world.run(deed));
        world.settle();
        prop_assert!(world.follower.is_in_step());
        prop_assert_eq!(world.follower.known(), Known::Whole);
        prop_assert_eq!(world.follower.position(), (world.agent.epoch, world.agent.seq));
        prop_assert_eq!(&world.held, &world.agent.held);
    }
}

#[test]
fn a_new_process_needs_no_snapshot() {
    let mut world = World { agent: Agent { epoch: 4, ..Agent::default() }, ..World::default() };
    let first = world.agent.state();
    assert_eq!(world.follower.take(first), Step::Reset(vec![]));
    let batch = world.agent.batch(vec![Op::Remove { digests: vec![1] }]);
    assert!(matches!(world.follower.take(batch), Step::Apply(_)));
    assert_eq!(world.follower.known(), Known::Whole);
    assert_eq!(world.follower.block_tokens(), 16);
}

#[test]
fn an_agent_whose_epochs_began_anew_is_followed_after_a_new_line() {
    let mut follower = Follower::default();
    let state = |epoch, seq| ToRouter::State {
        worker: "w".into(),
        epoch,
        seq,
        known: Known::Whole,
        block_tokens: 16,
    };
    assert_eq!(follower.take(state(9, 0)), Step::Reset(vec![]));
    assert_eq!(follower.take(state(2, 0)), Step::Nothing, "late word of an older process");
    follower.disconnected();
    assert_eq!(follower.take(state(2, 5)), Step::Resync { forget: true });
}

#[test]
fn extreme_numbers_are_survived() {
    let mut follower = Follower::default();
    for seq in [u64::MAX, 0, 1, u64::MAX] {
        let worker = || "w".to_owned();
        for epoch in [u64::MAX, 0, u64::MAX] {
            let _ = follower.take(ToRouter::Batch { worker: worker(), epoch, seq, ops: vec![] });
            for part in [u32::MAX, 0, u32::MAX] {
                let (last, sets) = (false, vec![]);
                let snapshot =
                    ToRouter::Snapshot { worker: worker(), epoch, seq, part, last, sets };
                let _ = follower.take(snapshot);
            }
        }
    }
}
