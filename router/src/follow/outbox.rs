//! Frames on their way to control, from several tasks of one thread to the one that writes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Frames that wait. Control has at most 16 questions open, and a report is only added to none.
const FRAMES_MAX: usize = 32;

/// A bounded queue with one reader.
#[derive(Default)]
pub struct Outbox {
    frames: RefCell<VecDeque<Vec<u8>>>,
    reader: Cell<Option<Waker>>,
}

impl Outbox {
    /// Adds a frame. Says whether there was room.
    pub fn push(&self, frame: Vec<u8>) -> bool {
        let mut frames = self.frames.borrow_mut();
        if frames.len() >= FRAMES_MAX {
            return false;
        }
        frames.push_back(frame);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        true
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.frames.borrow().is_empty()
    }

    /// The next frame, once there is one.
    pub async fn next(&self) -> Vec<u8> {
        poll_fn(|context| match self.frames.borrow_mut().pop_front() {
            Some(frame) => Poll::Ready(frame),
            None => {
                self.reader.set(Some(context.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use std::task::{Context, Wake};

    use super::*;

    struct Rung(AtomicU32);

    impl Wake for Rung {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn frames_come_in_order_and_wake_the_one_who_waits() {
        let outbox = Outbox::default();
        let rung = Arc::new(Rung(AtomicU32::new(0)));
        let waker = Waker::from(Arc::clone(&rung));
        let mut context = Context::from_waker(&waker);
        let mut next = pin!(outbox.next());
        assert!(next.as_mut().poll(&mut context).is_pending());
        assert!(outbox.push(vec![1]) && outbox.push(vec![2]));
        assert_eq!(rung.0.load(Relaxed), 1);
        assert_eq!(next.poll(&mut context), Poll::Ready(vec![1]));
        assert!(!outbox.is_empty());
        assert_eq!(pin!(outbox.next()).poll(&mut context), Poll::Ready(vec![2]));
        assert!(outbox.is_empty());
    }

    #[test]
    fn it_holds_no_more_than_it_may() {
        let outbox = Outbox::default();
        assert!((0..FRAMES_MAX).all(|_| outbox.push(Vec::new())));
        assert!(!outbox.push(Vec::new()));
    }
}
