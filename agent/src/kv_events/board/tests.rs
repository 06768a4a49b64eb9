//! Seats that keep up and seats that do not.

use std::collections::BTreeMap;

use dataplane::feed::{Decoder, Follower, Level, Op, Step};
use prometheus::Registry;

use super::super::event::{Attention, EngineHash, Event, Extra, Medium, Stored};
use super::*;

fn board() -> Board {
    Board::new(KvMetrics::new(&Registry::new()).unwrap())
}

fn open(board: &Board, epoch: u64) {
    board.open("w", Writer::new("w", epoch, "m", false, 1));
}

fn store(board: &Board, epoch: u64, blocks: std::ops::Range<u32>) {
    let stored = Stored {
        hashes: blocks.clone().map(|block| EngineHash(block.into())).collect(),
        parent: None,
        tokens: blocks.collect(),
        block_tokens: 1,
        medium: Medium::Local(Level::Gpu),
        adapter: String::new(),
        extra: vec![Extra::None],
        group: None,
        attention: Attention::Unsaid,
    };
    let events = vec![Event::Stored(stored)];
    board.take("w", epoch, 0, Batch { events, ..Batch::default() });
}

#[derive(Default)]
struct Router {
    follower: Follower,
    held: BTreeMap<u128, Level>,
}

impl Router {
    /// Reads all there is.
    fn read(&mut self, seat: &SeatHold) {
        while let Some(next) = seat.next(true) {
            let frames = match next {
                Next::Frame(frame) => {
                    let mut decoder = Decoder::default();
                    decoder.push(&frame);
                    vec![decoder.poll_message::<ToRouter>().unwrap().unwrap()]
                }
                Next::Snapshot(snapshot) => {
                    (0..snapshot.parts()).map(|part| snapshot.part(part)).collect()
                }
            };
            for frame in frames {
                let step = self.follower.take(frame);
                self.obey(step, seat);
            }
        }
    }

    fn obey(&mut self, step: Step, seat: &SeatHold) {
        let ops = match step {
            Step::Nothing => vec![],
            Step::Apply(ops) => ops,
            Step::Reset(ops) => {
                self.held.clear();
                ops
            }
            Step::Resync { .. } => {
                assert!(seat.want("w"));
                vec![]
            }
        };
        for op in ops {
            match op {
                Op::Set { level, digests } => self.held.extend(digests.iter().map(|d| (*d, level))),
                Op::Remove { digests } => self.held.retain(|digest, _| !digests.contains(digest)),
                Op::Clear => self.held.clear(),
            }
        }
    }
}

#[test]
fn a_router_that_joins_late_is_told_all() {
    let board = board();
    open(&board, 1);
    store(&board, 1, 0..100);
    let seat = board.sit().unwrap();
    let mut router = Router::default();
    router.read(&seat);
    assert_eq!(router.held.len(), 100);
    store(&board, 1, 0..150);
    router.read(&seat);
    assert!(router.follower.is_in_step());
    assert_eq!(router.held.len(), 150);
}

#[test]
fn one_that_does_not_keep_up_delays_nobody_and_catches_up() {
    let board = board();
    open(&board, 1);
    let (slow, quick) = (board.sit().unwrap(), board.sit().unwrap());
    let (mut behind, mut ahead) = (Router::default(), Router::default());
    behind.read(&slow);
    ahead.read(&quick);
    assert!(slow.want("w") && quick.want("w"));
    behind.read(&slow);
    // Together more than fits a queue, each far less.
    for step in 1..=70u32 {
        store(&board, 1, step * 100_000..step * 100_000 + 8_000);
        ahead.read(&quick);
        assert_eq!(ahead.held.len(), 8_000 * step as usize);
        let queued = board.lock().seats.values().map(|seat| seat.queued_bytes).max();
        assert!(queued.unwrap() <= OUTBOX_BYTES_MAX);
    }
    assert!(behind.held.is_empty());
    assert_eq!(board.lock().seats.values().filter(|seat| !seat.due.is_empty()).count(), 1);
    behind.read(&slow);
    board.heartbeat();
    behind.read(&slow);
    assert_eq!(behind.held, ahead.held);
}

#[test]
fn a_life_that_ends_takes_its_blocks_with_it() {
    let board = board();
    open(&board, 1);
    let seat = board.sit().unwrap();
    let mut router = Router::default();
    router.read(&seat);
    seat.want("w");
    store(&board, 1, 0..10);
    router.read(&seat);
    assert_eq!(router.held.len(), 10);
    board.close("w", 7);
    router.read(&seat);
    assert_eq!(router.held.len(), 10, "another life");
    board.close("w", 1);
    router.read(&seat);
    assert_eq!(router.held.len(), 0);
    store(&board, 1, 0..10);
    open(&board, 2);
    store(&board, 1, 0..10);
    store(&board, 2, 5..10);
    router.read(&seat);
    assert_eq!((router.held.len(), router.follower.known()), (5, Known::None));
    assert!(router.follower.is_in_step());
}

#[test]
fn seats_and_wishes_are_bounded() {
    let board = board();
    let seats: Vec<_> = (0..ROUTERS_MAX).map(|_| board.sit().unwrap()).collect();
    assert!(board.sit().is_none());
    assert!((0..WANTED_MAX).all(|number| seats[0].want(&number.to_string())));
    assert!(!seats[0].want("one more") && seats[0].want("0"));
    drop(seats);
    assert!(board.sit().is_some());
}
