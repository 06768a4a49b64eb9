//! The simulator: a cluster of modelled engines behind the router's real decision, fed from a trace.
//!
//! * what comes in: [`trace`] (read), [`synth`] (made up);
//! * the cluster: [`engine`] (the model, stated there), [`cache`], [`replay`] (discrete events);
//! * who decides: [`policy`], by what the router can know ([`belief`]); [`dynamo`] for comparison;
//! * what comes out: [`pooled`] (what the trace allows), [`outcome`], [`compare`], [`seeds`], [`page`], [`plan`].
//!
//! All of it is a function of its arguments: no clock, no randomness but the seed, no files but those
//! the caller opens. It is `cgnctl bench`, and needs no control.

pub mod belief;
pub mod cache;
pub mod compare;
pub mod dynamo;
pub mod engine;
pub mod outcome;
pub mod page;
pub mod plan;
pub mod policy;
pub mod pooled;
pub mod replay;
pub mod seeds;
pub mod synth;
#[cfg(test)]
mod tests;
pub mod trace;
