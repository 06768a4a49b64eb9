//! One client connection: requests one after another until either side has had enough.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use monoio::net::TcpStream;

use crate::error::{RequestError, reason_phrase};
use crate::relay::Relayed;
use crate::request;
use crate::shard::Shard;
use crate::socket::write_all;
use crate::watch::{Phase, Registration};

/// Buffers of an idle connection are cut down to this: what a 32 KB prompt needs, so that a client
/// that sends one after another has them read in one piece each.
const IDLE_BUFFER_BYTES_MAX: usize = 40 << 10;
/// What is left unread by a refused client is read and dropped up to this, so that the refusal is
/// not lost in a reset (RFC 9112 §9.6).
const LINGER_BYTES_MAX: usize = 1 << 20;

/// A client and the buffers of its connection.
pub struct Client {
    /// Registered with the watchdog; declared first, so dropped before the socket is closed.
    pub watch: Registration,
    /// The socket.
    pub stream: TcpStream,
    /// Who it is.
    pub peer: SocketAddr,
    /// Bytes read and not yet used.
    pub inbuf: Vec<u8>,
    /// Bytes about to be written.
    pub out: Vec<u8>,
}

/// Serves `stream` to its end.
pub async fn serve(shard: Rc<Shard>, stream: TcpStream, peer: SocketAddr) {
    // Without it Nagle holds a token back until the last one is acknowledged: 40 ms.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let watch = shard.watchdog.register(stream.as_raw_fd());
    let mut client = Client { watch, stream, peer, inbuf: Vec::new(), out: Vec::new() };
    shard.stats.connections.inc();
    while request::serve(&shard, &mut client).await == Relayed::KeepAlive {
        if shard.cluster.draining.load(std::sync::atomic::Ordering::Relaxed) {
            break;
        }
        client.inbuf.shrink_to(IDLE_BUFFER_BYTES_MAX);
        client.out.shrink_to(IDLE_BUFFER_BYTES_MAX);
    }
    shard.stats.connections.dec();
}

impl Client {
    /// Writes a whole answer of ours.
    pub async fn write_response(
        &mut self,
        status: u16,
        content_type: &str,
        extra_fields: &str,
        body: &[u8],
        keep_alive: bool,
    ) -> Relayed {
        self.out.clear();
        let connection = if keep_alive { "" } else { "connection: close\r\n" };
        self.out.extend_from_slice(
            format!(
                "HTTP/1.1 {status} {}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n{connection}{extra_fields}\r\n",
                reason_phrase(status),
                body.len()
            )
            .as_bytes(),
        );
        self.out.extend_from_slice(body);
        self.watch.enter(Phase::Client);
        match write_all(&mut self.stream, &mut self.out).await {
            Ok(()) if keep_alive => Relayed::KeepAlive,
            _ => Relayed::Close,
        }
    }

    /// Writes a refusal in OpenAI's envelope.
    pub async fn refuse(
        &mut self,
        error: &RequestError,
        request_id: &str,
        keep_alive: bool,
    ) -> Relayed {
        let refusal = error.refusal();
        let mut fields = format!("x-request-id: {request_id}\r\n");
        if let Some(seconds) = refusal.retry_after_s {
            fields.push_str(&format!("retry-after: {seconds}\r\n"));
        }
        if let RequestError::Method { allowed, .. } = error {
            fields.push_str(&format!("allow: {allowed}\r\n"));
        }
        let keep_alive = keep_alive && !refusal.close;
        let written = self
            .write_response(refusal.status, "application/json", &fields, &refusal.body, keep_alive)
            .await;
        if refusal.close {
            self.linger().await;
        }
        written
    }

    /// Ends our side and lets the client finish its own, within bounds of bytes and (by the
    /// watchdog) of time.
    async fn linger(&mut self) {
        use monoio::io::AsyncWriteRent;
        if self.stream.shutdown().await.is_err() {
            return;
        }
        let mut dropped = 0;
        while dropped < LINGER_BYTES_MAX {
            self.inbuf.clear();
            self.watch.enter(Phase::ClientIdle);
            match crate::socket::read_more(&mut self.stream, &mut self.inbuf, 64 << 10).await {
                Ok(read) if read > 0 => dropped += read,
                _ => return,
            }
        }
    }
}
