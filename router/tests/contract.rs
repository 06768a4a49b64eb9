//! The router through its public face: the real binary, real sockets, and an engine that does on
//! command what engines do when they fail. No test here needs a model.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "contract/client.rs"]
mod client;
#[path = "contract/engine.rs"]
mod engine;
#[path = "contract/failure.rs"]
mod failure;
#[path = "contract/frames.rs"]
mod frames;
#[path = "contract/handover.rs"]
mod handover;
#[path = "contract/hostile.rs"]
mod hostile;
#[path = "contract/http.rs"]
mod http;
#[path = "contract/http2.rs"]
mod http2;
#[path = "contract/kv_events.rs"]
mod kv_events;
#[path = "contract/openai.rs"]
mod openai;
#[path = "contract/passthrough.rs"]
mod passthrough;
#[path = "contract/process.rs"]
mod process;
#[path = "contract/routing.rs"]
mod routing;
#[path = "contract/shared_load.rs"]
mod shared_load;
#[path = "contract/smuggling.rs"]
mod smuggling;
#[path = "contract/start.rs"]
mod start;
#[path = "contract/tls.rs"]
mod tls;
#[path = "contract/warm.rs"]
mod warm;
