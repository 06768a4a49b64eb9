//! `/metrics` in Prometheus' text form, under the names of the engine mimicked. Pure.

use std::fmt::Write;

use super::options::{Dialect, Settings};
use super::scheduler::Stats;

/// The exposition of `stats`.
pub fn render(settings: &Settings, stats: &Stats) -> String {
    let mut page = Page { text: String::new(), labels: String::new() };
    match settings.dialect {
        Dialect::LlamaCpp => llama_cpp(&mut page, stats),
        Dialect::Vllm => {
            let model =
                settings.model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            page.labels = format!("engine=\"0\",model_name=\"{model}\"");
            vllm(&mut page, settings, stats);
        }
    }
    page.text
}

struct Page {
    text: String,
    labels: String,
}

impl Page {
    fn counter(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, help, "counter");
        self.sample(name, "", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, help, "gauge");
        self.sample(name, "", value);
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a String cannot fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, label: &str, value: impl std::fmt::Display) {
        let comma = if self.labels.is_empty() || label.is_empty() { "" } else { "," };
        let labels = format!("{}{comma}{label}", self.labels);
        let _ = match labels.is_empty() {
            true => writeln!(self.text, "{name} {value}"),
            false => writeln!(self.text, "{name}{{{labels}}} {value}"),
        };
    }
}

fn vllm(page: &mut Page, settings: &Settings, stats: &Stats) {
    let usage = stats.blocks_used as f64 / settings.limits.cache_blocks as f64;
    page.gauge("vllm:num_requests_running", "Sequences running.", stats.running);
    page.gauge("vllm:num_requests_waiting", "Sequences waiting.", stats.waiting);
    page.gauge("vllm:kv_cache_usage_perc", "KV blocks in use; 1 is all of them.", usage);
    page.gauge("vllm:gpu_cache_usage_perc", "The same under its older name.", usage);
    page.counter(
        "vllm:prefix_cache_queries_total",
        "Prompt tokens looked up in the prefix cache.",
        stats.cache_queried_tokens_total,
    );
    page.counter(
        "vllm:prefix_cache_hits_total",
        "Prompt tokens found in the prefix cache.",
        stats.cache_hit_tokens_total,
    );
    page.counter("vllm:num_preemptions_total", "Preempted sequences.", stats.preemptions_total);
    page.counter("vllm:prompt_tokens_total", "Prompt tokens.", stats.prompt_tokens_total);
    page.counter("vllm:generation_tokens_total", "Tokens said.", stats.generated_tokens_total);
    page.head("vllm:request_success_total", "Finished sequences.", "counter");
    for (reason, value) in [
        ("stop", stats.finished_stop_total),
        ("length", stats.finished_length_total),
        ("abort", stats.aborted_total),
    ] {
        page.sample("vllm:request_success_total", &format!("finished_reason=\"{reason}\""), value);
    }
}

fn llama_cpp(page: &mut Page, stats: &Stats) {
    let seconds = |us: u64| us as f64 / 1e6;
    let per = |value: f64, by: f64| if by > 0.0 { value / by } else { 0.0 };
    let computed = stats.prompt_tokens_total - stats.prompt_cached_tokens_total;
    page.counter(
        "llamacpp:prompt_tokens_total",
        "Number of prompt tokens processed, excluding cached tokens",
        computed,
    );
    page.counter(
        "llamacpp:prompt_tokens_cached_total",
        "Number of prompt tokens reused from the cache",
        stats.prompt_cached_tokens_total,
    );
    let prefill_s = seconds(stats.prefill_us_total);
    page.counter("llamacpp:prompt_seconds_total", "Total time spent processing prompts", prefill_s);
    page.counter(
        "llamacpp:tokens_predicted_total",
        "Number of generation tokens processed",
        stats.generated_tokens_total,
    );
    let decode_s = seconds(stats.decode_us_total);
    page.counter(
        "llamacpp:tokens_predicted_seconds_total",
        "Total time spent generating tokens",
        decode_s,
    );
    page.counter("llamacpp:n_decode_total", "Total number of steps", stats.steps_total);
    page.counter(
        "llamacpp:n_tokens_max",
        "Largest observed sequence length (prompt + generation)",
        stats.sequence_tokens_max,
    );
    page.gauge(
        "llamacpp:prompt_tokens_seconds",
        "Average prompt throughput in tokens/s",
        per(computed as f64, prefill_s),
    );
    page.gauge(
        "llamacpp:predicted_tokens_seconds",
        "Average generation throughput in tokens/s",
        per(stats.generated_tokens_total as f64, decode_s),
    );
    page.gauge("llamacpp:requests_processing", "Number of requests processing", stats.running);
    page.gauge("llamacpp:requests_deferred", "Number of requests deferred", stats.waiting);
    page.gauge(
        "llamacpp:n_busy_slots_per_decode",
        "Average number of busy slots per step",
        per(stats.step_seqs_total as f64, stats.steps_total as f64),
    );
}
