//! What a trace allows at best: the ideal hit ratio (a cache without end), that of one LRU as large as
//! all workers' together, and the work that is left then, by which load is measured.

use super::cache::Cache;
use super::engine::Model;
use super::replay::Setup;
use super::trace::Trace;

/// Figures of a trace that no policy changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pooled {
    /// Share of blocks that occurred before, with all before them.
    pub ideal_hit_ratio: f64,
    /// Share of blocks found in one LRU of all workers' size.
    pub hit_ratio: f64,
    /// Engine time of the whole trace at that hit ratio, decoding included, in ms.
    pub work_ms: f64,
}

impl Pooled {
    /// Runs the trace through one cache of `cache_blocks`.
    pub fn of(trace: &Trace, cache_blocks: usize, model: &Model) -> Pooled {
        let mut pool = Cache::new(cache_blocks);
        let mut endless = Cache::new(trace.unique_blocks());
        let (mut ideal_hits, mut hits, mut work_ms) = (0, 0, 0.0);
        for request in trace.requests() {
            let blocks = trace.blocks_of(request);
            let found = pool.depth(blocks);
            hits += found;
            ideal_hits += endless.depth(blocks);
            pool.use_all(blocks, |_| {});
            endless.use_all(blocks, |_| {});
            let cached = trace.tokens_in(request, found);
            work_ms += model.prefill_ms(cached, u64::from(request.prompt_tokens));
            let decode_ms = f64::from(request.output_tokens) * model.answer_token_ms;
            work_ms += decode_ms * model.decode_share(request.prompt_tokens);
        }
        let all = trace.blocks() as f64;
        Pooled { ideal_hit_ratio: ideal_hits as f64 / all, hit_ratio: hits as f64 / all, work_ms }
    }

    /// By what the trace's times are multiplied so that the work fills `load` of the workers.
    pub fn compression(&self, trace: &Trace, setup: &Setup) -> f64 {
        let times = || trace.requests().iter().map(|request| request.arrival_ms);
        let span_ms = times().fold(0.0, f64::max) - times().fold(f64::INFINITY, f64::min);
        let wanted_ms = self.work_ms / (setup.workers as f64 * setup.load);
        if span_ms > 0.0 { wanted_ms / span_ms } else { 1.0 }
    }
}
