//! Seats that keep up and seats that do not.

use std::collections::BTreeMap;

use dataplane::feed::{Decoder, Follower, Level, Op, Step};
use prometheus::Registry;

use super::super::event::{Attention, EngineHash, Event, Extra, Medium, Stored};
use super::*;

fn board() -> Board {
    let registry = Registry::new();
    let slots = SlotMetrics::new(&registry).unwrap();
    Board::new(KvMetrics::new(&registry).unwrap(), slots)
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
    board.heartbeat(Instant::now());
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

/// All frames that wait for a seat.
fn frames(seat: &SeatHold) -> Vec<ToRouter> {
    let frames = std::iter::from_fn(|| seat.next(false));
    frames
        .map(|next| {
            let Next::Frame(frame) = next else { panic!("{next:?}") };
            let mut decoder = Decoder::default();
            decoder.push(&frame);
            decoder.poll_message().unwrap().unwrap()
        })
        .collect()
}

fn wish(worker: &str, ticket: u64) -> Warm {
    Warm { worker: worker.into(), ticket, deadline_ms: 9, blocks_min: 1, digests: Vec::new() }
}

fn warmed(worker: &str, ticket: u64) -> ToRouter {
    ToRouter::Warmed { worker: worker.into(), ticket, tokens: 0 }
}

#[test]
fn a_wish_is_answered_whoever_it_is_for_and_whatever_becomes_of_it() {
    let (board, now) = (board(), Instant::now());
    let (one, two) = (board.sit().unwrap(), board.sit().unwrap());
    one.warm(wish("w", 1), now);
    assert_eq!(frames(&one), [warmed("w", 1)], "nobody can");
    let (wishes_in, mut wishes) = mpsc::channel(1);
    board.open_warm("w", 3, 16, wishes_in);
    let warmable = ToRouter::Warmable { worker: "w".into(), block_tokens: 16 };
    assert_eq!(frames(&one), std::slice::from_ref(&warmable));
    let late = frames(&board.sit().unwrap());
    assert_eq!(late, std::slice::from_ref(&warmable), "one that comes is told");
    frames(&two);
    one.warm(wish("w", 2), now);
    assert!(frames(&one).is_empty(), "it waits for its keeper");
    two.warm(wish("w", 7), now);
    assert_eq!(frames(&two), [warmed("w", 7)], "too many wait");
    drop(wishes.try_recv().unwrap());
    assert_eq!(frames(&one), [warmed("w", 2)]);
    assert!(frames(&two).is_empty(), "it was not its own");
    one.warm(wish("w", 3), now);
    drop(wishes);
    assert_eq!(frames(&one), [warmed("w", 3)], "its keeper has ended");
    two.warm(wish("w", 8), now);
    assert_eq!(frames(&two), [warmed("w", 8)]);
    board.close_warm("w", 2);
    board.heartbeat(now);
    assert!(frames(&one).contains(&warmable), "another process ended");
    board.close_warm("w", 3);
    board.heartbeat(now);
    assert!(!frames(&one).contains(&warmable));
}

/// The frames of what others gave.
fn others(seat: &SeatHold) -> Vec<ToRouter> {
    let mut decoder = Decoder::default();
    decoder.push(&seat.others());
    std::iter::from_fn(|| decoder.poll_message::<ToRouter>().unwrap()).collect()
}

fn told(worker: &str, inflight: u32, routers: u32) -> ToRouter {
    ToRouter::Others { worker: worker.to_owned(), load: load(inflight), routers }
}

fn load(inflight: u32) -> Load {
    Load { inflight, waiting: inflight, queued_us: u64::from(inflight) * 1_000 }
}

#[test]
fn only_the_newest_of_what_others_gave_is_told_and_a_seat_that_is_left_gives_nothing() {
    let (board, now) = (board(), Instant::now());
    board.serve("w", 1);
    board.serve("v", 1);
    let (one, two) = (board.sit().unwrap(), board.sit().unwrap());
    assert_eq!(others(&one), [told("v", 0, 0), told("w", 0, 0)], "one that comes is told all");
    others(&two);
    (1..=5).for_each(|inflight| one.tell("w", load(inflight), now));
    one.tell("nobody", load(9), now);
    assert_eq!(others(&two), [told("w", 5, 1)]);
    assert!(others(&two).is_empty() && others(&one).is_empty());
    let three = board.sit().unwrap();
    three.tell("w", load(2), now);
    assert_eq!(others(&three), [told("v", 0, 0), told("w", 5, 1)]);
    assert_eq!(others(&two), [told("w", 7, 2)]);
    drop(one);
    assert_eq!(others(&two), [told("w", 2, 1)]);
    assert_eq!(others(&three), [told("w", 0, 0)]);
    board.heartbeat(now);
    assert_eq!(others(&two), [told("v", 0, 0), told("w", 2, 1)], "it is repeated");
    let later = now + std::time::Duration::from_secs(60);
    board.heartbeat(later);
    assert_eq!(others(&two), [told("v", 0, 0), told("w", 0, 0)], "who is silent is forgotten");
    three.tell("w", load(2), later);
    board.unserve("w", 1);
    assert!(others(&two).is_empty(), "a worker that has ended has no load");
    while two.next(true).is_some() {}
    board.unserve("v", 1);
    board.heartbeat(later);
    let Some(Next::Frame(frame)) = two.next(true) else {
        panic!("an agent without workers is silent")
    };
    assert_eq!(*frame, *encoded(&hello()));
}
