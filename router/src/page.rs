//! The admin page: its three files, built in, and the figures behind `GET /status.json`.
//!
//! Owned here: what the page is told and in which units. Not here: gathering the figures
//! (`gather.rs`) and everything the page computes from them. Counters and bucket counts are
//! cumulative; the page takes differences over time, so the router keeps no state for it.

pub mod gather;

use std::collections::BTreeMap;

use serde::Serialize;

/// Rows of each table that are sent: a page with more is not read by a person, and it bounds the
/// answer to about 250 KB.
pub const ROWS_MAX: usize = 500;

/// Header fields that go with each asset and with `/status.json`. The page needs nothing from
/// elsewhere, so a browser is told to refuse everything else.
pub const FIELDS: &str = "content-security-policy: default-src 'none'; script-src 'self'; \
style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
frame-ancestors 'none'\r\nx-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n\
cache-control: no-store\r\n";

/// Where the live figures are.
pub const STATUS_PATH: &str = "/status.json";

/// Content type and bytes of what lies at `path` of the admin listener.
pub fn asset(path: &str) -> Option<(&'static str, &'static [u8])> {
    Some(match path {
        "/" => ("text/html; charset=utf-8", include_bytes!("page/index.html")),
        "/app.css" => ("text/css; charset=utf-8", include_bytes!("page/app.css")),
        "/app.js" => ("text/javascript; charset=utf-8", include_bytes!("page/app.js")),
        "/measure.js" => ("text/javascript; charset=utf-8", include_bytes!("page/measure.js")),
        _ => return None,
    })
}

/// Everything the page shows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// Of the router.
    pub version: &'static str,
    /// Seconds since the process started; the time base of all rates. Falls only by a restart.
    pub uptime_s: f64,
    /// No new connections are taken.
    pub draining: bool,
    /// Sums over all models.
    pub totals: Totals,
    /// By name.
    pub models: Vec<Model>,
    /// Those in trouble first where not all fit, else by id.
    pub workers: Vec<Worker>,
    /// By name.
    pub tenants: Vec<Tenant>,
    /// Watts of all workers that report them; `None` where none does.
    pub power_watts: Option<f64>,
    /// Workers there are; more than `workers` holds when [`ROWS_MAX`] was reached.
    pub workers_total: usize,
    /// Models there are.
    pub models_total: usize,
    /// Tenants there are.
    pub tenants_total: usize,
}

/// Sums over the whole router. Counters run from the start of the process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Requests answered, refusals included.
    pub requests: u64,
    /// Requests being worked on.
    pub running: u64,
    /// Requests that wait for a slot.
    pub queued: u64,
    /// Requests the router refused itself, by reason.
    pub refusals: BTreeMap<String, u64>,
    /// Prompt tokens as engines counted them.
    pub prompt_tokens: u64,
    /// Of these, served from a KV cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// From the request read to the first byte of the answer sent.
    pub time_to_first_token: Buckets,
    /// Between two reads of a stream.
    pub inter_token_latency: Buckets,
}

/// A histogram's cumulative counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Buckets {
    /// Upper bounds in seconds, rising.
    pub bounds_s: Vec<f64>,
    /// Observations up to each bound, and of all of them last: one longer than `bounds_s`.
    pub counts: Vec<u64>,
}

/// What a worker can be given now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Does not answer, or control says so.
    NotReady,
    /// Failed too often lately and is left alone.
    BreakerOpen,
    /// Left alone until now; single requests try whether it is well again.
    BreakerHalfOpen,
    /// Finishes what it has.
    Draining,
    /// Takes requests.
    Ready,
}

/// One engine.
#[derive(Clone, Debug, Serialize)]
pub struct Worker {
    /// Unique in the cluster.
    pub id: String,
    /// The name clients ask for.
    pub model: String,
    /// As in configuration: `vllm`, `llama_cpp`, …
    pub kind: &'static str,
    /// What it can be given now.
    pub state: State,
    /// Requests in flight to it.
    pub inflight: u32,
    /// Requests it works on at once.
    pub slots: u32,
    /// Blocks its KV cache is believed to have room for.
    pub cache_blocks: u64,
    /// Share of them not used yet, 0 to 1.
    pub cache_free_share: f64,
    /// Requests given to it.
    pub picks: u64,
    /// Watts drawn, where its node measures them.
    pub power_watts: Option<f32>,
}

/// All workers of one model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Model {
    /// The name clients ask for.
    pub name: String,
    /// Workers that take requests.
    pub workers_ready: usize,
    /// Workers there are.
    pub workers: usize,
    /// Requests in flight to them.
    pub inflight: u64,
    /// Requests they work on at once.
    pub slots: u64,
    /// Requests that wait for one of them.
    pub queued: u64,
}

/// One tenant's use against its limits. A limit of `None` is none.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Requests being worked on.
    pub running: u64,
    /// How many may be.
    pub running_max: Option<u64>,
    /// Requests in the current minute.
    pub requests_per_minute: u64,
    /// How many may be.
    pub requests_per_minute_max: Option<u64>,
    /// Tokens in the current minute.
    pub tokens_per_minute: u64,
    /// How many may be.
    pub tokens_per_minute_max: Option<u64>,
}

impl Status {
    /// Puts the tables in order, sums what is summed and cuts to [`ROWS_MAX`]. Call it last.
    pub fn finished(mut self) -> Self {
        let watts = self.workers.iter().filter_map(|worker| worker.power_watts);
        self.power_watts =
            watts.fold(None, |sum, watts| Some(sum.unwrap_or(0.0) + f64::from(watts)));
        self.workers_total = self.workers.len();
        self.models_total = self.models.len();
        self.tenants_total = self.tenants.len();
        if self.workers.len() > ROWS_MAX {
            // Nobody looks for the healthy ones.
            self.workers.sort_by(|a, b| a.state.cmp(&b.state).then_with(|| a.id.cmp(&b.id)));
            self.workers.truncate(ROWS_MAX);
        } else {
            self.workers.sort_by(|a, b| a.id.cmp(&b.id));
        }
        self.models.sort_by(|a, b| a.name.cmp(&b.name));
        self.models.truncate(ROWS_MAX);
        self.tenants.sort_by(|a, b| a.name.cmp(&b.name));
        self.tenants.truncate(ROWS_MAX);
        self
    }

    /// The body of `/status.json`.
    pub fn to_json(&self) -> Vec<u8> {
        // Fails only for maps with keys that are no strings, and there are none.
        serde_json::to_vec(self).unwrap_or_else(|_| b"{}".to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All files of the page together, so that it opens at once over the slowest tunnel.
    const BYTES_MAX: usize = 40 << 10;
    const PATHS: [&str; 4] = ["/", "/app.css", "/app.js", "/measure.js"];

    fn text(path: &str) -> &'static str {
        std::str::from_utf8(asset(path).unwrap().1).unwrap()
    }

    fn worker(id: &str, state: State, power_watts: Option<f32>) -> Worker {
        Worker {
            id: id.into(),
            model: "m".into(),
            kind: "vllm",
            state,
            inflight: 0,
            slots: 1,
            cache_blocks: 1,
            cache_free_share: 1.0,
            picks: 0,
            power_watts,
        }
    }

    #[test]
    fn the_page_is_small_and_needs_nothing_from_elsewhere() {
        assert!(PATHS.iter().map(|path| text(path).len()).sum::<usize>() < BYTES_MAX);
        for path in PATHS {
            for (at, _) in text(path).match_indices("//") {
                let url = &text(path)[at.saturating_sub(6)..(at + 24).min(text(path).len())];
                let is_url = url.contains("http://") || url.contains("https://");
                assert!(!is_url || url.contains("//www.w3.org/"), "{path}: {url}");
            }
        }
        assert!(asset("/index.html").is_none());
    }

    #[test]
    fn the_markup_keeps_to_the_policy_it_is_sent_with() {
        let page = text("/");
        for part in page.split('<').skip(1) {
            let tag = part.split('>').next().unwrap_or_default();
            for word in tag.split_whitespace().skip(1) {
                assert!(!word.starts_with("on"), "an event handler in <{tag}>");
                assert!(!word.starts_with("style="), "an inline style in <{tag}>");
            }
            assert!(!tag.starts_with("script") || tag.contains("src="), "an inline script");
            assert!(!tag.starts_with("style"), "an inline style sheet");
        }
        assert!(FIELDS.lines().all(|line| line.contains(": ")) && FIELDS.ends_with("\r\n"));
    }

    #[test]
    fn what_the_page_loads_is_there() {
        for (path, mark) in [("/", "href=\"/"), ("/", "src=\"/"), ("/app.js", "from \"./")] {
            let found: Vec<&str> =
                text(path).split(mark).skip(1).filter_map(|rest| rest.split('"').next()).collect();
            assert!(!found.is_empty(), "{path} {mark}");
            // Two links lead to what the router serves besides its assets.
            for name in found.into_iter().filter(|name| !["metrics", "status.json"].contains(name))
            {
                assert!(asset(&format!("/{name}")).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn a_long_table_is_cut_and_keeps_what_is_in_trouble() {
        let mut status = Status::default();
        for number in 0..ROWS_MAX + 9 {
            status.workers.push(worker(&format!("a{number:04}"), State::Ready, Some(1.5)));
        }
        status.workers.push(worker("z", State::BreakerOpen, None));
        let status = status.finished();
        assert_eq!(status.workers_total, ROWS_MAX + 10);
        assert_eq!(status.workers.len(), ROWS_MAX);
        assert_eq!(status.workers[0].id, "z");
        assert_eq!(status.power_watts, Some((ROWS_MAX + 9) as f64 * 1.5));
        assert!(status.to_json().len() < 256 << 10);
    }

    #[test]
    fn rows_are_in_order_and_power_that_nobody_reports_is_not_zero() {
        let workers = vec![worker("b", State::Ready, None), worker("a", State::Ready, None)];
        let status = Status { workers, ..Status::default() }.finished();
        assert_eq!(status.workers[0].id, "a");
        let json: serde_json::Value = serde_json::from_slice(&status.to_json()).unwrap();
        assert!(json["power_watts"].is_null());
        assert_eq!(json["workers"][0]["state"], "ready");
    }
}
