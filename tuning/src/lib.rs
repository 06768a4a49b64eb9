//! Host tuning: each knob (huge pages, IRQ affinity, isolated cores, NVMe polling, NIC rings, GPU
//! clocks) as data with a reason, a check that never writes and an apply that reports before and
//! after.
//!
//! It will own everything that is read from or written to `/sys` and `/proc/sys`. It does not start
//! processes. Nothing reaches it yet, so it holds no code.
#![forbid(unsafe_code)]
