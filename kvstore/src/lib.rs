//! The KV daemon `cgn-kvcached`: KV blocks of 0.25 to 80 MiB, one hop away from the engine.
//!
//! It will own the tiers (pinned RAM, NVMe, peers), their index and eviction, and the doors engines
//! come in by (Unix socket with shared memory, RESP, QUIC, RDMA). It does not route requests and
//! never imports `router`. Nothing reaches it yet, so it holds no code.
#![forbid(unsafe_code)]

/// Memory of the blocks.
pub mod arena {
    pub mod space;
}
