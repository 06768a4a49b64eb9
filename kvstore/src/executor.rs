//! The executor of one core: monoio on io_uring, a task for whatever waits.
//!
//! It owns how tasks begin, pause and end, and that any thread may wake them: monoio's own wakers are for
//! their own thread only, so every task here has a waker of ours ([`seats`]), which rings the thread's
//! [`bell`] when it is used on another. It knows nothing of blocks or sockets.

mod bell;
mod seats;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::unix::net::UnixStream as Pair;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use monoio::net::UnixStream;
use monoio::time::TimeDriver;
use monoio::{IoUringDriver, Runtime, RuntimeBuilder};

use self::bell::Bell;
use self::seats::Seat;

thread_local! {
    /// One end of a pair that always has a byte to read; see [`breath`].
    static READY: RefCell<Option<Rc<UnixStream>>> = const { RefCell::new(None) };
}

/// An executor that has not begun.
pub struct Executor {
    runtime: Runtime<TimeDriver<IoUringDriver>>,
    bell: Bell,
}

impl Executor {
    /// One for this thread. Its ring is set up with the flags that halve its cost where one thread uses it
    /// (Linux 6.0), else without them.
    ///
    /// # Errors
    /// The system's: it gives no io_uring, for example.
    pub fn new() -> io::Result<Executor> {
        let mut flags = io_uring::IoUring::builder();
        flags.setup_coop_taskrun().setup_single_issuer();
        let builder = RuntimeBuilder::<IoUringDriver>::new().uring_builder(flags).enable_timer();
        let runtime = builder
            .build()
            .or_else(|_| RuntimeBuilder::<IoUringDriver>::new().enable_timer().build())?;
        Ok(Executor { runtime, bell: Bell::new()? })
    }

    /// Runs `root` to its end; then every task that is left is dropped where it waits.
    ///
    /// # Errors
    /// The system's, before `root` begins.
    pub fn run<F: Future + 'static>(mut self, root: F) -> io::Result<F::Output> {
        let bell = self.bell;
        self.runtime.block_on(async move {
            let (mut full, ready) = Pair::pair()?;
            io::Write::write_all(&mut full, &[1])?;
            let ready = Rc::new(UnixStream::from_std(ready)?);
            READY.with(|cell| cell.replace(Some(ready)));
            seats::begin();
            let listening = monoio::spawn(bell.listen()?);
            let output = spawn(root).await;
            while seats::end_all() {
                breath().await;
            }
            bell::ring_here();
            listening.await;
            READY.with(|cell| cell.take());
            Ok(output)
        })
    }
}

/// A task that was begun. Dropping this does not end it.
pub struct Task<T>(monoio::task::JoinHandle<Option<T>>);

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // A task that was ended has no output; whoever waits for it is being ended, too.
        ready!(Pin::new(&mut self.0).poll(context)).map_or(Poll::Pending, Poll::Ready)
    }
}

/// Begins a task on this thread. Its wakers may be used from any.
pub fn spawn<F: Future + 'static>(future: F) -> Task<F::Output> {
    Task(monoio::spawn(async move {
        let mut future = Box::pin(future);
        let seat = Seat::take();
        let waker = seat.waker();
        poll_fn(|context| {
            if seats::is_over() {
                return Poll::Ready(None);
            }
            seat.note(context.waker());
            future.as_mut().poll(&mut Context::from_waker(&waker)).map(Some)
        })
        .await
    }))
}

/// Lets every other task that can go on do so, with a look at every socket and timer. A task that only
/// wakes itself would be the next to run, and timers would stand still: so it waits for a poll of the
/// ring that ends at once.
pub async fn breath() {
    let Some(ready) = READY.with(|cell| cell.borrow().clone()) else { return };
    // It does not fail; if it did, there was a turn of the ring all the same.
    let _ = ready.readable(true).await;
}

/// Waits for `time`, to the millisecond.
pub async fn sleep(time: Duration) {
    monoio::time::sleep(time).await;
}

#[cfg(test)]
mod tests;
