//! Who may come in, how much each may take, who waits for whom, and what an operator sees of it: the real
//! binary, real sockets, engines, token issuers and collectors on threads. No test here needs a model.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "gateway/admin.rs"]
mod admin;
#[path = "gateway/certificates.rs"]
mod certificates;
#[path = "gateway/check.rs"]
mod check;
#[path = "contract/client.rs"]
mod client;
#[path = "gateway/deadlines.rs"]
mod deadlines;
#[path = "contract/engine.rs"]
mod engine;
#[path = "gateway/gate.rs"]
mod gate;
#[path = "gateway/gone.rs"]
mod gone;
#[path = "gateway/issuer.rs"]
mod issuer;
#[path = "gateway/keys.rs"]
mod keys;
#[path = "gateway/limits.rs"]
mod limits;
#[path = "gateway/lines.rs"]
mod lines;
#[path = "gateway/metrics.rs"]
mod metrics;
#[path = "contract/process.rs"]
mod process;
#[path = "gateway/queue.rs"]
mod queue;
#[path = "gateway/steering.rs"]
mod steering;
#[path = "gateway/tenants.rs"]
mod tenants;
#[path = "gateway/tokens.rs"]
mod tokens;
#[path = "gateway/traces.rs"]
mod traces;
