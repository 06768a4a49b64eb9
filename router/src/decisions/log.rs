//! Decisions on their way from the cores to the disk.
//!
//! A core hands a decision over without waiting; a bounded channel leads to one thread that makes lines
//! of decisions and writes them. A disk that is slow, full or gone costs lines, which are counted, and no
//! request a moment.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dataplane::route::decision::LINE_BYTES_MAX;

use super::{DecisionConfig, Made};
use crate::access::log::LineCounts;
use crate::rotating::Rotating;
use crate::trace::context::{Sampler, TraceId};

/// Decisions that may wait for the thread, over all cores.
pub const DECISIONS_WAITING_MAX: usize = 1_024;
/// Candidates in them, 160 bytes each: 20 MiB, however many workers a model has.
pub const ROWS_WAITING_MAX: usize = 1 << 17;
/// The thread writes at this size at the latest, and as soon as nothing waits.
const BATCH_BYTES: usize = 64 << 10;
/// How often the end of the thread is looked for.
const CLOSE_POLL: Duration = Duration::from_millis(2);

enum Message {
    Made(Box<Made>),
    End,
}

/// The writer: one for the process.
pub struct DecisionLog {
    ways: DecisionSender,
    thread: JoinHandle<()>,
}

/// One core's way to it.
#[derive(Clone)]
pub struct DecisionSender {
    to_writer: SyncSender<Message>,
    rows_waiting: Arc<AtomicUsize>,
    counts: Arc<LineCounts>,
    sampler: Sampler,
}

impl DecisionLog {
    /// Opens the file and starts the thread. `None` where no lines are asked for.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not be started.
    pub fn start(config: &DecisionConfig) -> io::Result<Option<Self>> {
        let Some(path) = &config.file else { return Ok(None) };
        let mut file = Rotating::open(path, config.bytes_max)?;
        DecisionLog::with(move |lines: &[u8]| file.write(lines), config.sample_ratio).map(Some)
    }

    fn with(
        write: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
        sample_ratio: f64,
    ) -> io::Result<Self> {
        let (to_writer, messages) = sync_channel(DECISIONS_WAITING_MAX);
        let ways = DecisionSender {
            to_writer,
            rows_waiting: Arc::default(),
            counts: Arc::default(),
            sampler: Sampler::new(sample_ratio),
        };
        let (rows, counts) = (Arc::clone(&ways.rows_waiting), Arc::clone(&ways.counts));
        let thread = thread::Builder::new()
            .name("decision-log".into())
            .spawn(move || Writer { write, counts, has_failed: false }.run(&messages, &rows))?;
        Ok(DecisionLog { ways, thread })
    }

    /// A way for one more core.
    pub fn sender(&self) -> DecisionSender {
        self.ways.clone()
    }

    /// Writes what was handed over and ends the thread; decisions handed over later are dropped. A disk
    /// that takes longer than `patience` is left alone: a process must be able to end.
    ///
    /// Blocks. Returns whether all was written.
    pub fn close(self, patience: Duration) -> bool {
        let begun = Instant::now();
        let mut is_told = false;
        while !self.thread.is_finished() {
            if begun.elapsed() >= patience {
                return false;
            }
            is_told = is_told || self.ways.to_writer.try_send(Message::End).is_ok();
            thread::sleep(CLOSE_POLL);
        }
        self.thread.join().is_ok()
    }
}

impl DecisionSender {
    /// Whether decisions of this trace are written. Ask before putting one together.
    pub fn wants(&self, trace_id: TraceId) -> bool {
        self.sampler.takes(trace_id)
    }

    /// Hands one over, or drops it where too many wait.
    pub fn put(&self, made: Made) {
        let rows = made.candidates.len();
        let before = self.rows_waiting.fetch_add(rows, Relaxed);
        // One alone is always taken, whatever its size.
        let has_room = before == 0 || before + rows <= ROWS_WAITING_MAX;
        if !has_room || self.to_writer.try_send(Message::Made(Box::new(made))).is_err() {
            self.rows_waiting.fetch_sub(rows, Relaxed);
            self.counts.dropped.fetch_add(1, Relaxed);
        }
    }

    /// What became of the lines, for the metrics.
    pub fn counts(&self) -> &LineCounts {
        &self.counts
    }
}

struct Writer<W> {
    write: W,
    counts: Arc<LineCounts>,
    has_failed: bool,
}

impl<W: FnMut(&[u8]) -> io::Result<()>> Writer<W> {
    fn run(mut self, messages: &Receiver<Message>, rows_waiting: &AtomicUsize) {
        let (mut lines, mut count) = (Vec::with_capacity(BATCH_BYTES), 0);
        while let Ok(first) = messages.recv() {
            let mut next = Some(first);
            while let Some(message) = next {
                let Message::Made(made) = message else { return self.flush(&lines, count) };
                rows_waiting.fetch_sub(made.candidates.len(), Relaxed);
                count += u64::from(self.append(&made, &mut lines));
                if lines.len() >= BATCH_BYTES {
                    break;
                }
                next = messages.try_recv().ok();
            }
            self.flush(&lines, count);
            (lines, count) = (Vec::with_capacity(BATCH_BYTES), 0);
        }
    }

    /// Whether the decision could be a line.
    fn append(&self, made: &Made, lines: &mut Vec<u8>) -> bool {
        match made.decision().to_line() {
            Ok(line) if line.len() < LINE_BYTES_MAX => {
                lines.extend_from_slice(&line);
                // A `Vec` takes every byte.
                lines.push(b'\n');
                true
            }
            _ => {
                self.counts.failed.fetch_add(1, Relaxed);
                false
            }
        }
    }

    fn flush(&mut self, lines: &[u8], count: u64) {
        if count == 0 {
            return;
        }
        let written = match self.has_failed {
            // The last line may be torn: the next one begins on a line of its own.
            true => (self.write)(&[b"\n", lines].concat()),
            false => (self.write)(lines),
        };
        match written {
            Ok(()) => {
                self.counts.written.fetch_add(count, Relaxed);
                if std::mem::replace(&mut self.has_failed, false) {
                    tracing::info!("the decision log is written again");
                }
            }
            Err(error) => {
                self.counts.failed.fetch_add(count, Relaxed);
                // Once, not for every batch while the disk is full.
                if !std::mem::replace(&mut self.has_failed, true) {
                    tracing::error!(%error, "the decision log cannot be written; requests go on without it");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
