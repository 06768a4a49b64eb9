//! `cgnctl bench`: routing policies compared on a trace and clusters planned for it, in simulation. Needs no control and no engine.

use std::io::{BufReader, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use dataplane::route::pick::Rules;
use dataplane::route::speeds::Speeds;

use super::output::{Table, print};
use super::progress::Progress;
use super::{Failure, Global};
use crate::bench::compare::{Comparison, Row};
use crate::bench::dynamo::Settings;
use crate::bench::engine::Model;
use crate::bench::page;
use crate::bench::plan::{self, Plan, Target, Topology};
use crate::bench::policy::Policy;
use crate::bench::replay::Setup;
use crate::bench::seeds::{self, OverSeeds, Range, SEEDS_MAX};
use crate::bench::synth::{self, Kind};
use crate::bench::trace::Trace;

/// More workers than this make a run of hours.
const WORKERS_MAX: usize = 4_096;
/// A worker's cache: at 16 tokens a block, 1 G tokens.
const CACHE_BLOCKS_MAX: usize = 1 << 26;

/// What a cluster is made of, for all commands of `bench`.
#[derive(Debug, Args)]
pub(super) struct Input {
    /// A file of one JSON object a line: timestamp (ms), input_length, output_length, hash_ids.
    trace: PathBuf,
    /// Tokens in a block of the trace.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    block_tokens: u32,
    /// Blocks in each worker's cache [default: a quarter of the trace's unique blocks in total].
    #[arg(long, value_name = "BLOCKS")]
    cache_blocks: Option<usize>,
    /// For ties, hashes and draws; the same seed gives the same answer.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A KV daemon fetches blocks from other workers: 5 GB/s, 128 KiB a token.
    #[arg(long)]
    peer_fetch: bool,
    /// What a prefill costs: attention within batches of 8,192 tokens, or to the whole prompt.
    #[arg(long, value_enum, default_value_t = EngineName::Linear)]
    engine: EngineName,
}

/// As it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineName {
    Linear,
    Quadratic,
}

/// Options of `bench replay`.
#[derive(Debug, Args)]
pub(super) struct Replay {
    #[command(flatten)]
    input: Input,
    /// Workers, all alike.
    #[arg(long, value_name = "N", default_value_t = 16)]
    workers: usize,
    /// Share of the workers' time that the trace's work fills, if all caches were one: time is
    /// compressed until it does.
    #[arg(long, value_name = "SHARE", default_value_t = 0.8)]
    load: f64,
    /// Who decides; may be given more than once [default: all].
    #[arg(long, value_enum)]
    policy: Vec<PolicyName>,
    /// Also writes a report with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Runs so many seeds, from --seed up, and prints least, median and most.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "html")]
    seeds: usize,
    /// Of dynamo: requests wait while all workers have more than this share of a batch of prefill
    /// tokens [default: no queue].
    #[arg(long, value_name = "SHARE")]
    dynamo_queue_threshold: Option<f64>,
    /// Of dynamo: its queue gives those with the least to compute first.
    #[arg(long)]
    dynamo_shortest_first: bool,
    /// Of dynamo: what was routed counts as present before events say so.
    #[arg(long)]
    dynamo_predicts: bool,
}

/// Options of `bench plan`.
#[derive(Debug, Args)]
pub(super) struct Planned {
    #[command(flatten)]
    input: Input,
    /// The time to the first token to meet.
    #[arg(long, value_name = "MS")]
    ttft_ms: f64,
    /// By this share of the requests.
    #[arg(long, value_name = "SHARE", default_value_t = 0.99)]
    share: f64,
    /// The trace's rate is multiplied by this.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    rate: f64,
    /// Workers at most.
    #[arg(long, value_name = "N", default_value_t = 64)]
    workers_max: usize,
}

/// As it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum PolicyName {
    Cognitora,
    RoundRobin,
    LeastLoaded,
    ConsistentHash,
    Dynamo,
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Policy {
        match name {
            PolicyName::Cognitora => Policy::Cognitora,
            PolicyName::RoundRobin => Policy::RoundRobin,
            PolicyName::LeastLoaded => Policy::LeastLoaded,
            PolicyName::ConsistentHash => Policy::ConsistentHash,
            PolicyName::Dynamo => Policy::Dynamo,
        }
    }
}

/// Options of `bench trace`.
#[derive(Debug, Args)]
pub(super) struct Made {
    /// What the traffic is like.
    #[arg(value_enum)]
    kind: KindName,
    /// Lines to write.
    #[arg(long, default_value_t = 12_000)]
    requests: usize,
    /// Tokens in a block.
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    block_tokens: u32,
    /// The same seed gives the same trace.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindName {
    /// Multi-turn chats from a few system prompts.
    Chats,
    /// Bursts of agents with long prompts and many steps.
    Agents,
    /// Questions about documents of a shared pool.
    Documents,
    /// Prompts that have nothing in common.
    Fresh,
}

impl Input {
    pub(super) fn read(&self) -> Result<Trace, Failure> {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::Usage(format!("{}: {error}", self.trace.display()))
        };
        let file = std::fs::File::open(&self.trace).map_err(|error| wrong(&error))?;
        Trace::read(BufReader::new(file), self.block_tokens).map_err(|error| wrong(&error))
    }

    /// The cluster to simulate, checked.
    pub(super) fn setup(&self, trace: &Trace, workers: usize, load: f64) -> Result<Setup, Failure> {
        let within = |what: &str, value: f64, least: f64, most: f64| match value {
            value if (least..=most).contains(&value) => Ok(()),
            value => Err(Failure::Usage(format!(
                "--{what} must lie between {least} and {most}, not be {value}"
            ))),
        };
        within("workers", workers as f64, 1.0, WORKERS_MAX as f64)?;
        within("load", load, 0.001, 100.0)?;
        within("block-tokens", f64::from(self.block_tokens), 1.0, f64::from(1u32 << 20))?;
        let quarter = trace.unique_blocks() / (4 * workers).max(1);
        let cache_blocks = self.cache_blocks.unwrap_or(quarter.max(1));
        within("cache-blocks", cache_blocks as f64, 1.0, CACHE_BLOCKS_MAX as f64)?;
        let (model, speeds) = match self.engine {
            EngineName::Linear => (Model::default(), Speeds::default()),
            EngineName::Quadratic => (Model::quadratic(), Model::quadratic_speeds()),
        };
        Ok(Setup {
            policy: Policy::Cognitora,
            workers,
            cache_blocks,
            load,
            seed: self.seed,
            model: Model { peer_fetch: self.peer_fetch, ..model },
            rules: Rules { speeds, ..Rules::default() },
            dynamo: Settings::default(),
        })
    }
}

/// Runs and prints the table.
pub(super) fn replay(global: &Global, replay: &Replay) -> Result<(), Failure> {
    if !(1..=SEEDS_MAX).contains(&replay.seeds) {
        let told = format!("--seeds must lie between 1 and {SEEDS_MAX}");
        return Err(Failure::Usage(told));
    }
    if replay.dynamo_queue_threshold.is_some_and(|share| !(share.is_finite() && share >= 0.0)) {
        return Err(Failure::Usage("--dynamo-queue-threshold must be 0 or more".to_owned()));
    }
    let trace = replay.input.read()?;
    let mut setup = replay.input.setup(&trace, replay.workers, replay.load)?;
    setup.dynamo = Settings {
        queue_threshold: replay.dynamo_queue_threshold,
        shortest_first: replay.dynamo_shortest_first,
        predicts: replay.dynamo_predicts,
    };
    let policies: Vec<Policy> = match replay.policy.as_slice() {
        [] => Policy::ALL.to_vec(),
        named => named.iter().copied().map(Policy::from).collect(),
    };
    let steps = trace.requests().len().saturating_mul(policies.len()).saturating_mul(replay.seeds);
    let mut progress = Progress::start(u32::try_from(steps).unwrap_or(u32::MAX));
    let mut found = seeds::run(&trace, &setup, &policies, replay.seeds, |done, policy| {
        progress.show(u32::try_from(done).unwrap_or(u32::MAX), policy.as_str());
    })
    .map_err(|error| Failure::Usage(error.to_string()))?;
    progress.finish();
    if replay.seeds > 1 {
        return print(global.output, &found, render_seeds);
    }
    // One seed, checked above.
    let Some(comparison) = found.seeds.pop() else { return Ok(()) };
    if let Some(file) = &replay.html {
        std::fs::write(file, page::html(&comparison)).map_err(|error| {
            Failure::Failed(format!("{} cannot be written: {error}", file.display()))
        })?;
    }
    print(global.output, &comparison, render)
}

fn render_seeds(found: &OverSeeds) -> String {
    let head = ["POLICY", "OF POOLED", "TTFT MEAN", "x DYNAMO", "P99", "x DYNAMO", "MAX/MEAN LOAD"];
    let mut table = Table::new(head);
    let show = |range: &Range, digits: usize| {
        let Range { least, median, most } = range;
        format!("{median:.digits$} ({least:.digits$}-{most:.digits$})")
    };
    let ratio =
        |range: &Option<Range>| range.as_ref().map_or(String::new(), |range| show(range, 3));
    for (policy, ranges) in &found.policies {
        table.row([
            (*policy).to_owned(),
            show(&ranges.hit_of_pooled, 3),
            show(&ranges.ttft_mean_ms, 0),
            ratio(&ranges.ttft_mean_of_dynamo),
            show(&ranges.ttft_p99_ms, 0),
            ratio(&ranges.ttft_p99_of_dynamo),
            show(&ranges.max_over_mean_load, 2),
        ]);
    }
    let count = found.seeds.len();
    format!("median of {count} seeds (least-most), times in ms\n\n{table}")
}

/// Searches and prints the best, and what else was tried at that size.
pub(super) fn plan(global: &Global, planned: &Planned) -> Result<(), Failure> {
    let Planned { input, ttft_ms, share, rate, workers_max } = planned;
    let sane = |value: &f64, most: f64| value.is_finite() && *value > 0.0 && *value <= most;
    if !(sane(ttft_ms, 1e9) && sane(share, 1.0) && sane(rate, 1e6)) {
        return Err(Failure::Usage(
            "--ttft-ms, --rate and --share must be above 0, and --share at most 1".to_owned(),
        ));
    }
    let trace = input.read()?;
    // The search finds its own number of workers; a cache is sized for 16 where none is given.
    let setup = input.setup(&trace, 16, 1.0)?;
    let target =
        Target { ttft_ms: *ttft_ms, share: *share, workers_max: *workers_max, rate: *rate };
    let mut progress = Progress::start(u32::try_from(*workers_max).unwrap_or(u32::MAX));
    let found = plan::search(&trace, &setup, &target, |workers| {
        progress.show(u32::try_from(workers).unwrap_or(u32::MAX), &format!("{workers} workers"));
    })
    .map_err(|error| Failure::Usage(error.to_string()))?;
    progress.finish();
    print(global.output, &found, render_plan)
}

fn render_plan(found: &Plan) -> String {
    let head = ["", "WORKERS", "TOPOLOGY", "WEIGHTS", "TTFT", "MEAN", "HIT RATIO"];
    let mut table = Table::new(head);
    let last = found.tried.last().map_or(0, |point| point.workers);
    for point in found.tried.iter().filter(|point| point.workers == last) {
        table.row([
            if found.best.as_ref() == Some(point) { "*" } else { "" }.to_owned(),
            point.workers.to_string(),
            match point.topology {
                Topology::Aggregated => "aggregated".to_owned(),
                Topology::Split { prefill, decode } => {
                    format!("{prefill} prefill + {decode} decode")
                }
            },
            point.weights.to_owned(),
            format!("{:.0} ms", point.ttft_ms),
            format!("{:.0} ms", point.ttft_mean_ms),
            format!("{:.4}", point.hit_ratio),
        ]);
    }
    let said = match &found.best {
        Some(best) => format!("{} workers meet the target", best.workers),
        None => format!("nothing up to {last} workers meets the target; what {last} reach:"),
    };
    format!("{said}\n\n{table}")
}

fn render(comparison: &Comparison) -> String {
    let Comparison { requests, unique_blocks, workers, cache_blocks, .. } = comparison;
    let mut table = Table::new([
        "POLICY",
        "HIT RATIO",
        "OF POOLED",
        "TTFT MEAN",
        "P50",
        "P99",
        "MAX/MEAN LOAD",
    ]);
    let by_mean = |a: &(&&str, &Row), b: &(&&str, &Row)| {
        a.1.outcome.ttft_mean_ms.total_cmp(&b.1.outcome.ttft_mean_ms)
    };
    let mut rows: Vec<_> = comparison.policies.iter().collect();
    rows.sort_by(by_mean);
    for (policy, row) in &rows {
        let Row { outcome, pooled_lru_hit_ratio, .. } = row;
        table.row([
            (**policy).to_owned(),
            format!("{:.4}", outcome.hit_ratio),
            format!("{:.3}", outcome.hit_ratio / pooled_lru_hit_ratio.max(1e-9)),
            format!("{:.0} ms", outcome.ttft_mean_ms),
            format!("{:.0} ms", outcome.ttft_p50_ms),
            format!("{:.0} ms", outcome.ttft_p99_ms),
            format!("{:.3}", outcome.max_over_mean_load),
        ]);
    }
    let (pooled, ideal) =
        rows.first().map_or((0.0, 0.0), |(_, row)| (row.pooled_lru_hit_ratio, row.ideal_hit_ratio));
    format!(
        "trace    {requests} requests, {unique_blocks} unique blocks, time compressed {:.1} times\n\
         cluster  {workers} workers, {cache_blocks} blocks of cache each, load {:.0} %{}\n\
         allowed  {pooled:.4} with one cache of all workers' size, {ideal:.4} with one without end\n\n{table}",
        comparison.time_compressed_by,
        comparison.load * 100.0,
        if comparison.peer_fetch { ", blocks fetched from peers" } else { "" },
    )
}

/// Writes a made-up trace to stdout.
pub(super) fn make(made: &Made) -> Result<(), Failure> {
    if made.requests == 0 || made.requests > crate::bench::trace::REQUESTS_MAX {
        return Err(Failure::Usage(format!(
            "--requests must lie between 1 and {}",
            crate::bench::trace::REQUESTS_MAX
        )));
    }
    if made.block_tokens == 0 {
        return Err(Failure::Usage("--block-tokens must be 1 or more".to_owned()));
    }
    let kind = match made.kind {
        KindName::Chats => Kind::Chats,
        KindName::Agents => Kind::Agents,
        KindName::Documents => Kind::Documents,
        KindName::Fresh => Kind::Fresh,
    };
    let failed = |error: &dyn std::fmt::Display| {
        Failure::Failed(format!("stdout cannot be written: {error}"))
    };
    let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
    for line in synth::lines(kind, made.requests, made.block_tokens, made.seed) {
        let text = serde_json::to_string(&line).map_err(|error| failed(&error))?;
        writeln!(stdout, "{text}").map_err(|error| failed(&error))?;
    }
    stdout.flush().map_err(|error| failed(&error))
}
