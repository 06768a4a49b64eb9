//! A bell within one thread: tasks wait for it, one rings, all look again.
//!
//! It carries no value: who is woken checks whether what it waited for is so.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::Instant;

/// The bell.
#[derive(Debug, Default)]
pub struct Signal {
    rings: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Wakes all that wait now.
    pub fn ring(&self) {
        self.rings.set(self.rings.get().wrapping_add(1));
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// What to give to [`Signal::rung_since`]: take it before looking at what is waited for.
    pub fn rings(&self) -> u64 {
        self.rings.get()
    }

    /// Waits until it has rung after `rings` was taken.
    pub async fn rung_since(&self, rings: u64) {
        poll_fn(|context| {
            if self.rings.get() != rings {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// As [`Signal::rung_since`], on the clock of this thread's executor; false if `deadline` came first.
    pub async fn rung_before(&self, rings: u64, deadline: Option<Instant>) -> bool {
        let Some(deadline) = deadline else {
            self.rung_since(rings).await;
            return true;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let rung = async {
            self.rung_since(rings).await;
            true
        };
        let late = async {
            crate::executor::sleep(left).await;
            false
        };
        futures_lite::future::or(rung, late).await
    }
}
