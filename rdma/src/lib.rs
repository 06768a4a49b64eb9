//! RDMA: verbs objects (device context, protection domain, memory region, completion queue, queue
//! pair) and the connection manager, behind the feature `verbs`.
//!
//! It will own every `unsafe` call into libibverbs and librdmacm, and the registration of memory. It
//! does not know what a block, a model or a request is: `kvstore` uses it to READ a leased block from
//! a peer. Nothing reaches it yet, so it holds no code.
#![forbid(unsafe_code)]
