//! What the main table compares.

use crate::house::House;
use crate::nginx;
use crate::stage::{Running, Stage};

/// One row of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// No proxy: the floor.
    Direct,
    /// nginx, one worker, kept upstream connections, no buffering.
    Nginx,
    /// The router with its default configuration before one worker.
    Plain,
    /// Everything on.
    Everything,
    /// Everything on, each request with a deadline.
    Deadline,
    /// Everything on, KV-aware routing by text forced on before two workers.
    KvText,
}

impl Proxy {
    /// In the order of a round.
    pub const ALL: [Proxy; 6] = [
        Proxy::Direct,
        Proxy::Nginx,
        Proxy::Plain,
        Proxy::Everything,
        Proxy::Deadline,
        Proxy::KvText,
    ];

    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Proxy::Direct => "direct",
            Proxy::Nginx => "nginx",
            Proxy::Plain => "cgn-router, plain",
            Proxy::Everything => "cgn-router, all on",
            Proxy::Deadline => "cgn-router, all on + deadline",
            Proxy::KvText => "cgn-router, all on + KV by text",
        }
    }

    /// Header fields its requests carry besides those that all carry.
    pub fn fields(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Proxy::Deadline => &[("x-cgn-deadline-ms", "60000")],
            _ => &[],
        }
    }

    /// Starts it and waits until it accepts.
    pub fn start(self, stage: &Stage) -> Result<Running, String> {
        match self {
            Proxy::Direct => Ok(stage.direct()),
            Proxy::Nginx => nginx::plain(stage),
            Proxy::Plain => House::plain(stage).start(stage),
            Proxy::Everything | Proxy::Deadline => House::everything(stage).start(stage),
            Proxy::KvText => House::kv_text(stage).start(stage),
        }
    }
}
