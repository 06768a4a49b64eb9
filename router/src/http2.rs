//! HTTP/2 from clients (RFC 9113), by `h2`: many requests on one connection, each with the life of
//! `request.rs`. Towards engines the router speaks HTTP/1.1.
//!
//! Bounds: streams at once, header bytes and flow-control windows by `[router.limits]`; pings, resets
//! and settings in floods by `h2` itself, which ends the connection (ENHANCE_YOUR_CALM).

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use monoio::net::TcpStream;

use crate::connection::{Client, Outlet, Peer};
use crate::pace::Pace;
use crate::request;
use crate::shard::Shard;
use crate::tls::Session;
use crate::watch::{ClientEnd, Phase, Registration, Verdict, Watch};

pub mod exchange;
pub mod io;

use exchange::Reply;
use io::PolledIo;

/// What a client sends first (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a request body a client may send ahead, per stream and over all streams of a connection:
/// one long prompt in one round trip, and sixteen of them.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes of answers buffered per stream before the engine is read no further.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Streams reset by the client and not yet taken up; more is an attack (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 32;
/// How often a connection looks whether the router is draining.
const DRAIN_LOOK: Duration = Duration::from_millis(250);

/// Serves a connection that speaks HTTP/2, to its end.
pub async fn serve(
    shard: &Rc<Shard>,
    tcp: TcpStream,
    session: Option<Session>,
    read_ahead: Vec<u8>,
    peer: Rc<Peer>,
    watch: Registration,
) {
    let limits = &shard.config.limits;
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.http2_streams_max)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX);
    watch.enter(Phase::Client);
    let io = PolledIo::new(tcp, session, read_ahead);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(io).await else { return };
    let running = Rc::new(Cell::new(0_u32));
    let mut is_leaving = false;
    let mut phase = Phase::Client;
    loop {
        let now = if running.get() == 0 { Phase::ClientIdle } else { Phase::Busy };
        // Entered anew only on a change: idle time counts from the end of the last request.
        if now != phase {
            phase = now;
            watch.enter(phase);
        }
        let accepted = monoio::time::timeout(DRAIN_LOOK, connection.accept()).await;
        if shard.cluster.draining.load(Relaxed) && !is_leaving {
            // The client opens no further streams; those it has are answered.
            connection.graceful_shutdown();
            is_leaving = true;
        }
        match accepted {
            Err(_) => {}
            Ok(Some(Ok((request, respond)))) => {
                begin(shard, &peer, &running, request, respond);
            }
            Ok(Some(Err(_)) | None) => break,
        }
    }
}

/// Gives one stream a task of its own. `h2` has counted it against the streams at once.
fn begin(
    shard: &Rc<Shard>,
    peer: &Rc<Peer>,
    running: &Rc<Cell<u32>>,
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (shard, peer, running) = (Rc::clone(shard), Rc::clone(peer), Rc::clone(running));
    running.set(running.get() + 1);
    shard.stats.http2_streams.inc();
    monoio::spawn(async move {
        stream(&shard, peer, request, respond).await;
        shard.stats.http2_streams.dec();
        running.set(running.get() - 1);
    });
}

/// One request. A reset by the client ends the engine's work at once.
async fn stream(
    shard: &Rc<Shard>,
    peer: Rc<Peer>,
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let watch = shard.watchdog.register(ClientEnd::Stream);
    let look_out = watch.handle();
    let reply = Reply::new(respond);
    let mut client = Client::new(watch, Outlet::Http2(reply.clone()), peer);
    let (parts, body) = request.into_parts();
    client.is_head = parts.method == http::Method::HEAD;
    let answering = async {
        look_out.enter(Phase::Client);
        let limits = &shard.config.limits;
        let mut pace = Pace::new(Duration::from_secs(limits.client_stall_s_max));
        let reading = exchange::read(&parts, body, limits.body_bytes_max, &mut pace, &look_out);
        let request = unless_slow(&look_out, reading).await;
        match request {
            Some(Ok(Some(request))) => request::run(shard, &mut client, request).await,
            Some(Err(error)) => request::refuse_unread(shard, &mut client, &error).await,
            Some(Ok(None)) | None => return,
        };
        // An answer that is whole was ended where it ended; anything else is no answer.
        reply.abort(Reason::INTERNAL_ERROR);
    };
    let mut answering = std::pin::pin!(answering);
    let mut is_gone = false;
    poll_fn(|cx| {
        if !is_gone && reply.poll_gone(cx).is_ready() {
            is_gone = true;
            look_out.condemn(Verdict::ClientGone);
        }
        answering.as_mut().poll(cx)
    })
    .await;
}

/// Gives `reading` up when the client sends nothing for too long.
async fn unless_slow<T>(watch: &Watch, reading: impl Future<Output = T>) -> Option<T> {
    let mut reading = std::pin::pin!(reading);
    poll_fn(|cx| {
        watch.wake_by_verdict(cx.waker());
        match reading.as_mut().poll(cx) {
            Poll::Ready(read) => Poll::Ready(Some(read)),
            Poll::Pending if watch.verdict().is_some() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
