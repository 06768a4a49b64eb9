//! How other threads wake tasks of this one: they put their knock into a row and ring a bell, an eventfd
//! that the ring of this thread reads.
//!
//! Each task's knock stands in the row at most once, so the row is as long as there are tasks; the bell is
//! rung once for all that came since it was heard.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::SegQueue;
use rustix::event::EventfdFlags;

use super::seats::{self, Knock};

struct Row {
    knocks: SegQueue<Arc<Knock>>,
    is_rung: AtomicBool,
    button: File,
}

thread_local! {
    static HERE: RefCell<Option<Arc<Row>>> = const { RefCell::new(None) };
}

/// Where tasks of one thread are woken from others.
pub struct Bells(Arc<Row>);

impl Bells {
    /// Those of this thread, which has an executor.
    pub fn here() -> Bells {
        let row = HERE.with(|here| here.borrow().clone());
        Bells(row.expect("tasks begin on a thread with an executor"))
    }

    /// Whether they are of this thread.
    pub fn are_here(&self) -> bool {
        let is_here = HERE
            .try_with(|here| here.borrow().as_ref().is_some_and(|row| Arc::ptr_eq(row, &self.0)));
        is_here.unwrap_or(false)
    }

    /// From another thread.
    pub fn ring(&self, knock: Arc<Knock>) {
        self.0.knocks.push(knock);
        self.0.ring();
    }
}

impl Row {
    fn ring(&self) {
        // The swap comes after the push: whoever finds the bell rung has its knock seen by the listener,
        // whose swap in `listen` reads this one's and comes before its look at the row.
        if !self.is_rung.swap(true, Ordering::SeqCst) {
            // It fails only when 2^64 - 2 rings were not heard.
            let _ = (&self.button).write(&1u64.to_ne_bytes());
        }
    }
}

/// The bell of a thread that has not begun.
pub struct Bell {
    eventfd: File,
}

impl Bell {
    /// A new one.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> io::Result<Bell> {
        let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Bell { eventfd: File::from(eventfd) })
    }

    /// Makes it the bell of this thread. What it gives is to be a task of the thread, and ends with
    /// [`ring_here`] once [`seats::is_over`].
    ///
    /// # Errors
    /// The system's.
    pub fn listen(self) -> io::Result<impl Future<Output = ()>> {
        let button = self.eventfd.try_clone()?;
        let row = Row { knocks: SegQueue::new(), is_rung: AtomicBool::new(false), button };
        let row = Arc::new(row);
        HERE.with(|here| here.replace(Some(row.clone())));
        let heard = monoio::fs::File::from_std(self.eventfd)?;
        Ok(async move {
            let mut count = vec![0; size_of::<u64>()];
            loop {
                let result;
                (result, count) = heard.read_at(count, 0).await;
                if let Err(error) = result {
                    tracing::error!(%error, "a core is deaf to the others");
                    std::process::abort();
                }
                if seats::is_over() {
                    HERE.with(|here| here.take());
                    return;
                }
                row.is_rung.swap(false, Ordering::SeqCst);
                while let Some(knock) = row.knocks.pop() {
                    knock.answer();
                }
            }
        })
    }
}

/// Rings this thread's own bell.
pub fn ring_here() {
    HERE.with(|here| {
        if let Some(row) = here.borrow().as_ref() {
            let _ = (&row.button).write(&1u64.to_ne_bytes());
        }
    });
}
