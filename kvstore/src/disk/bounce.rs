//! Memory that values are encrypted in on their way to disk: how much of it there may be at once.

use std::cell::Cell;

use crate::signal::Signal;

/// Bytes of one writer: 32 blocks of 2 MiB, as many as keep a device busy. A value that is larger goes
/// alone.
pub const BOUNCE_BYTES_MAX: usize = 64 << 20;

/// What is free of it.
#[derive(Debug)]
pub struct Bounce {
    free: Cell<usize>,
    freed: Signal,
}

/// A share of it, for as long as the device may look at it.
#[derive(Debug)]
pub struct Share<'a> {
    bounce: &'a Bounce,
    bytes: usize,
}

impl Default for Bounce {
    fn default() -> Bounce {
        Bounce { free: Cell::new(BOUNCE_BYTES_MAX), freed: Signal::default() }
    }
}

impl Bounce {
    /// Waits for room for a value of so many bytes.
    pub async fn take(&self, bytes: usize) -> Share<'_> {
        let bytes = bytes.min(BOUNCE_BYTES_MAX);
        loop {
            let rings = self.freed.rings();
            if let Some(free) = self.free.get().checked_sub(bytes) {
                self.free.set(free);
                return Share { bounce: self, bytes };
            }
            self.freed.rung_since(rings).await;
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.bounce.free.set(self.bounce.free.get() + self.bytes);
        self.bounce.freed.ring();
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn no_more_is_out_than_there_is_and_the_largest_goes_alone() {
        block_on(async {
            let bounce = Bounce::default();
            let small = bounce.take(4096).await;
            let mut large = Box::pin(bounce.take(10 * BOUNCE_BYTES_MAX));
            assert!(poll_once(&mut large).await.is_none());
            drop(small);
            let large = large.await;
            assert!(poll_once(bounce.take(1)).await.is_none());
            drop(large);
            assert_eq!(bounce.free.get(), BOUNCE_BYTES_MAX);
        });
    }
}
