//! `cgn-router`: the OpenAI gateway. One thread per core, completion I/O, one hop to the engine.
//!
//! Start reading at [`request`]: the life of a request is that file, one phase a line, one file a
//! phase. Three kinds of code are kept apart:
//!
//! * deciding, pure: [`http`], [`parse`], [`openai`], [`usage`], [`tokenizer`] (but for its cache and threads),
//!   and `dataplane::route`, which the simulator shares;
//! * doing, awaits I/O: [`read`], [`tokenize`], [`warm`], [`forward`], [`relay`], [`probe`], [`follow`], [`kv_feed`];
//! * owning: [`shard`] (one core), [`cluster`] and [`index`] (shared by the cores).
//!
//! It never imports `kvstore`, and knows control only by the frames of `dataplane::wire`.
#![forbid(unsafe_code)]

pub mod access;
pub mod account;
pub mod admit;
pub mod authenticate;
pub mod breaker;
pub mod candidates;
pub mod census;
pub mod cluster;
pub mod config;
pub mod connection;
pub mod counters;
pub mod decisions;
pub mod dispatch;
pub mod error;
pub mod explain;
pub mod fetch;
pub mod follow;
pub mod forecast;
pub mod forward;
pub mod front;
pub mod hall;
pub mod handover;
pub mod hedge;
pub mod house;
pub mod http;
pub mod http2;
pub mod identity;
pub mod index;
pub mod kv_feed;
pub mod local;
pub mod meter;
pub mod onward;
pub mod openai;
pub mod openmetrics;
pub mod overlap;
pub mod pace;
pub mod page;
pub mod parse;
pub mod probe;
pub mod queue;
pub mod read;
pub mod record;
pub mod relay;
pub mod reload;
pub mod reply;
pub mod request;
pub mod resume;
pub mod retry;
pub mod rotating;
pub mod server;
pub mod sessions;
pub mod shard;
pub mod socket;
pub mod stats;
pub mod steering;
pub mod stream;
pub mod tenant;
pub mod tls;
pub mod tokenize;
pub mod tokenizer;
pub mod trace;
pub mod upstream;
pub mod usage;
pub mod warm;
pub mod watch;
