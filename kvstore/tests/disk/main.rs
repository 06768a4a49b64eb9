//! The NVMe tier against devices at their worst: what is acknowledged is there, nothing is ever wrong.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::duplicate_mod, reason = "the same tests run in two modes")]

mod daemon;
mod daemon_faults;
mod encryption;
mod fault_device;
mod kill;
mod loop_device;
mod power_cut;
mod shelf;
mod soak;

/// The same tests on disks in clear.
#[path = "."]
mod plain {
    pub const KEY: Option<u8> = None;
    #[path = "device_faults.rs"]
    mod device_faults;
}

/// And on encrypted ones.
#[path = "."]
mod encrypted {
    pub const KEY: Option<u8> = Some(1);
    #[path = "device_faults.rs"]
    mod device_faults;
}
