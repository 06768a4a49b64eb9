//! Looks at a polling client's ring, and answers there.
//!
//! While the client asks, its shard looks again and again, with a look at every socket between two short
//! spins. When nothing came for [`AWAKE_TIME_MAX`] it tells the client so and sleeps; then the next
//! question comes with a frame on the socket. So a polling client costs a core while it asks at least
//! once in that time, and nothing else.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use dataplane::kv::Got;
use dataplane::kv::ring::{Completion, Submission};

use super::answer::Client;
use super::ring::{OutOfStep, Ring};

/// After so long without a question the daemon sleeps: a client that polls asks for its next block as soon
/// as it has begun to copy the last, and 1 ms copies 8 MiB.
const AWAKE_TIME_MAX: Duration = Duration::from_millis(1);
/// One spin. Everything else on the shard waits for so long.
const SPIN_TIME: Duration = Duration::from_micros(10);
/// Submissions taken before others have their turn.
const TAKES_MAX: usize = 64;
/// Looks at the ring between two looks at the clock.
const LOOKS: usize = 32;

type Work = Pin<Box<dyn Future<Output = Completion>>>;

/// A ring and what is at work for it.
pub struct Poller {
    ring: Ring,
    working: Vec<Work>,
    /// When something last came; none while asleep.
    awake_since: Option<Instant>,
}

impl Poller {
    /// Asleep until [`Poller::wake`].
    pub fn new(ring: Ring) -> Poller {
        Poller { ring, working: Vec::new(), awake_since: None }
    }

    /// The client says that there is something.
    pub fn wake(&mut self) {
        self.ring.wake();
        self.awake_since = Some(Instant::now());
    }

    /// Answers what is asked, and spins a little for more. Whether to come again at once; if not, the ring is
    /// asleep, and work that ends or a frame on the socket wakes the task.
    ///
    /// # Errors
    /// [`OutOfStep`].
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        client: &Rc<Client>,
    ) -> Result<bool, OutOfStep> {
        let ring = &mut self.ring;
        self.working.retain_mut(|work| match work.as_mut().poll(context) {
            Poll::Ready(completion) => {
                ring.complete(completion);
                false
            }
            Poll::Pending => true,
        });
        let Some(since) = self.awake_since else { return Ok(false) };
        let begun = Instant::now();
        let mut is_used = false;
        loop {
            for _ in 0..LOOKS {
                is_used |= self.take(context, client)?;
                std::hint::spin_loop();
            }
            if begun.elapsed() > SPIN_TIME {
                break;
            }
        }
        if is_used {
            self.awake_since = Some(Instant::now());
        } else if begun.duration_since(since) > AWAKE_TIME_MAX && self.ring.sleep() {
            self.awake_since = None;
            return Ok(false);
        }
        Ok(true)
    }

    /// Takes what is there. Whether there was anything.
    fn take(&mut self, context: &mut Context<'_>, client: &Rc<Client>) -> Result<bool, OutOfStep> {
        for taken in 0..TAKES_MAX {
            let Some(submission) = self.ring.take(self.working.len())? else {
                return Ok(taken > 0);
            };
            let mut work: Work = match submission {
                Submission::Release { lease } => {
                    client.release(lease);
                    continue;
                }
                Submission::Get { id, name } => {
                    let client = client.clone();
                    Box::pin(async move { Completion { id, got: client.get(name, None).await } })
                }
                Submission::Lookup { id, name } => {
                    let client = client.clone();
                    Box::pin(async move {
                        let got = match client.tier(name).await {
                            Ok(Some(tier)) => Got::Leased { lease: tier as u64, offset: 0, len: 0 },
                            Ok(None) => Got::Missing,
                            Err(fault) => Got::Failed(fault),
                        };
                        Completion { id, got }
                    })
                }
            };
            match work.as_mut().poll(context) {
                Poll::Ready(completion) => self.ring.complete(completion),
                Poll::Pending => self.working.push(work),
            }
        }
        Ok(true)
    }

    /// Waits for what is at work, without an answer.
    pub async fn end(self) {
        for work in self.working {
            work.await;
        }
    }
}
