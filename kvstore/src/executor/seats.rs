//! Every task of this thread has a seat: where its own waker lies, for those that knock from outside.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use super::bell::Bells;

#[derive(Default)]
struct Seats {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
    taken: usize,
}

thread_local! {
    static SEATS: RefCell<Seats> = RefCell::default();
    static IS_OVER: Cell<bool> = const { Cell::new(false) };
}

/// A task's seat, until it is dropped.
pub struct Seat {
    knock: Arc<Knock>,
}

impl Seat {
    /// A free one, on a thread with a bell.
    pub fn take() -> Seat {
        let number = SEATS.with(|seats| {
            let seats = &mut *seats.borrow_mut();
            seats.taken += 1;
            seats.free.pop().unwrap_or_else(|| {
                seats.wakers.push(None);
                seats.wakers.len() - 1
            })
        });
        let knock = Knock { bells: Bells::here(), number, is_waiting: AtomicBool::new(false) };
        Seat { knock: Arc::new(knock) }
    }

    /// Wakes the task from any thread, also when it is over.
    pub fn waker(&self) -> Waker {
        Waker::from(self.knock.clone())
    }

    /// The task's own waker, as it is polled with it.
    pub fn note(&self, waker: &Waker) {
        let old = SEATS.with(|seats| {
            let seat = &mut seats.borrow_mut().wakers[self.knock.number];
            match seat {
                Some(known) if known.will_wake(waker) => None,
                _ => seat.replace(waker.clone()),
            }
        });
        // Outside the borrow: with a task's last waker goes the task, and with that its seat.
        drop(old);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let old = SEATS.try_with(|seats| {
            let seats = &mut *seats.borrow_mut();
            seats.taken -= 1;
            seats.free.push(self.knock.number);
            seats.wakers[self.knock.number].take()
        });
        drop(old);
    }
}

/// What a task's wakers are.
pub struct Knock {
    bells: Bells,
    number: usize,
    /// In the bell's row already.
    is_waiting: AtomicBool,
}

impl Knock {
    /// Wakes who sits there now, on the thread of the seat. That may be another task by now, which then
    /// looks for nothing once.
    pub fn answer(&self) {
        self.is_waiting.store(false, Ordering::SeqCst);
        wake(self.number);
    }
}

impl Wake for Knock {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.bells.are_here() {
            wake(self.number);
        } else if !self.is_waiting.swap(true, Ordering::SeqCst) {
            self.bells.ring(self.clone());
        }
    }
}

fn wake(number: usize) {
    // Waking puts the task into monoio's queue and runs nothing, so the borrow ends first.
    SEATS.with(|seats| {
        if let Some(Some(waker)) = seats.borrow().wakers.get(number) {
            waker.wake_by_ref();
        }
    });
}

/// Tasks of this thread may run.
pub fn begin() {
    IS_OVER.with(|is_over| is_over.set(false));
}

/// Whether the tasks of this thread are to end.
pub fn is_over() -> bool {
    IS_OVER.with(Cell::get)
}

/// Has every task end where it waits. Whether there are any left.
pub fn end_all() -> bool {
    IS_OVER.with(|is_over| is_over.set(true));
    SEATS.with(|seats| {
        let seats = seats.borrow();
        seats.wakers.iter().flatten().for_each(Waker::wake_by_ref);
        seats.taken > 0
    })
}
