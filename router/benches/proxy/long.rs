//! Long conversations: 60,000-token prompts of which only the last 1,000 tokens are new.
//!
//! An open loop at a fixed rate. What counts is the router's own time: its CPU time per request, and
//! the median latency through it less the median without it, minute by minute.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::client::{self, Connection};
use crate::house::{House, KEY};
use crate::stage::{Running, Stage};
use crate::streams::quantile;

/// Conversations that go on side by side.
const CONVERSATIONS: usize = 16;
/// What they have in common with their last turn: 59,000 tokens of four bytes.
const OLD_BYTES: usize = 236_000;
/// What is new in each request: 1,000 tokens.
const NEW_BYTES: usize = 4_000;
const RATES: [u32; 2] = [40, 400];
/// Before the first minute that counts: each conversation is seen a few times.
const WARM_UP: Duration = Duration::from_secs(5);
/// Without a proxy, for comparison.
const DIRECT: Duration = Duration::from_secs(15);

#[derive(Default)]
struct Seen {
    idle: Vec<Connection>,
    latency_us: Vec<f64>,
    failed: u64,
}

struct Minute {
    cpu_us: f64,
    p50_us: f64,
    p99_us: f64,
    requests: usize,
    failed: u64,
    rss_mib: u64,
}

/// Runs it; the table as Markdown.
pub fn run(stage: &Stage, minutes: u32) -> Result<String, String> {
    let mut text = String::from(
        "\n| requests/s | minute | requests | failed | router CPU µs/request | p50 µs | direct p50 µs | added p50 µs | p99 µs | RSS MiB |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for rate in RATES {
        eprintln!("{rate} requests/s · direct");
        let direct = series(&stage.direct(), rate, &[DIRECT])?;
        let direct_us = direct.first().map_or(0.0, |slot| slot.p50_us);
        let router = House::kv_text(stage).start(stage)?;
        eprintln!("{rate} requests/s · cgn-router, {minutes} minutes");
        let slots = vec![Duration::from_secs(60); minutes as usize];
        for (at, minute) in series(&router, rate, &slots)?.iter().enumerate() {
            text.push_str(&format!(
                "| {rate} | {} | {} | {} | {:.0} | {:.0} | {direct_us:.0} | {:.0} | {:.0} | {} |\n",
                at + 1,
                minute.requests,
                minute.failed,
                minute.cpu_us,
                minute.p50_us,
                minute.p50_us - direct_us,
                minute.p99_us,
                minute.rss_mib,
            ));
        }
    }
    Ok(text)
}

/// Loads `proxy` at `rate`; one line for each slot of time.
fn series(proxy: &Running, rate: u32, slots: &[Duration]) -> Result<Vec<Minute>, String> {
    client::run(|| async move {
        let seen = Rc::new(RefCell::new(Seen::default()));
        let old: Rc<Vec<String>> = Rc::new((0..CONVERSATIONS).map(conversation).collect());
        let mut sent = 0;
        flow(proxy.port, rate, WARM_UP, &old, &seen, &mut sent).await;
        let mut minutes = Vec::new();
        for slot in slots {
            let (before, _) = (proxy.cpu_ns()?, seen.borrow_mut().clear());
            flow(proxy.port, rate, *slot, &old, &seen, &mut sent).await;
            let used = proxy.cpu_ns()? - before;
            let mut seen = seen.borrow_mut();
            seen.latency_us.sort_by(f64::total_cmp);
            let requests = seen.latency_us.len();
            let minute = Minute {
                cpu_us: used as f64 / 1_000.0 / (requests as f64).max(1.0),
                p50_us: quantile(&seen.latency_us, 0.5),
                p99_us: quantile(&seen.latency_us, 0.99),
                requests,
                failed: seen.failed,
                rss_mib: proxy.memory().map_or(0, |memory| memory.rss_kib / 1024),
            };
            eprintln!(
                "  {:.0} µs CPU, p50 {:.0} µs, {} requests",
                minute.cpu_us, minute.p50_us, minute.requests
            );
            minutes.push(minute);
        }
        Ok(minutes)
    })?
}

impl Seen {
    fn clear(&mut self) {
        self.latency_us.clear();
        self.failed = 0;
    }
}

fn conversation(at: usize) -> String {
    let mut text = String::with_capacity(OLD_BYTES + 64);
    let mut turn = 0;
    while text.len() < OLD_BYTES {
        text.push_str(&format!("turn {turn} of conversation {at} has its own words; "));
        turn += 1;
    }
    text.truncate(OLD_BYTES);
    text
}

/// Starts `rate` requests a second for `lasts`, whatever becomes of them.
async fn flow(
    port: u16,
    rate: u32,
    lasts: Duration,
    old: &Rc<Vec<String>>,
    seen: &Rc<RefCell<Seen>>,
    sent: &mut usize,
) {
    let begun = Instant::now();
    let count = (lasts.as_secs_f64() * f64::from(rate)) as u32;
    for at in 0..count {
        let due = begun + Duration::from_secs(1) * at / rate;
        let now = Instant::now();
        if due > now {
            monoio::time::sleep(due - now).await;
        }
        *sent += 1;
        let (old, seen, number) = (Rc::clone(old), Rc::clone(seen), *sent);
        monoio::spawn(async move {
            let answered = ask(port, &old[number % CONVERSATIONS], number, &seen).await;
            let mut seen = seen.borrow_mut();
            match answered {
                Ok((connection, latency)) => {
                    seen.idle.push(connection);
                    seen.latency_us.push(latency.as_secs_f64() * 1e6);
                }
                Err(_) => seen.failed += 1,
            }
        });
    }
}

async fn ask(
    port: u16,
    old: &str,
    number: usize,
    seen: &RefCell<Seen>,
) -> std::io::Result<(Connection, Duration)> {
    let kept = seen.borrow_mut().idle.pop();
    let mut connection = match kept {
        Some(connection) => connection,
        None => Connection::open(port).await?,
    };
    let new = format!("question {number}, never asked before; ");
    let new = &new.repeat(NEW_BYTES / new.len());
    let body = format!(
        "{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"{old}{new}\"}}]}}"
    );
    let request = client::request(KEY, &[], &body);
    let begun = Instant::now();
    connection.send(request).await?;
    match connection.answer().await? {
        200 => Ok((connection, begun.elapsed())),
        status => Err(std::io::Error::other(format!("status {status}"))),
    }
}
