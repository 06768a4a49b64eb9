//! The scheduler in virtual time: what it promises, and that the same calls give the same answers.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::super::script::{Finish, Shape, Wish};
use super::*;

fn limits() -> Limits {
    Limits {
        seqs_max: 4,
        batched_tokens_max: 32,
        block_tokens: 4,
        cache_blocks: 64,
        queue_max: 16,
        timing: Timing { speedup_ratio: 1.0 },
    }
}

fn submission(prompt: &[u32], tokens: u32) -> Submission {
    let script = Script::write(&Wish {
        engine_seed: 0,
        request_seed: None,
        choice: 0,
        prompt,
        tokens_max: Some(tokens),
        room_tokens: 10_000,
        natural_tokens_max: 64,
        stops: &[],
        shape: &Shape::Words,
    });
    assert_eq!(script.finish(), &Finish::Length);
    Submission { prompt: prompt.into(), script: Arc::new(script), salt: None }
}

/// What a whole run brought: (time, outcome) and all events.
#[derive(Default, PartialEq, Debug)]
struct Log {
    outcomes: Vec<(u64, Outcome)>,
    events: Vec<KvEvent>,
}

impl Log {
    fn report(&self, wanted: Ticket) -> Report {
        self.outcomes
            .iter()
            .find_map(|(_, outcome)| match outcome {
                Outcome::Finished { ticket, report } if *ticket == wanted => Some(*report),
                _ => None,
            })
            .unwrap()
    }

    fn step(&mut self, scheduler: &mut Scheduler, now_us: u64) {
        let turn = scheduler.step(now_us);
        self.outcomes.extend(turn.outcomes.into_iter().map(|outcome| (now_us, outcome)));
        self.events.extend(turn.events);
    }

    /// Runs until nothing is left; the bound is far beyond what the tests need.
    fn run(&mut self, scheduler: &mut Scheduler, mut now_us: u64) -> u64 {
        for _ in 0..100_000 {
            self.step(scheduler, now_us);
            match scheduler.next_wake_us() {
                Some(wake_us) => now_us = wake_us,
                None => return now_us,
            }
        }
        panic!("the scheduler never came to rest: {scheduler:?}");
    }
}

#[test]
fn a_second_request_finds_the_whole_blocks_of_the_common_prefix() {
    let mut scheduler = Scheduler::new(limits(), "m");
    let mut log = Log::default();
    let prompt: Vec<u32> = (100..122).collect();
    let first = scheduler.submit(vec![submission(&prompt, 3)], 0).unwrap();
    let now = log.run(&mut scheduler, 0);
    let second = scheduler.submit(vec![submission(&prompt[..19], 3)], now).unwrap();
    log.run(&mut scheduler, now);
    assert_eq!(log.report(first).cached_tokens, 0);
    assert_eq!(log.report(second).cached_tokens, 16, "19 tokens hold four whole blocks");
}

#[test]
fn the_last_token_of_a_prompt_is_always_computed() {
    let mut scheduler = Scheduler::new(limits(), "m");
    let mut log = Log::default();
    let prompt: Vec<u32> = (100..116).collect();
    for _ in 0..2 {
        scheduler.submit(vec![submission(&prompt, 1)], 0).unwrap();
        log.run(&mut scheduler, 0);
    }
    assert_eq!(log.report(1).cached_tokens, 12, "16 tokens are four blocks; three are reused");
}

#[test]
fn salts_keep_caches_apart() {
    let mut scheduler = Scheduler::new(limits(), "m");
    let mut log = Log::default();
    let prompt: Vec<u32> = (100..120).collect();
    for salt in [None, Some("a"), Some("b"), Some("a")] {
        let one = Submission { salt: salt.map(Arc::from), ..submission(&prompt, 1) };
        scheduler.submit(vec![one], 0).unwrap();
        log.run(&mut scheduler, 0);
    }
    let cached: Vec<_> = (0..4).map(|ticket| log.report(ticket).cached_tokens).collect();
    assert_eq!(cached, [0, 0, 0, 16]);
}

#[test]
fn times_follow_the_model_and_long_prompts_are_cut_in_chunks() {
    let mut scheduler = Scheduler::new(limits(), "m");
    let mut log = Log::default();
    let prompt: Vec<u32> = (0..40).map(|at| 1000 + at).collect();
    scheduler.submit(vec![submission(&prompt, 2)], 0).unwrap();
    log.run(&mut scheduler, 0);
    let timing = limits().timing;
    // 40 tokens at 32 a step are two steps; then one step decodes, with 11 of 64 blocks in use.
    let prefill = timing.step_us(32, false, 0.0) + timing.step_us(8, false, 0.0);
    let decode = timing.step_us(0, true, 11.0 / 64.0);
    assert_eq!(log.outcomes[0], (prefill, Outcome::Token { ticket: 0, index: 0 }));
    let report = Report { cached_tokens: 0, queued_us: 0, prefill_us: prefill, decode_us: decode };
    assert_eq!(log.report(0), report);
    assert_eq!(scheduler.stats().steps_total, 3);
}

#[test]
fn new_requests_join_the_running_batch() {
    let mut scheduler = Scheduler::new(limits(), "m");
    let mut log = Log::default();
    scheduler.submit(vec![submission(&[1, 2, 3], 50)], 0).unwrap();
    log.step(&mut scheduler, 0);
    let wake = scheduler.next_wake_us().unwrap();
    scheduler.submit(vec![submission(&[7, 8, 9], 2)], 1).unwrap();
    log.run(&mut scheduler, wake);
    let order: Vec<_> = log
        .outcomes
        .iter()
        .filter_map(|(_, outcome)| match outcome {
            Outcome::Finished { ticket, .. } => Some(*ticket),
            Outcome::Token { .. } => None,
        })
        .collect();
    assert_eq!(order, [1, 0], "the short one overtakes the long one");
}

#[test]
fn a_full_queue_and_a_giant_are_refused_whole() {
    let mut scheduler = Scheduler::new(Limits { queue_max: 2, ..limits() }, "m");
    let six = vec![submission(&[1], 1); 6];
    let seven = vec![submission(&[1], 1); 7];
    assert_eq!(
        scheduler.submit(seven, 0),
        Err(NotTaken::QueueFull { waiting: 0, queue_max: 2 }),
        "four seats and two places"
    );
    assert_eq!(scheduler.stats().waiting, 0);
    assert!(scheduler.submit(six, 0).is_ok());
    let giant = Scheduler::new(limits(), "m").submit(vec![submission(&[1; 250], 10)], 0);
    assert_eq!(giant, Err(NotTaken::TooLarge { needed: 65, cache_blocks: 64 }));
}

#[test]
fn a_cancelled_request_frees_its_blocks_at_once() {
    let mut scheduler = Scheduler::new(limits(), "m");
    let mut log = Log::default();
    let ticket = scheduler.submit(vec![submission(&[9; 20], 100)], 0).unwrap();
    log.step(&mut scheduler, 0);
    log.step(&mut scheduler, 1_000_000);
    assert!(scheduler.stats().blocks_used > 0);
    assert!(scheduler.cancel(ticket));
    assert!(!scheduler.cancel(ticket));
    let stats = scheduler.stats();
    assert_eq!((stats.running, stats.blocks_used, stats.aborted_total), (0, 0, 1));
    assert!(stats.blocks_stored > 0, "what was computed stays cached");
    log.run(&mut scheduler, 2_000_000);
}

#[test]
fn clearing_is_an_event_and_waits_for_running_requests() {
    let mut scheduler = Scheduler::new(limits(), "m");
    let mut log = Log::default();
    scheduler.submit(vec![submission(&[9; 20], 2)], 0).unwrap();
    log.step(&mut scheduler, 0);
    assert!(!scheduler.clear_cache());
    let now = log.run(&mut scheduler, 0);
    assert!(scheduler.clear_cache());
    log.step(&mut scheduler, now);
    assert_eq!(log.events.last(), Some(&KvEvent::Cleared));
    assert_eq!(scheduler.stats().blocks_stored, 0);
}

#[test]
fn short_of_blocks_the_youngest_gives_way_and_all_finish() {
    // Three sequences of 12 to 40 tokens over ten blocks of four: they cannot all stay.
    let mut scheduler = Scheduler::new(Limits { cache_blocks: 10, ..limits() }, "m");
    let mut log = Log::default();
    for base in [10, 20, 30] {
        scheduler.submit(vec![submission(&[base; 12], 28)], 0).unwrap();
    }
    log.run(&mut scheduler, 0);
    assert!(scheduler.stats().preemptions_total > 0);
    for ticket in 0..3 {
        let said = log.outcomes.iter().filter(
            |(_, outcome)| matches!(outcome, Outcome::Token { ticket: of, .. } if *of == ticket),
        );
        assert_eq!(said.count(), 28, "no token is said twice or lost");
    }
}

#[derive(Clone, Debug)]
struct Arrival {
    after_us: u64,
    prompt: Vec<u32>,
    tokens: u32,
    cancels: Option<prop::sample::Index>,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let arrival = (
        0u64..60_000,
        // Few distinct tokens, so that prefixes are shared by chance.
        prop::collection::vec(0u32..2, 1..40),
        0u32..20,
        prop::option::weighted(0.2, any::<prop::sample::Index>()),
    );
    prop::collection::vec(
        arrival.prop_map(|(after_us, prompt, tokens, cancels)| Arrival {
            after_us,
            prompt,
            tokens,
            cancels,
        }),
        1..25,
    )
}

/// Plays the arrivals, checking after every step; returns what happened.
fn play(limits: Limits, arrivals: &[Arrival]) -> (Log, Stats) {
    let mut scheduler = Scheduler::new(limits, "m");
    let (mut log, mut now_us, mut tickets) = (Log::default(), 0, Vec::new());
    for arrival in arrivals {
        let at_us = now_us + arrival.after_us;
        log.step(&mut scheduler, now_us);
        while let Some(wake_us) = scheduler.next_wake_us().filter(|&wake_us| wake_us <= at_us) {
            log.step(&mut scheduler, wake_us);
            let stats = scheduler.stats();
            assert!(stats.blocks_used <= limits.cache_blocks);
            assert!(stats.running <= limits.seqs_max);
        }
        now_us = at_us;
        tickets.extend(scheduler.submit(vec![submission(&arrival.prompt, arrival.tokens)], now_us));
        if let Some(index) = &arrival.cancels
            && !tickets.is_empty()
        {
            scheduler.cancel(*index.get(&tickets));
        }
    }
    log.run(&mut scheduler, now_us);
    assert_eq!(
        (scheduler.stats().running, scheduler.stats().waiting),
        (0, 0),
        "all came to an end"
    );
    assert_eq!(scheduler.stats().blocks_used, 0, "nobody holds a block any more");
    (log, scheduler.stats())
}

/// Follows the events as a router would; ends with the blocks it believes to be there.
fn follow(events: &[KvEvent]) -> HashMap<Digest, Option<Digest>> {
    let mut stored: HashMap<Digest, Option<Digest>> = HashMap::new();
    for event in events {
        match event {
            KvEvent::Stored { blocks, parent, tokens, block_tokens, .. } => {
                assert_eq!(tokens.len(), blocks.len() * block_tokens);
                let mut parent = *parent;
                for block in blocks {
                    assert!(parent.is_none_or(|parent| stored.contains_key(&parent)));
                    assert_eq!(stored.insert(*block, parent), None, "stored twice");
                    parent = Some(*block);
                }
            }
            KvEvent::Removed { blocks } => {
                for block in blocks {
                    assert!(stored.remove(block).is_some(), "removed, but never stored");
                }
                let gone: HashSet<_> = blocks.iter().collect();
                let orphan = stored.values().flatten().any(|parent| gone.contains(parent));
                assert!(!orphan, "a child outlived its parent");
            }
            KvEvent::Cleared => stored.clear(),
        }
    }
    stored
}

proptest! {
    #[test]
    fn the_same_arrivals_give_the_same_outcomes_and_events(
        arrivals in arrivals(), cache_blocks in 15usize..40, speedup in 0usize..3,
    ) {
        let timing = Timing { speedup_ratio: [0.0, 1.0, 7.0][speedup] };
        let limits = Limits { cache_blocks, batched_tokens_max: 16, timing, ..limits() };
        let (log, stats) = play(limits, &arrivals);
        let (again, stats_again) = play(limits, &arrivals);
        prop_assert_eq!(&log, &again);
        prop_assert_eq!(stats, stats_again);
    }

    #[test]
    fn every_token_is_said_once_in_order_and_events_tell_the_cache(
        arrivals in arrivals(), cache_blocks in 15usize..40,
    ) {
        let limits = Limits { cache_blocks, batched_tokens_max: 16, ..limits() };
        let (log, stats) = play(limits, &arrivals);
        prop_assert_eq!(follow(&log.events).len(), stats.blocks_stored);
        let mut said: BTreeMap<Ticket, usize> = BTreeMap::new();
        let mut before_us = 0;
        for (now_us, outcome) in &log.outcomes {
            prop_assert!(*now_us >= before_us, "time does not go back");
            before_us = *now_us;
            if let Outcome::Token { ticket, index } = outcome {
                let next = said.entry(*ticket).or_default();
                prop_assert_eq!(*index, *next);
                *next += 1;
            }
        }
        let finished = stats.finished_length_total + stats.finished_stop_total;
        prop_assert_eq!(said.values().sum::<usize>() as u64, stats.generated_tokens_total);
        prop_assert!(finished + stats.aborted_total <= arrivals.len() as u64);
    }
}
