//! Lines on their way from the cores to the disk.
//!
//! Each core fills a buffer of its own and hands it over whole, without waiting: a bounded channel
//! leads to one thread that writes. A disk that is slow or full costs lines, which are counted, and
//! no request a moment. The thread owns the file and renames it at its size limit.

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{AccessConfig, AccessLine};
use crate::rotating::Rotating;
use crate::trace::context::{Sampler, TraceId};

/// A core hands its lines over at this size at the latest: some fifty of them. Half of the smallest
/// file, so that a batch and its last line fit into any.
pub const BATCH_BYTES: usize = 32 << 10;
/// Batches that may wait for the disk, over all cores: 16 MiB.
pub const BATCHES_MAX: usize = 512;
/// How often the end of the thread is looked for.
const CLOSE_POLL: Duration = Duration::from_millis(2);

/// What became of the lines of this process.
#[derive(Debug, Default)]
pub struct LineCounts {
    /// Written.
    pub written: AtomicU64,
    /// Dropped because too many waited.
    pub dropped: AtomicU64,
    /// Lost to an error of the file.
    pub failed: AtomicU64,
}

enum Message {
    Lines { bytes: Vec<u8>, count: u64 },
    End,
}

/// The writer: one for the process.
#[derive(Debug)]
pub struct AccessLog {
    to_writer: SyncSender<Message>,
    counts: Arc<LineCounts>,
    sampler: Sampler,
    thread: JoinHandle<()>,
}

/// One core's end of the log.
#[derive(Debug)]
pub struct AccessBuffer {
    to_writer: SyncSender<Message>,
    counts: Arc<LineCounts>,
    sampler: Sampler,
    lines: RefCell<(Vec<u8>, u64)>,
}

impl AccessLog {
    /// Opens the file and starts the thread. `None` where no lines are asked for.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not be started.
    pub fn start(config: &AccessConfig) -> io::Result<Option<Self>> {
        if config.path.is_empty() {
            return Ok(None);
        }
        let sink = if config.path == "-" {
            Sink::Stdout
        } else {
            Sink::File(Rotating::open(Path::new(&config.path), config.bytes_max)?)
        };
        AccessLog::with(sink, config.sample_ratio).map(Some)
    }

    fn with(sink: Sink, sample_ratio: f64) -> io::Result<Self> {
        let (to_writer, messages) = sync_channel(BATCHES_MAX);
        let counts = Arc::new(LineCounts::default());
        let counted = Arc::clone(&counts);
        let thread = thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_all(sink, &messages, &counted))?;
        Ok(AccessLog { to_writer, counts, sampler: Sampler::new(sample_ratio), thread })
    }

    /// A buffer for one more core.
    pub fn buffer(&self) -> AccessBuffer {
        AccessBuffer {
            to_writer: self.to_writer.clone(),
            counts: Arc::clone(&self.counts),
            sampler: self.sampler,
            lines: RefCell::default(),
        }
    }

    /// What became of the lines, for the metrics.
    pub fn counts(&self) -> Arc<LineCounts> {
        Arc::clone(&self.counts)
    }

    /// Writes what was handed over and ends the thread; lines handed over later are dropped. A disk
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
            is_told = is_told || self.to_writer.try_send(Message::End).is_ok();
            thread::sleep(CLOSE_POLL);
        }
        self.thread.join().is_ok()
    }
}

impl AccessBuffer {
    /// Whether this request gets a line. Ask before putting one together.
    pub fn wants(&self, trace_id: TraceId) -> bool {
        self.sampler.takes(trace_id)
    }

    /// Takes one line; hands a full buffer over.
    pub fn put(&self, line: &AccessLine<'_>) {
        let is_full = {
            let mut lines = self.lines.borrow_mut();
            line.write_to(&mut lines.0);
            lines.1 += 1;
            lines.0.len() >= BATCH_BYTES
        };
        if is_full {
            self.flush();
        }
    }

    /// Hands over what is there. To be called a few times a second, so that lines are not late.
    pub fn flush(&self) {
        let (bytes, count) = self.lines.take();
        if count > 0 && self.to_writer.try_send(Message::Lines { bytes, count }).is_err() {
            self.counts.dropped.fetch_add(count, Relaxed);
        }
    }
}

impl Drop for AccessBuffer {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The thread.
fn write_all(mut sink: Sink, messages: &Receiver<Message>, counts: &LineCounts) {
    let mut has_failed = false;
    while let Ok(Message::Lines { bytes, count }) = messages.recv() {
        match sink.write(&bytes) {
            Ok(()) => {
                has_failed = false;
                counts.written.fetch_add(count, Relaxed);
            }
            Err(error) => {
                counts.failed.fetch_add(count, Relaxed);
                // Once, not for every batch while the disk is full.
                if !std::mem::replace(&mut has_failed, true) {
                    tracing::error!(%error, "the access log cannot be written");
                }
            }
        }
    }
}

enum Sink {
    Stdout,
    File(Rotating),
    #[cfg(test)]
    Test(Box<dyn Write + Send>),
}

impl Sink {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Sink::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(lines)?;
                out.flush()
            }
            Sink::File(file) => file.write(lines),
            #[cfg(test)]
            Sink::Test(out) => out.write_all(lines),
        }
    }
}

#[cfg(test)]
mod tests;
