//! Blocks from and to other daemons.
pub mod ask;
pub mod blocks;
pub mod certificate;
pub mod directory;
pub mod endpoint;
pub mod limits;
pub mod link;
pub mod pace;
pub mod serve;
pub mod socket;
pub mod tls;
pub mod wire;
