//! Hand-over between threads: an inbox for each shard, and the answer to one request.
//!
//! Both are bounded rings of crossbeam with a waker, and know nothing of a runtime: a task of a shard, of
//! its disk's thread and of tokio wait the same way. What is sent is not looked at here.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use atomic_waker::AtomicWaker;
use crossbeam::queue::ArrayQueue;

/// Requests that wait for one shard. Full means `Busy` to the client: a shard that is this far behind
/// would answer later than the engine recomputes.
pub const INBOX_REQUESTS_MAX: usize = 4096;

/// Many senders, one receiver, bounded.
#[derive(Debug)]
pub struct Inbox<T> {
    ring: ArrayQueue<T>,
    waker: AtomicWaker,
}

impl<T> Inbox<T> {
    /// An inbox for `capacity` things.
    pub fn new(capacity: usize) -> Inbox<T> {
        Inbox { ring: ArrayQueue::new(capacity.max(1)), waker: AtomicWaker::new() }
    }

    /// Puts `thing` in, or gives it back when there is no room.
    ///
    /// # Errors
    /// `thing`.
    pub fn send(&self, thing: T) -> Result<(), T> {
        self.ring.push(thing)?;
        self.waker.wake();
        Ok(())
    }

    /// Puts `thing` in as soon as there is room. `pause` lets others on this thread go on meanwhile.
    pub async fn send_when_room(&self, mut thing: T, pause: impl AsyncFn()) {
        while let Err(back) = self.send(thing) {
            thing = back;
            pause().await;
        }
    }

    /// The next thing. For one task only: the last that waits is the one that is woken.
    pub async fn receive(&self) -> T {
        poll_fn(|context| {
            if let Some(thing) = self.ring.pop() {
                return Poll::Ready(thing);
            }
            self.waker.register(context.waker());
            // Something may have come between looking and registering.
            self.ring.pop().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }
}

#[derive(Debug)]
struct Desk<T> {
    answer: ArrayQueue<T>,
    is_over: AtomicBool,
    waker: AtomicWaker,
}

/// The end that answers. Dropped without an answer, it tells the other end so.
#[derive(Debug)]
pub struct Reply<T>(Arc<Desk<T>>);

/// The end that waits.
#[derive(Debug)]
pub struct Waiting<T>(Arc<Desk<T>>);

/// Both ends of one answer.
pub fn reply<T>() -> (Reply<T>, Waiting<T>) {
    let desk = Arc::new(Desk {
        answer: ArrayQueue::new(1),
        is_over: AtomicBool::new(false),
        waker: AtomicWaker::new(),
    });
    (Reply(desk.clone()), Waiting(desk))
}

impl<T> Reply<T> {
    /// Answers. If nobody waits any more, the answer is dropped with the desk.
    pub fn send(self, answer: T) {
        // One sender, once, on a ring of one: there is room.
        let _ = self.0.answer.push(answer);
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
        self.0.waker.wake();
    }
}

impl<T> Waiting<T> {
    /// The answer; none if the other end went away without one.
    pub async fn answer(self) -> Option<T> {
        poll_fn(|context| {
            self.0.waker.register(context.waker());
            let is_over = self.0.is_over.load(Ordering::Acquire);
            match self.0.answer.pop() {
                Some(answer) => Poll::Ready(Some(answer)),
                None if is_over => Poll::Ready(None),
                None => Poll::Pending,
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;

    #[test]
    fn a_full_inbox_gives_back_what_it_cannot_hold() {
        let inbox = Inbox::new(2);
        assert!(inbox.send(1).is_ok());
        assert!(inbox.send(2).is_ok());
        assert_eq!(inbox.send(3), Err(3));
        assert_eq!(block_on(inbox.receive()), 1);
        assert!(inbox.send(3).is_ok());
        assert_eq!((block_on(inbox.receive()), block_on(inbox.receive())), (2, 3));
    }

    #[test]
    fn nothing_is_lost_between_many_threads_and_one() {
        let inbox = Arc::new(Inbox::new(8));
        let senders: Vec<_> = (0..4u64)
            .map(|sender| {
                let inbox = inbox.clone();
                std::thread::spawn(move || {
                    for number in 0..2_000 {
                        let mut thing = sender * 10_000 + number;
                        while let Err(back) = inbox.send(thing) {
                            thing = back;
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 8_000 {
            assert!(seen.insert(block_on(inbox.receive())));
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        assert!(inbox.is_empty());
    }

    #[test]
    fn an_answer_comes_from_another_thread_or_the_wait_ends() {
        let (reply, waiting) = reply();
        let thread = std::thread::spawn(move || reply.send(7));
        assert_eq!(block_on(waiting.answer()), Some(7));
        thread.join().unwrap();
        let (reply, waiting) = super::reply::<u8>();
        let thread = std::thread::spawn(move || drop(reply));
        assert_eq!(block_on(waiting.answer()), None);
        thread.join().unwrap();
    }
}
