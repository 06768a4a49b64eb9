//! A whole node over real processes with simulated engines: control, agent, router and `cgnctl`, from
//! `recipe up` to `recipe down`, with engines, control and agent killed in between.
//!
//! Times in here only keep a broken test from hanging; none is asserted.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "node/client.rs"]
mod client;
#[path = "node/fake_router.rs"]
mod fake_router;
#[path = "supervise_engines/held_truth.rs"]
mod held_truth;
#[expect(dead_code, reason = "shared with llama.rs, which has a KV daemon in it")]
#[path = "node/house.rs"]
mod house;
#[path = "node/load.rs"]
mod load;
#[path = "node/process.rs"]
mod process;
#[path = "node/recipe.rs"]
mod recipe;

#[path = "node/agent_away.rs"]
mod agent_away;
#[path = "node/agree.rs"]
mod agree;
#[path = "node/control_away.rs"]
mod control_away;
#[path = "node/decisions.rs"]
mod decisions;
#[path = "node/drain.rs"]
mod drain;
#[path = "node/engine_away.rs"]
mod engine_away;
#[path = "node/fleet.rs"]
mod fleet;
#[path = "node/refusal.rs"]
mod refusal;
#[path = "node/share.rs"]
mod share;
#[path = "node/spread.rs"]
mod spread;
#[path = "node/up.rs"]
mod up;
