//! Answers towards the client, in its protocol: a head, a body by pieces, an end.
//!
//! For HTTP/1.1 everything is laid down in the connection's `out` buffer, so head and first piece
//! leave in one write. For HTTP/2 the same calls become frames.

use std::io;
use std::time::Duration;

use h2::Reason;

use crate::connection::{Client, Outlet};
use crate::error::{RequestError, reason_phrase};
use crate::relay::Relayed;
use crate::watch::Phase;

/// What is left unread by a refused client is read and dropped up to this, so that the refusal is
/// not lost in a reset (RFC 9112 §9.6).
const LINGER_BYTES_MAX: usize = 1 << 20;
/// And for so long: a client that reads its refusal hangs up within a round trip.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// How the body under way is delimited towards the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framed {
    /// No body.
    Nothing,
    /// So many bytes, as the head said.
    Length(u64),
    /// Chunks of ours around each piece.
    Chunks,
    /// The engine's bytes, its chunks included, as they are.
    Raw,
    /// Until the connection ends (HTTP/1.0).
    UntilClose,
    /// Data frames.
    Frames,
}

/// The client is gone, or takes no bytes.
#[derive(Debug)]
pub struct ClientGone;

impl From<io::Error> for ClientGone {
    fn from(_: io::Error) -> Self {
        ClientGone
    }
}

impl From<crate::http2::exchange::Gone> for ClientGone {
    fn from(_: crate::http2::exchange::Gone) -> Self {
        ClientGone
    }
}

impl Client {
    /// Whether the way back is HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self.outlet, Outlet::Http2(_))
    }

    /// Begins a head. `reason` may be empty.
    pub fn start_head(&mut self, status: u16, reason: &[u8]) {
        match &self.outlet {
            Outlet::Http1(_) => {
                self.out.clear();
                let mut digits = [b'0'; 3];
                for (digit, place) in digits.iter_mut().zip([100, 10, 1]) {
                    *digit += (status / place % 10) as u8;
                }
                for part in [b"HTTP/1.1 ", digits.as_slice(), b" ", reason, b"\r\n"] {
                    self.out.extend_from_slice(part);
                }
            }
            Outlet::Http2(reply) => reply.start(status),
        }
    }

    /// Adds a field.
    pub fn field(&mut self, name: &[u8], value: &[u8]) {
        match &self.outlet {
            Outlet::Http1(_) => {
                for part in [name, b": ", value, b"\r\n"] {
                    self.out.extend_from_slice(part);
                }
            }
            Outlet::Http2(reply) => reply.field(name, value),
        }
    }

    /// Ends the head. `keep_alive` is `None` where the default of the client's version holds.
    pub fn end_head(&mut self, framed: Framed, keep_alive: Option<bool>) {
        self.framed = framed;
        if let Outlet::Http2(_) = self.outlet {
            if let Framed::Length(length) = framed {
                self.field(b"content-length", length.to_string().as_bytes());
            }
            return;
        }
        match framed {
            Framed::Length(length) => {
                self.field(b"content-length", length.to_string().as_bytes());
            }
            Framed::Chunks => self.field(b"transfer-encoding", b"chunked"),
            Framed::Nothing | Framed::Raw | Framed::UntilClose | Framed::Frames => {}
        }
        match keep_alive {
            None => {}
            Some(true) => self.field(b"connection", b"keep-alive"),
            Some(false) => self.field(b"connection", b"close"),
        }
        self.out.extend_from_slice(b"\r\n");
    }

    /// Adds a piece of the body.
    pub fn push(&mut self, payload: &[u8]) {
        if payload.is_empty() || self.is_head {
            return;
        }
        if self.framed == Framed::Chunks {
            push_hex(&mut self.out, payload.len());
            self.out.extend_from_slice(b"\r\n");
            self.out.extend_from_slice(payload);
            self.out.extend_from_slice(b"\r\n");
        } else {
            self.out.extend_from_slice(payload);
        }
    }

    /// Sends what was laid down.
    ///
    /// # Errors
    /// [`ClientGone`].
    pub async fn flush(&mut self) -> Result<(), ClientGone> {
        self.watch.enter(Phase::Client);
        self.sent_bytes += self.out.len() as u64;
        match &mut self.outlet {
            Outlet::Http1(stream) => {
                if !self.out.is_empty() {
                    stream.write_all(&mut self.out).await?;
                }
            }
            // Boxed: the rarer protocol must not make every request's future larger.
            Outlet::Http2(reply) => Box::pin(reply.send(&self.out, &self.watch)).await?,
        }
        self.out.clear();
        Ok(())
    }

    /// Ends the body and sends what is left.
    ///
    /// # Errors
    /// [`ClientGone`].
    pub async fn finish(&mut self) -> Result<(), ClientGone> {
        if self.framed == Framed::Chunks && !self.is_head {
            self.out.extend_from_slice(b"0\r\n\r\n");
        }
        if !self.out.is_empty() || self.is_http2() {
            self.flush().await?;
        }
        if let Outlet::Http2(reply) = &self.outlet {
            reply.finish()?;
        }
        Ok(())
    }

    /// Gives the answer up so that the client knows that it is not whole. On HTTP/1.1 the caller
    /// closes the connection.
    pub fn abort(&mut self) {
        if let Outlet::Http2(reply) = &self.outlet {
            reply.abort(Reason::INTERNAL_ERROR);
        }
    }

    /// Writes a whole answer of ours.
    pub async fn write_response(
        &mut self,
        status: u16,
        content_type: &str,
        fields: &[(&str, &str)],
        body: &[u8],
        keep_alive: bool,
    ) -> Relayed {
        self.start_head(status, reason_phrase(status).as_bytes());
        self.field(b"content-type", content_type.as_bytes());
        for (name, value) in fields {
            self.field(name.as_bytes(), value.as_bytes());
        }
        self.end_head(Framed::Length(body.len() as u64), (!keep_alive).then_some(false));
        self.push(body);
        match self.finish().await {
            Ok(()) if keep_alive => Relayed::KeepAlive,
            _ => Relayed::Close,
        }
    }

    /// Writes a refusal in OpenAI's envelope, with `more` fields.
    pub async fn refuse(
        &mut self,
        error: &RequestError,
        request_id: &str,
        more: &[(&'static str, String)],
        keep_alive: bool,
    ) -> Relayed {
        let refusal = error.refusal();
        let seconds = refusal.retry_after_s.map(|seconds| seconds.to_string());
        let mut fields = vec![("x-request-id", request_id)];
        if let Some(seconds) = &seconds {
            fields.push(("retry-after", seconds));
        }
        fields.extend(refusal.fields.iter().copied());
        fields.extend(more.iter().map(|(name, value)| (*name, value.as_str())));
        let keep_alive = keep_alive && !refusal.close;
        let json = "application/json";
        let written =
            self.write_response(refusal.status, json, &fields, &refusal.body, keep_alive).await;
        if refusal.close {
            self.linger().await;
        }
        written
    }

    /// Ends our side and lets the client finish its own, within bounds of bytes and time.
    async fn linger(&mut self) {
        let Outlet::Http1(stream) = &mut self.outlet else { return };
        if stream.shutdown().await.is_err() {
            return;
        }
        let inbuf = &mut self.inbuf;
        let dropping = async {
            let mut dropped = 0;
            while dropped < LINGER_BYTES_MAX {
                inbuf.clear();
                match stream.read_more(inbuf, 64 << 10).await {
                    Ok(read) if read > 0 => dropped += read,
                    _ => return,
                }
            }
        };
        // Boxed: this is rare, and a request's future must not be larger for it.
        let _ = monoio::time::timeout(LINGER_MAX, Box::pin(dropping)).await;
    }
}

fn push_hex(out: &mut Vec<u8>, number: usize) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = (number >> (place * 4)) as u8 & 15;
        out.push(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_written_as_hex() {
        for number in [0, 1, 9, 10, 15, 16, 255, 256, 4_095, 65_536, usize::MAX] {
            let mut out = Vec::new();
            push_hex(&mut out, number);
            assert_eq!(out, format!("{number:x}").into_bytes());
        }
    }
}
