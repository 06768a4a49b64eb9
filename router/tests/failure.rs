//! When engines fail: time limits, retries and their budget, breakers, outliers, hedging, streams that
//! go on elsewhere, gone clients, drains. Through the public face: the real binary, real sockets, engines
//! that always say the same and fail where the test says.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "failure/ask.rs"]
mod ask;
#[path = "failure/breakers.rs"]
mod breakers;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "contract/client.rs"]
mod client;
#[path = "failure/control.rs"]
mod control;
#[path = "failure/drain.rs"]
mod drain;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "contract/engine.rs"]
mod engine;
#[path = "failure/gone.rs"]
mod gone;
#[path = "failure/heard.rs"]
mod heard;
#[path = "failure/hedging.rs"]
mod hedging;
#[path = "failure/outliers.rs"]
mod outliers;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "contract/process.rs"]
mod process;
#[path = "failure/resume.rs"]
mod resume;
#[path = "failure/retries.rs"]
mod retries;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "failure/speaker.rs"]
mod speaker;
#[path = "failure/timeouts.rs"]
mod timeouts;
#[path = "failure/unresumable.rs"]
mod unresumable;
