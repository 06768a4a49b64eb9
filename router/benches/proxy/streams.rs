//! Streams: CPU per token, first token, and what a proxy adds between tokens.
//!
//! Every event carries the microsecond at which the engine wrote it; the client takes the microsecond
//! at which it had read it. The difference is the delay of that token, scheduling of both ends included;
//! what it is more than without a proxy is the proxy's.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::client::{self, Connection, Stream};
use crate::engine::unix_us;
use crate::stage::Running;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Kept connections, one stream at a time on each.
    pub connections: usize,
    /// Tokens of a stream.
    pub tokens: u64,
    /// Milliseconds between two.
    pub pause_ms: u64,
    /// Header fields besides content type and key.
    pub fields: &'a [(&'a str, &'a str)],
    /// How long.
    pub seconds: u32,
}

/// What one run gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// CPU time of the proxy per token; 0 without one.
    pub cpu_us: f64,
    /// From the request sent to the first event read.
    pub first_p50_us: f64,
    /// From the engine's write to the client's read.
    pub delay_p50_us: f64,
    /// The same.
    pub delay_p99_us: f64,
    /// Between two events of a stream, as the client saw them.
    pub gap_p99_us: f64,
    /// Tokens seen per second.
    pub per_second: f64,
}

#[derive(Default)]
struct Seen {
    is_recording: bool,
    first_us: Vec<f64>,
    delay_us: Vec<f64>,
    gap_us: Vec<f64>,
    tokens: u64,
    failed: Option<String>,
}

/// Loads `proxy`, after a second of warm-up.
pub fn measure(proxy: &Running, load: Load<'_>) -> Result<Measured, String> {
    client::run(|| async move {
        let seen = Rc::new(RefCell::new(Seen::default()));
        for at in 0..load.connections {
            let request = client::streamed(load.fields, at, load.tokens, load.pause_ms);
            let (seen, port) = (Rc::clone(&seen), proxy.port);
            monoio::spawn(async move {
                if let Err(error) = call(port, request, &seen).await {
                    seen.borrow_mut().failed = Some(error);
                }
            });
        }
        monoio::time::sleep(Duration::from_secs(1)).await;
        let before = proxy.cpu_ns()?;
        seen.borrow_mut().is_recording = true;
        let begun = Instant::now();
        monoio::time::sleep(Duration::from_secs(load.seconds.into())).await;
        let used = proxy.cpu_ns()? - before;
        let mut seen = seen.take();
        match seen.failed {
            Some(error) => Err(error),
            None => Ok(seen.sum_up(used, begun.elapsed())),
        }
    })?
}

/// Streams one after the other, for ever.
async fn call(port: u16, mut request: Vec<u8>, seen: &RefCell<Seen>) -> Result<(), String> {
    let mut connection = Connection::open(port).await.map_err(|e| e.to_string())?;
    loop {
        let asked = Instant::now();
        request = connection.send(request).await.map_err(|e| e.to_string())?;
        let (mut stream, mut last) = (Stream::default(), None);
        while !stream.ended {
            let bytes = connection.read().await.map_err(|e| e.to_string())?;
            let (now, now_us) = (Instant::now(), unix_us());
            if bytes.is_empty() || (!stream.has_begun() && !bytes.starts_with(b"HTTP/1.1 200")) {
                return Err(format!("no stream: {:?}", String::from_utf8_lossy(bytes)));
            }
            let mut seen = seen.borrow_mut();
            stream.take(bytes, |stamp| seen.token(&mut last, asked, now, now_us, stamp));
        }
    }
}

impl Seen {
    fn token(
        &mut self,
        last: &mut Option<Instant>,
        asked: Instant,
        now: Instant,
        now_us: u64,
        stamp: Option<u64>,
    ) {
        let before = last.replace(now);
        if !self.is_recording {
            return;
        }
        self.tokens += 1;
        match before {
            None => self.first_us.push((now - asked).as_secs_f64() * 1e6),
            Some(before) => self.gap_us.push((now - before).as_secs_f64() * 1e6),
        }
        // A proxy that writes events anew may stamp them anew.
        if let Some(stamp) = stamp.filter(|stamp| *stamp > 1_000_000_000_000_000) {
            self.delay_us.push(now_us.saturating_sub(stamp) as f64);
        }
    }

    fn sum_up(&mut self, used_ns: u64, lasted: Duration) -> Measured {
        for samples in [&mut self.first_us, &mut self.delay_us, &mut self.gap_us] {
            samples.sort_by(f64::total_cmp);
        }
        Measured {
            cpu_us: used_ns as f64 / 1_000.0 / (self.tokens as f64).max(1.0),
            first_p50_us: quantile(&self.first_us, 0.5),
            delay_p50_us: quantile(&self.delay_us, 0.5),
            delay_p99_us: quantile(&self.delay_us, 0.99),
            gap_p99_us: quantile(&self.gap_us, 0.99),
            per_second: self.tokens as f64 / lasted.as_secs_f64(),
        }
    }
}

/// Of sorted samples; NaN of none.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = (sorted.len().saturating_sub(1) as f64 * q).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}
