//! The NVMe tier against devices at their worst: what is acknowledged is there, nothing is ever wrong.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod device_faults;
mod fault_device;
mod kill;
mod power_cut;
mod shelf;
