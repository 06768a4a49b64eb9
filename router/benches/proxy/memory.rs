//! What a connection costs in memory: 10,000 idle ones, then 5,000 with a slow stream on each.
//!
//! Resident memory of the router's process before and after, each in a process of its own. Before means
//! after a warm-up over 64 connections. What the kernel holds for sockets is not in it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::client::{self, Connection, Stream};
use crate::cpu::Memory;
use crate::house::{House, KEY};
use crate::stage::{Running, Stage};

/// Kept connections without a request.
const IDLE: usize = 10_000;
/// Connections with a stream.
const STREAMS: usize = 5_000;
/// Between two tokens of such a stream.
const SLOW_PAUSE_MS: u64 = 1_000;
/// It goes on for longer than anybody looks.
const SLOW_TOKENS: u64 = 3_600;
const WARM_UP_CONNECTIONS: usize = 64;
const WARM_UP_REQUESTS: usize = 50;
/// Dialled at once; a listener's backlog is longer.
const BATCH: usize = 100;
/// Between the last connection and the look at the memory.
const SETTLE: Duration = Duration::from_secs(10);
/// At most a connection.
const KIB_MAX: f64 = 64.0;

/// Runs it; the table as Markdown.
pub fn run(stage: &Stage) -> Result<String, String> {
    let mut text = String::from(
        "\n| what | count | RSS before MiB | after MiB | RSS KiB each | Pss KiB each | at most | |\n|---|--:|--:|--:|--:|--:|--:|---|\n",
    );
    for (what, count, is_streamed) in
        [("idle keep-alive connections", IDLE, false), ("streams, a token a second", STREAMS, true)]
    {
        let mut house = House::everything(stage);
        house.engines = stage.engine_ports().to_vec();
        house.slots = 8_192;
        let router = house.start(stage)?;
        eprintln!("{count} {what}");
        let (before, after, open) = hold(&router, count, is_streamed)?;
        let each =
            |after: u64, before: u64| after.saturating_sub(before) as f64 / (open as f64).max(1.0);
        let rss = each(after.rss_kib, before.rss_kib);
        let verdict = if rss <= KIB_MAX { "holds" } else { "**missed**" };
        text.push_str(&format!(
            "| {what} | {open} | {:.1} | {:.1} | {rss:.1} | {:.1} | {KIB_MAX} | {verdict} |\n",
            before.rss_kib as f64 / 1024.0,
            after.rss_kib as f64 / 1024.0,
            each(after.pss_kib, before.pss_kib),
        ));
    }
    Ok(text)
}

/// Memory before and after, and how many are open then.
fn hold(
    router: &Running,
    count: usize,
    is_streamed: bool,
) -> Result<(Memory, Memory, usize), String> {
    client::run(|| async move {
        warm_up(router.port).await.map_err(|e| format!("warm-up: {e}"))?;
        monoio::time::sleep(Duration::from_secs(1)).await;
        let before = router.memory()?;
        let open = Rc::new(Cell::new(0_usize));
        let mut failed = Vec::new();
        let (sender, failures) = std::sync::mpsc::channel();
        for batch in 0..count / BATCH {
            for at in 0..BATCH {
                let (open, port, sender) = (Rc::clone(&open), router.port, sender.clone());
                monoio::spawn(async move {
                    let number = batch * BATCH + at;
                    if let Err(error) = stay(port, number, is_streamed, &open).await {
                        // Nobody listens any more once the figures are taken.
                        let _ = sender.send(error.to_string());
                    }
                });
            }
            let mut waits = 0;
            while open.get() < (batch + 1) * BATCH && waits < 500 {
                monoio::time::sleep(Duration::from_millis(10)).await;
                waits += 1;
            }
        }
        monoio::time::sleep(SETTLE).await;
        let after = router.memory()?;
        failed.extend(failures.try_iter());
        if let Some(error) = failed.first() {
            eprintln!("  {} of {count} failed, the first: {error}", failed.len());
        }
        Ok((before, after, open.get()))
    })?
}

async fn warm_up(port: u16) -> std::io::Result<()> {
    let mut connections = Vec::new();
    for _ in 0..WARM_UP_CONNECTIONS {
        connections.push(Connection::open(port).await?);
    }
    for number in 0..WARM_UP_REQUESTS {
        for connection in &mut connections {
            ask(connection, number).await?;
        }
    }
    Ok(())
}

async fn ask(connection: &mut Connection, number: usize) -> std::io::Result<()> {
    let text = format!("conversation {number} has its own words; ").repeat(28);
    let body =
        format!("{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}}]}}");
    connection.send(client::request(KEY, &[], &body)).await?;
    match connection.answer().await? {
        200 => Ok(()),
        status => Err(std::io::Error::other(format!("status {status}"))),
    }
}

/// One request, then silence; or one stream, read as it comes.
async fn stay(
    port: u16,
    number: usize,
    is_streamed: bool,
    open: &Cell<usize>,
) -> std::io::Result<()> {
    let mut connection = Connection::open(port).await?;
    if !is_streamed {
        ask(&mut connection, number).await?;
        open.set(open.get() + 1);
        let read = connection.read().await.map(<[u8]>::len);
        open.set(open.get() - 1);
        return Err(std::io::Error::other(format!("an idle connection ended: {read:?}")));
    }
    connection.send(client::streamed(&[], number, SLOW_TOKENS, SLOW_PAUSE_MS)).await?;
    let (mut stream, mut tokens) = (Stream::default(), 0_u64);
    loop {
        let bytes = connection.read().await?;
        if bytes.is_empty() {
            open.set(open.get().saturating_sub(usize::from(tokens > 0)));
            return Err(std::io::Error::other("a stream ended"));
        }
        let before = tokens;
        stream.take(bytes, |_| tokens += 1);
        if before == 0 && tokens > 0 {
            open.set(open.get() + 1);
        }
    }
}
