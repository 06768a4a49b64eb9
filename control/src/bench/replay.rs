//! Replays a trace against simulated workers: discrete events, one run, one outcome. The same seed gives
//! the same outcome.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use dataplane::route::index::LimitsError;
use dataplane::route::pick::Rules;

use super::belief;
use super::cache::Change;
use super::dynamo;
use super::engine::{Engine, Fetch, Model};
use super::outcome::{Outcome, Tally};
use super::policy::{Policy, Router};
use super::pooled::Pooled;
use super::trace::Trace;

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Who decides.
    pub policy: Policy,
    /// Workers, all alike.
    pub workers: usize,
    /// Blocks in each worker's cache.
    pub cache_blocks: usize,
    /// Share of the workers' time that the work at the pooled hit ratio fills.
    pub load: f64,
    /// For ties and hashes.
    pub seed: u64,
    /// Engines and wires.
    pub model: Model,
    /// Of [`Policy::Cognitora`].
    pub rules: Rules,
    /// Of [`Policy::Dynamo`].
    pub dynamo: dynamo::Settings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Prefilled { generation: u32 },
    Fetched,
    Finished { request: usize },
}

#[derive(Clone, Copy, Debug)]
struct Event {
    at_ms: f64,
    number: u64,
    worker: usize,
    what: What,
}

impl Ord for Event {
    /// The earliest is the greatest, so that the heap gives it first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at_ms.total_cmp(&self.at_ms).then(other.number.cmp(&self.number))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Event {}

struct Replay<'a> {
    trace: &'a Trace,
    model: Model,
    engines: Vec<Engine>,
    router: Router<'a>,
    events: BinaryHeap<Event>,
    events_made: u64,
    /// Changes of caches on their way to the router; the delay is one for all, so they keep their order.
    under_way: VecDeque<(f64, usize, Change)>,
    arrived_ms: Vec<f64>,
    tally: Tally,
}

/// Runs the whole trace; `progress` is told now and then how many requests have arrived.
///
/// Time is compressed so that the work fills `setup.load` of the workers.
///
/// # Errors
/// More workers or blocks than the router's index may have.
pub fn run(
    trace: &Trace,
    pooled: &Pooled,
    setup: &Setup,
    progress: impl FnMut(usize),
) -> Result<Outcome, LimitsError> {
    run_at(trace, setup, pooled.compression(trace, setup), progress)
}

/// As [`run`], with the trace's times multiplied by `stretch`.
///
/// # Errors
/// As [`run`].
pub fn run_at(
    trace: &Trace,
    setup: &Setup,
    stretch: f64,
    mut progress: impl FnMut(usize),
) -> Result<Outcome, LimitsError> {
    let requests = trace.requests();
    let start_ms = requests.first().map_or(0.0, |request| request.arrival_ms);
    let arrived_ms: Vec<f64> =
        requests.iter().map(|request| (request.arrival_ms - start_ms) * stretch).collect();
    let named = if setup.policy.looks_at_prefixes() { trace.unique_blocks() } else { 0 };
    let digests = belief::digests(named);
    let mut replay = Replay {
        trace,
        model: setup.model,
        engines: (0..setup.workers).map(|_| Engine::new(setup.cache_blocks)).collect(),
        router: Router::new(trace, &digests, setup)?,
        events: BinaryHeap::new(),
        events_made: 0,
        under_way: VecDeque::new(),
        tally: Tally::new(requests.len(), arrived_ms.last().copied().unwrap_or(0.0)),
        arrived_ms,
    };
    for number in 0..requests.len() {
        if number % PROGRESS_REQUESTS == 0 {
            progress(number);
        }
        let now_ms = replay.arrived_ms[number];
        replay.run_until(now_ms);
        replay.arrive(now_ms, number);
    }
    replay.run_until(f64::INFINITY);
    progress(requests.len());
    let busy_ms = replay.engines.iter().map(Engine::busy_ms).collect();
    Ok(replay.tally.finish(busy_ms))
}

/// Between two words on progress.
const PROGRESS_REQUESTS: usize = 512;

impl Replay<'_> {
    fn run_until(&mut self, until_ms: f64) {
        while let Some(event) = self.events.peek().copied().filter(|event| event.at_ms <= until_ms)
        {
            self.events.pop();
            self.happen(event);
        }
    }

    fn schedule(&mut self, at_ms: f64, worker: usize, what: What) {
        self.events_made += 1;
        self.events.push(Event { at_ms, number: self.events_made, worker, what });
    }

    fn arrive(&mut self, now_ms: f64, number: usize) {
        self.hear(now_ms);
        self.router.arrive(now_ms, number);
        self.dispatch(now_ms);
    }

    /// Events reach the router.
    fn hear(&mut self, now_ms: f64) {
        while let Some((_, worker, change)) =
            self.under_way.pop_front_if(|(due_ms, ..)| *due_ms <= now_ms)
        {
            self.router.learn(worker, change);
        }
    }

    /// Gives workers what the router does not hold back.
    fn dispatch(&mut self, now_ms: f64) {
        while let Some((number, worker)) = self.router.next(now_ms) {
            let fetch = self.fetch(number, worker);
            let ready_ms = self.engines[worker].push(now_ms, number, fetch);
            if ready_ms > now_ms {
                self.schedule(ready_ms, worker, What::Fetched);
            }
            self.start(now_ms, worker);
        }
    }

    /// What the daemon of `worker` could bring for the request.
    fn fetch(&self, number: usize, worker: usize) -> Option<Fetch> {
        if !self.model.peer_fetch {
            return None;
        }
        let request = &self.trace.requests()[number];
        let blocks = self.trace.blocks_of(request);
        let here = self.engines[worker].depth(blocks);
        let there = self.engines.iter().map(|engine| engine.depth(blocks)).max().unwrap_or(0);
        let (from, to) =
            (self.trace.tokens_in(request, here), self.trace.tokens_in(request, there));
        (there > here).then(|| Fetch {
            blocks: there,
            fetch_ms: (to - from) as f64 * self.model.peer_token_ms,
            compute_ms: self.model.prefill_ms(from, to),
        })
    }

    fn start(&mut self, now_ms: f64, worker: usize) {
        let (trace, model) = (self.trace, self.model);
        let engine = &mut self.engines[worker];
        let Some(job) = engine.next(now_ms) else { return };
        let number = job.request;
        let request = &trace.requests()[number];
        let blocks = trace.blocks_of(request);
        let started = engine.start(now_ms, job, blocks, |started| {
            let found = trace.tokens_in(request, started.found_blocks);
            model.prefill_ms(found, u64::from(request.prompt_tokens))
        });
        self.tally.started(self.arrived_ms[number], blocks.len(), started);
        self.announce(worker);
    }

    fn announce(&mut self, worker: usize) {
        if let Some((at_ms, generation)) = self.engines[worker].announce() {
            self.schedule(at_ms, worker, What::Prefilled { generation });
        }
    }

    fn happen(&mut self, event: Event) {
        let Event { at_ms: now_ms, worker, .. } = event;
        match event.what {
            What::Fetched => self.start(now_ms, worker),
            What::Prefilled { generation } => {
                let Some(job) = self.engines[worker].finish(now_ms, generation) else { return };
                self.prefilled(now_ms, worker, job.request);
                self.start(now_ms, worker);
                self.hear(now_ms);
                self.dispatch(now_ms);
            }
            What::Finished { request } => {
                let prompt_tokens = self.trace.requests()[request].prompt_tokens;
                self.engines[worker].decode(now_ms, -self.model.decode_share(prompt_tokens));
                self.router.finished(request, worker);
                self.announce(worker);
            }
        }
    }

    fn prefilled(&mut self, now_ms: f64, worker: usize, number: usize) {
        let request = &self.trace.requests()[number];
        let blocks = self.trace.blocks_of(request);
        let (engine, under_way) = (&mut self.engines[worker], &mut self.under_way);
        let due_ms = now_ms + self.model.event_delay_ms;
        engine.store(blocks, |change| under_way.push_back((due_ms, worker, change)));
        self.router.first_token(now_ms, number, worker);
        let moved_ms = match self.model.decodes_elsewhere {
            true => f64::from(request.prompt_tokens) * self.model.peer_token_ms,
            false => 0.0,
        };
        self.tally.first_token(now_ms + moved_ms - self.arrived_ms[number]);
        if self.model.decodes_elsewhere {
            self.router.finished(number, worker);
            return;
        }
        let share = self.model.decode_share(request.prompt_tokens);
        let decode_ms = f64::from(request.output_tokens) * self.model.answer_token_ms;
        engine.decode(now_ms, share);
        engine.decoded(share * decode_ms);
        self.schedule(now_ms + decode_ms, worker, What::Finished { request: number });
    }
}
