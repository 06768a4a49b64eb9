//! One stream of HTTP/2 as the request's life knows it: a whole request in, an answer out.
//!
//! The request is written down in the form of HTTP/1.1 and parsed like one, so every phase behind
//! *read* is the same code for both protocols. [`Reply`] is the way back.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::error::RequestError;
use crate::pace::Pace;
use crate::read::Request;
use crate::watch::{Phase, Watch};

/// The client's side of one stream. Shared by the task that answers and its look-out for a reset.
#[derive(Clone)]
pub struct Reply(Rc<RefCell<Sending>>);

struct Sending {
    respond: SendResponse<Bytes>,
    head: Option<Response<()>>,
    body: Option<SendStream<Bytes>>,
    ended: bool,
}

/// The stream or its connection is gone.
#[derive(Debug)]
pub struct Gone;

impl Reply {
    /// The way back of a request.
    pub fn new(respond: SendResponse<Bytes>) -> Self {
        Reply(Rc::new(RefCell::new(Sending { respond, head: None, body: None, ended: false })))
    }

    /// Begins a head; a later one replaces an earlier one that was not sent.
    pub fn start(&self, status: u16) {
        let mut head = Response::new(());
        *head.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        self.0.borrow_mut().head = Some(head);
    }

    /// Adds a field. One that HTTP/2 cannot carry is left out.
    pub fn field(&self, name: &[u8], value: &[u8]) {
        let mut sending = self.0.borrow_mut();
        if let Some(head) = &mut sending.head
            && let Ok(name) = HeaderName::from_bytes(name)
            && let Ok(value) = HeaderValue::from_bytes(value)
        {
            head.headers_mut().append(name, value);
        }
    }

    /// Sends the head, if it is still here, and then `data`.
    ///
    /// # Errors
    /// [`Gone`]; also when the client takes no bytes for too long.
    pub async fn send(&self, data: &[u8], watch: &Watch) -> Result<(), Gone> {
        self.send_head()?;
        let mut left = Bytes::copy_from_slice(data);
        while !left.is_empty() {
            self.reserve(left.len());
            let room = poll_fn(|cx| {
                watch.wake_by_verdict(cx.waker());
                match watch.is_client_lost() {
                    true => Poll::Ready(Err(Gone)),
                    false => self.poll_room(cx),
                }
            })
            .await?;
            let part = left.split_to(room.min(left.len()));
            self.with_body(|body| body.send_data(part, false))?;
        }
        Ok(())
    }

    /// Ends the stream. Flushes are the connection's.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn finish(&self) -> Result<(), Gone> {
        self.send_head()?;
        if std::mem::replace(&mut self.0.borrow_mut().ended, true) {
            return Ok(());
        }
        self.with_body(|body| body.send_data(Bytes::new(), true))
    }

    /// Breaks the stream off, so that the client knows that the answer is not whole.
    pub fn abort(&self, reason: Reason) {
        let mut sending = self.0.borrow_mut();
        if std::mem::replace(&mut sending.ended, true) {
            return;
        }
        match &mut sending.body {
            Some(body) => body.send_reset(reason),
            None => sending.respond.send_reset(reason),
        }
    }

    /// Ready once the client has taken its stream back.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut sending = self.0.borrow_mut();
        if sending.ended {
            return Poll::Pending;
        }
        let reset = match &mut sending.body {
            Some(body) => body.poll_reset(cx),
            None => sending.respond.poll_reset(cx),
        };
        reset.map(drop)
    }

    fn send_head(&self) -> Result<(), Gone> {
        let mut sending = self.0.borrow_mut();
        if let Some(head) = sending.head.take() {
            let body = sending.respond.send_response(head, false).map_err(|_| Gone)?;
            sending.body = Some(body);
        }
        Ok(())
    }

    fn reserve(&self, bytes: usize) {
        if let Some(body) = &mut self.0.borrow_mut().body {
            body.reserve_capacity(bytes);
        }
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<usize, Gone>> {
        let mut sending = self.0.borrow_mut();
        let Some(body) = &mut sending.body else { return Poll::Ready(Err(Gone)) };
        loop {
            match body.poll_capacity(cx) {
                // A window that shrank again. Only a poll that ends pending leaves a waker behind.
                Poll::Ready(Some(Ok(0))) => {}
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(room))) => return Poll::Ready(Ok(room)),
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(Gone)),
            }
        }
    }

    fn with_body(
        &self,
        act: impl FnOnce(&mut SendStream<Bytes>) -> Result<(), h2::Error>,
    ) -> Result<(), Gone> {
        match &mut self.0.borrow_mut().body {
            Some(body) => act(body).map_err(|_| Gone),
            None => Err(Gone),
        }
    }
}

/// Reads one request whole. `Ok(None)`: the client took it back.
///
/// # Errors
/// [`RequestError`].
pub async fn read(
    parts: &http::request::Parts,
    mut body: RecvStream,
    body_bytes_max: usize,
    pace: &mut Pace,
    watch: &Watch,
) -> Result<Option<Request>, RequestError> {
    let mut bytes = Vec::new();
    pace.begin(Instant::now());
    while let Some(part) = body.data().await {
        let Ok(part) = part else { return Ok(None) };
        watch.enter(Phase::Client);
        if bytes.len() + part.len() > body_bytes_max {
            return Err(RequestError::BodyTooLong(body_bytes_max));
        }
        bytes.extend_from_slice(&part);
        // Frames of a byte or none would otherwise keep a stream open for ever.
        if pace.is_too_slow(bytes.len(), Instant::now()) {
            return Ok(None);
        }
        if body.flow_control().release_capacity(part.len()).is_err() {
            return Ok(None);
        }
    }
    Request::from_head(head_of(parts), bytes).map(Some).map_err(RequestError::Head)
}

/// The head in the form of HTTP/1.1, without its blank line's length fields: the body is whole.
fn head_of(parts: &http::request::Parts) -> Vec<u8> {
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    // RFC 9113 §8.3.1: the authority, or the field where a gateway put it back.
    let host = match parts.uri.authority() {
        Some(authority) => authority.as_str().as_bytes(),
        None => parts.headers.get(http::header::HOST).map_or(&b""[..], HeaderValue::as_bytes),
    };
    let mut head = format!("{} {target} HTTP/1.1\r\nhost: ", parts.method).into_bytes();
    head.extend_from_slice(host);
    head.extend_from_slice(b"\r\n");
    for (name, value) in &parts.headers {
        if matches!(name.as_str(), "content-length" | "expect" | "host") {
            continue;
        }
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}
