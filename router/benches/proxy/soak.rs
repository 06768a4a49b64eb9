//! A soak: many requests while connections, tenants, keys and models come and go.
//!
//! Requests differ in every way at once: prompts never seen before, short-lived connections, bodies
//! broken off, streams abandoned, models that do not exist, keys that are none. Resident memory is
//! noted every hundred thousand requests; the bar is its growth after the first.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::churn::{TENANTS, World};
use crate::client::{self, Connection, Stream};
use crate::house::House;
use crate::stage::{Running, Stage};

/// Callers at a time.
const CALLERS: u64 = 64;
/// Between two notes.
const MARK: u64 = 100_000;
/// Requests on one connection, at most.
const LIFE_MAX: u64 = 50;
/// The prefix index is full before the first mark: what grows afterwards is no cache filling up.
const INDEX_BLOCKS: usize = 65_536;
/// Growth after the first mark, at most.
const GROWTH_MAX: f64 = 1.05;
/// A run that makes no progress ends.
const STALL_MAX: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Tally {
    done: Cell<u64>,
    wanted: u64,
    statuses: RefCell<BTreeMap<u16, u64>>,
    connections: Cell<u64>,
    broken_off: Cell<u64>,
    failed: Cell<u64>,
}

/// Runs it; the table as Markdown. An epoch is longer than the two times two seconds after which the
/// router has certainly read the key file.
pub fn run(stage: &Stage, requests: u64, epoch: Duration) -> Result<String, String> {
    let world = World::begin(stage, epoch)?;
    let mut house = House::kv_text(stage);
    house.engines = Vec::new();
    house.control = Some(world.socket.clone());
    house.kv_more = format!("index_blocks_max = {INDEX_BLOCKS}");
    house.tenants = TENANTS as usize;
    house.keys = Some(world.keys().clone());
    let router = house.start(stage)?;
    let (marks, tally) = load(&router, &world, requests)?;
    world.end();
    let mut text = String::from("\n| requests | RSS MiB | × the first |\n|--:|--:|--:|\n");
    let first = marks.first().map_or(f64::NAN, |mark| mark.1);
    for (done, rss) in &marks {
        text.push_str(&format!("| {done} | {rss:.1} | {:.3} |\n", rss / first));
    }
    let growth = marks.last().map_or(f64::NAN, |mark| mark.1) / first;
    let verdict = if growth <= GROWTH_MAX { "holds" } else { "**missed**" };
    text.push_str(&format!(
        "\nGrowth after the first {MARK}: {growth:.3}, at most {GROWTH_MAX}: {verdict}. {tally}, {} epochs of models and keys.\n",
        world.epoch()
    ));
    Ok(text)
}

type Marks = Vec<(u64, f64)>;

fn load(router: &Running, world: &Arc<World>, requests: u64) -> Result<(Marks, String), String> {
    client::run(|| async move {
        let tally = Rc::new(Tally { wanted: requests, ..Tally::default() });
        let port = router.port;
        for caller in 0..CALLERS {
            let (tally, world) = (Rc::clone(&tally), Arc::clone(world));
            monoio::spawn(async move { call(port, caller, &world, &tally).await });
        }
        let mut marks: Marks = Vec::new();
        let (mut seen, mut since) = (0, Instant::now());
        while tally.done.get() < requests {
            monoio::time::sleep(Duration::from_millis(20)).await;
            let done = tally.done.get();
            if done > seen {
                (seen, since) = (done, Instant::now());
            } else if since.elapsed() > STALL_MAX {
                return Err(format!("no request ended for {STALL_MAX:?} after {done}"));
            }
            if done >= (marks.len() as u64 + 1) * MARK || done >= requests {
                let rss = router.memory()?.rss_kib as f64 / 1024.0;
                eprintln!("  {done} requests, {rss:.1} MiB, {:?}", tally.statuses.borrow());
                marks.push((done, rss));
            }
        }
        let statuses: Vec<String> =
            tally.statuses.borrow().iter().map(|(status, n)| format!("{n} × {status}")).collect();
        let text = format!(
            "Answers: {}; {} requests broken off by the client, {} failed; {} connections",
            statuses.join(", "),
            tally.broken_off.get(),
            tally.failed.get(),
            tally.connections.get(),
        );
        Ok((marks, text))
    })?
}

/// One caller: a connection, some requests, the next connection.
async fn call(port: u16, caller: u64, world: &World, tally: &Tally) {
    let mut random = Random(caller + 1);
    while tally.done.get() < tally.wanted {
        let Ok(mut connection) = Connection::open(port).await else {
            tally.failed.set(tally.failed.get() + 1);
            monoio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        tally.connections.set(tally.connections.get() + 1);
        for _ in 0..=random.below(LIFE_MAX) {
            let kept = ask(&mut connection, &mut random, world, tally).await;
            tally.done.set(tally.done.get() + 1);
            match kept {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => {
                    tally.failed.set(tally.failed.get() + 1);
                    break;
                }
            }
        }
    }
}

/// Answers whether the connection can be used again.
async fn ask(
    connection: &mut Connection,
    random: &mut Random,
    world: &World,
    tally: &Tally,
) -> std::io::Result<bool> {
    let kind = random.below(1_000);
    let key = match kind {
        0..10 => format!("sk-nobody-{}", random.next()),
        _ => world.key(random.next()),
    };
    let model = match kind {
        10..20 => format!("unknown-{}", random.next()),
        _ => world.model(random.next()),
    };
    let (is_streamed, is_abandoned) = ((20..120).contains(&kind), (20..45).contains(&kind));
    let stream = if is_streamed { "\"stream\":true,\"max_tokens\":4,\"pause_ms\":1," } else { "" };
    let text = format!("{} was never said before; ", random.next()).repeat(20);
    let body = format!(
        "{{\"model\":\"{model}\",{stream}\"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}}]}}"
    );
    let deadline: &[(&str, &str)] = match kind {
        200..300 => &[("x-cgn-deadline-ms", "60000")],
        _ => &[],
    };
    let mut request = client::request(&key, deadline, &body);
    if (120..125).contains(&kind) {
        request.truncate(request.len() / 2);
        connection.send(request).await?;
        tally.broken_off.set(tally.broken_off.get() + 1);
        return Ok(false);
    }
    connection.send(request).await?;
    if !is_streamed || kind < 20 {
        let status = connection.answer().await?;
        *tally.statuses.borrow_mut().entry(status).or_default() += 1;
        return Ok(status < 400);
    }
    let mut stream = Stream::default();
    while !stream.ended {
        let bytes = connection.read().await?;
        if bytes.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if !stream.has_begun() && !bytes.starts_with(b"HTTP/1.1 200") {
            // A refusal has a length and no last chunk; the connection is not worth keeping.
            let status = std::str::from_utf8(&bytes[..bytes.len().min(12)]).unwrap_or_default();
            let status = status.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
            *tally.statuses.borrow_mut().entry(status).or_default() += 1;
            return Ok(false);
        }
        if is_abandoned {
            tally.broken_off.set(tally.broken_off.get() + 1);
            return Ok(false);
        }
        stream.take(bytes, |_| {});
    }
    *tally.statuses.borrow_mut().entry(200).or_default() += 1;
    Ok(true)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
