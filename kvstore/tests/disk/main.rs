//! The NVMe tier against devices at their worst: what is acknowledged is there, nothing is ever wrong.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod daemon;
mod daemon_faults;
mod device_faults;
mod fault_device;
mod kill;
mod loop_device;
mod power_cut;
mod shelf;
mod soak;
