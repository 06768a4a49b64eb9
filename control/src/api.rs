//! The gRPC API of the control port, generated from `proto/control.proto`.
//!
//! This is the only part of this crate that `agent` may use.
#![expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the proto carries the comments"
)]

tonic::include_proto!("cognitora.v1");
