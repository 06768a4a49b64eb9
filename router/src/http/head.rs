//! Request and response heads: what the router must know of them, and where the rest lies.
//!
//! Header fields are kept as ranges into the bytes they were read from and passed on as they came,
//! hop-by-hop fields (RFC 9110 §7.6.1) excepted. Ambiguous framing is refused, never guessed.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::body::Framing;

/// A head may have so many fields.
pub const HEADERS_MAX: usize = 100;

/// One header field as ranges into the head's bytes.
#[derive(Clone, Debug)]
pub struct Field {
    /// The name, as sent.
    pub name: Range<usize>,
    /// The value without surrounding white space.
    pub value: Range<usize>,
}

/// Why a head was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Not HTTP/1.x, or a field is malformed.
    #[error("the HTTP head is malformed")]
    Malformed,
    /// More than [`HEADERS_MAX`] fields.
    #[error("more than {HEADERS_MAX} header fields")]
    TooManyFields,
    /// Content-Length that is not one number, or that contradicts Transfer-Encoding.
    #[error("the length of the body is ambiguous")]
    Framing,
    /// A transfer coding other than `chunked`.
    #[error("only the transfer coding `chunked` is supported")]
    TransferCoding,
    /// A request of HTTP/1.1 without `Host`, or any with more than one (RFC 9112 §3.2).
    #[error("a request needs exactly one Host field")]
    Host,
}

/// A client's head.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// `GET`, `POST`, …
    pub method: Range<usize>,
    /// Path and query, also where the client sent an absolute URL.
    pub target: Range<usize>,
    /// All fields.
    pub fields: Vec<Field>,
    /// Length or chunks; [`Framing::None`] without either.
    pub framing: Framing,
    /// Whether the connection stays open after this exchange.
    pub keep_alive: bool,
    /// HTTP/1.0: no chunks in the answer.
    pub is_http_10: bool,
    /// `HEAD`: the answer has no body, whatever its fields say.
    pub is_head: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// `x-request-id`, if the client sent one.
    pub request_id: Option<Range<usize>>,
    /// `authorization`.
    pub authorization: Option<Range<usize>>,
    /// `x-api-key`.
    pub api_key: Option<Range<usize>>,
    /// `x-cgn-deadline-ms`.
    pub deadline: Option<Range<usize>>,
    /// `x-cgn-priority`.
    pub priority: Option<Range<usize>>,
    /// `x-cgn-score-weights`.
    pub score_weights: Option<Range<usize>>,
    /// `x-cgn-temperature`.
    pub temperature: Option<Range<usize>>,
    /// `traceparent`; `None` also where it was sent twice.
    pub traceparent: Option<Range<usize>>,
    /// `tracestate`.
    pub tracestate: Option<Range<usize>>,
    /// `accept`.
    pub accept: Option<Range<usize>>,
    /// Bytes of the head, blank line included.
    pub length: usize,
}

/// An engine's head.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// 200, 404, …
    pub status: u16,
    /// The reason phrase.
    pub reason: Range<usize>,
    /// All fields.
    pub fields: Vec<Field>,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the connection may be used again.
    pub keep_alive: bool,
    /// `content-type: text/event-stream`.
    pub is_event_stream: bool,
    /// Bytes of the head, blank line included.
    pub length: usize,
}

impl ResponseHead {
    /// The head of an answer that has not begun.
    pub fn none() -> Self {
        ResponseHead {
            status: 0,
            reason: 0..0,
            fields: Vec::new(),
            framing: Framing::None,
            keep_alive: false,
            is_event_stream: false,
            length: 0,
        }
    }
}

/// The range that `part` takes within `whole`; `part` must be a subslice of it.
fn range_in(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

/// What the fields say of connection and framing, gathered in one pass.
#[derive(Default)]
struct Facts {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl Facts {
    fn note(&mut self, name: &str, value: &[u8]) -> Result<(), HeadError> {
        if name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(value).map_err(|_| HeadError::Framing)?;
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return Err(HeadError::Framing);
            }
            let length = text.parse().map_err(|_| HeadError::Framing)?;
            if self.length.is_some_and(|known| known != length) {
                return Err(HeadError::Framing);
            }
            self.length = Some(length);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(HeadError::TransferCoding);
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case("connection") {
            for option in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
                self.close |= option.eq_ignore_ascii_case(b"close");
                self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        }
        Ok(())
    }

    fn stays_open(&self, is_http_10: bool) -> bool {
        !self.close && (!is_http_10 || self.keep_alive)
    }
}

/// Whether each line ends with CR LF. `httparse` lets a bare LF pass, as RFC 9112 §2.2 allows; where two
/// hops read that differently, a request hides in another's field.
fn has_strict_line_ends(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|at| at > 0 && head[at - 1] == b'\r')
}

/// Path and query of a target: what follows the authority of an absolute URL (RFC 9112 §3.2.2).
fn origin_form(target: &str) -> Result<&str, HeadError> {
    let scheme = ["http://", "https://"].into_iter().find(|scheme| {
        target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    });
    let Some(scheme) = scheme else { return Ok(target) };
    let at = target[scheme.len()..].find('/').ok_or(HeadError::Malformed)?;
    let (authority, path) = target[scheme.len()..].split_at(at);
    if authority.is_empty() || authority.contains(['?', '#', '@']) {
        return Err(HeadError::Malformed);
    }
    Ok(path)
}

fn refuse(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooManyFields,
        _ => HeadError::Malformed,
    }
}

/// Parses a request head at the start of `bytes`; `None` until all of it is there.
///
/// # Errors
/// [`HeadError`].
pub fn parse_request(bytes: &[u8]) -> Result<Option<RequestHead>, HeadError> {
    // Not initialized: filling three kilobytes costs as much as parsing a usual head.
    let mut storage = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let status = parsed.parse_with_uninit_headers(bytes, &mut storage);
    let length = match status.map_err(refuse)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(HeadError::Malformed);
    };
    if !has_strict_line_ends(&bytes[..length]) {
        return Err(HeadError::Malformed);
    }
    let target = origin_form(target)?;
    let mut facts = Facts::default();
    let mut fields = Vec::with_capacity(parsed.headers.len());
    let mut expects_continue = false;
    let mut known = Known::default();
    let mut hosts = 0;
    for header in parsed.headers.iter() {
        facts.note(header.name, header.value)?;
        let value = range_in(bytes, header.value);
        if header.name.eq_ignore_ascii_case("expect") {
            expects_continue = header.value.eq_ignore_ascii_case(b"100-continue");
        } else if header.name.eq_ignore_ascii_case("host") {
            hosts += 1;
        } else {
            known.note(header.name, &value);
        }
        fields.push(Field { name: range_in(bytes, header.name.as_bytes()), value });
    }
    if hosts > 1 || (hosts == 0 && minor > 0) {
        return Err(HeadError::Host);
    }
    let framing = match (facts.chunked, facts.length) {
        // RFC 9112 §6.3: both together is how requests are smuggled.
        (true, Some(_)) => return Err(HeadError::Framing),
        (true, None) if minor == 0 => return Err(HeadError::Framing),
        (true, None) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::None,
    };
    Ok(Some(RequestHead {
        method: range_in(bytes, method.as_bytes()),
        target: range_in(bytes, target.as_bytes()),
        fields,
        framing,
        keep_alive: facts.stays_open(minor == 0),
        is_http_10: minor == 0,
        is_head: method == "HEAD",
        expects_continue,
        request_id: known.request_id,
        authorization: known.authorization,
        api_key: known.api_key,
        deadline: known.deadline,
        priority: known.priority,
        score_weights: known.score_weights,
        temperature: known.temperature,
        traceparent: known.traceparent.filter(|_| !known.is_traced_twice),
        tracestate: known.tracestate,
        accept: known.accept,
        length,
    }))
}

/// Where the fields lie that the router reads.
#[derive(Default)]
struct Known {
    request_id: Option<Range<usize>>,
    authorization: Option<Range<usize>>,
    api_key: Option<Range<usize>>,
    deadline: Option<Range<usize>>,
    priority: Option<Range<usize>>,
    score_weights: Option<Range<usize>>,
    temperature: Option<Range<usize>>,
    traceparent: Option<Range<usize>>,
    is_traced_twice: bool,
    tracestate: Option<Range<usize>>,
    accept: Option<Range<usize>>,
}

impl Known {
    fn note(&mut self, name: &str, value: &Range<usize>) {
        // By length first: most fields are none of these.
        let (known, place) = match name.len() {
            6 => ("accept", &mut self.accept),
            9 => ("x-api-key", &mut self.api_key),
            10 => ("tracestate", &mut self.tracestate),
            11 => ("traceparent", &mut self.traceparent),
            12 => ("x-request-id", &mut self.request_id),
            13 => ("authorization", &mut self.authorization),
            14 => ("x-cgn-priority", &mut self.priority),
            17 if matches!(name.as_bytes()[6], b't' | b'T') => {
                ("x-cgn-temperature", &mut self.temperature)
            }
            17 => ("x-cgn-deadline-ms", &mut self.deadline),
            19 => ("x-cgn-score-weights", &mut self.score_weights),
            _ => return,
        };
        if name.eq_ignore_ascii_case(known) {
            let before = place.replace(value.clone());
            self.is_traced_twice |= known == "traceparent" && before.is_some();
        }
    }
}

/// Parses a response head at the start of `bytes`; `None` until all of it is there.
///
/// # Errors
/// [`HeadError`].
pub fn parse_response(bytes: &[u8]) -> Result<Option<ResponseHead>, HeadError> {
    let mut storage = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut parsed,
        bytes,
        &mut storage,
    );
    let length = match status.map_err(refuse)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let (Some(status), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(HeadError::Malformed);
    };
    let mut facts = Facts::default();
    let mut fields = Vec::with_capacity(parsed.headers.len());
    let mut is_event_stream = false;
    for header in parsed.headers.iter() {
        facts.note(header.name, header.value)?;
        if header.name.eq_ignore_ascii_case("content-type") {
            is_event_stream = header.value.len() >= 17
                && header.value[..17].eq_ignore_ascii_case(b"text/event-stream");
        }
        fields.push(Field {
            name: range_in(bytes, header.name.as_bytes()),
            value: range_in(bytes, header.value),
        });
    }
    let framing = match (facts.chunked, facts.length) {
        _ if status < 200 || status == 204 || status == 304 => Framing::None,
        (true, Some(_)) => return Err(HeadError::Framing),
        (true, None) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::UntilClose,
    };
    let reason = parsed.reason.filter(|reason| !reason.is_empty());
    Ok(Some(ResponseHead {
        status,
        reason: reason.map_or(0..0, |reason| range_in(bytes, reason.as_bytes())),
        fields,
        framing,
        keep_alive: facts.stays_open(minor == 0) && framing != Framing::UntilClose,
        is_event_stream,
        length,
    }))
}

/// Whether a field is for one hop only and is never passed on.
pub fn is_hop_by_hop(name: &[u8]) -> bool {
    const NAMES: [&str; 10] = [
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    NAMES.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(text: &str) -> Result<Option<RequestHead>, HeadError> {
        parse_request(text.as_bytes())
    }

    #[test]
    fn a_plain_head_is_understood() {
        let text = "POST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nX-Request-Id: r1\r\n\r\nbody";
        let head = request(text).unwrap().unwrap();
        assert_eq!(&text[head.target.clone()], "/v1/x?y=1");
        assert_eq!(head.framing, Framing::Length(12));
        assert_eq!(&text[head.request_id.unwrap()], "r1");
        assert!(head.keep_alive);
        assert_eq!(&text[head.length..], "body");
    }

    #[test]
    fn a_part_of_a_head_waits() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for cut in 0..text.len() {
            assert!(request(&text[..cut]).unwrap().is_none());
        }
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for fields in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Content-Length: 1\r\nContent-Length: 2",
            "Content-Length: +1",
            "Content-Length: ",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
            let refused = request(&text).unwrap_err();
            assert!(matches!(refused, HeadError::Framing | HeadError::TransferCoding), "{fields}");
        }
        assert!(request("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }

    #[test]
    fn lines_that_two_hops_may_read_differently_are_refused() {
        for text in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(request(text).unwrap_err(), HeadError::Malformed, "{text:?}");
        }
    }

    #[test]
    fn exactly_one_host_except_from_old_clients() {
        assert_eq!(request("GET / HTTP/1.1\r\n\r\n").unwrap_err(), HeadError::Host);
        let two = "GET / HTTP/1.0\r\nHost: a\r\nhost: a\r\n\r\n";
        assert_eq!(request(two).unwrap_err(), HeadError::Host);
        assert!(request("GET / HTTP/1.0\r\n\r\n").is_ok());
    }

    #[test]
    fn an_absolute_target_is_its_path() {
        let target = |target: &str| {
            let text = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
            request(&text).map(|head| text[head.unwrap().target].to_owned())
        };
        assert_eq!(target("http://h:1/v1/x?y=http://z/").unwrap(), "/v1/x?y=http://z/");
        assert_eq!(target("HTTPS://[::1]/").unwrap(), "/");
        assert_eq!(target("*").unwrap(), "*");
        for bad in ["http://h", "http:///x", "http://u@h/x", "http://h?x/"] {
            assert_eq!(target(bad).unwrap_err(), HeadError::Malformed, "{bad}");
        }
    }

    #[test]
    fn keep_alive_follows_the_version_and_the_field() {
        let open = |text: &str| request(text).unwrap().unwrap().keep_alive;
        assert!(open("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(!open("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        assert!(!open("GET / HTTP/1.0\r\n\r\n"));
        assert!(open("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
    }

    #[test]
    fn a_response_without_length_ends_by_closing() {
        let head = parse_response(b"HTTP/1.1 200 OK\r\n\r\n").unwrap().unwrap();
        assert_eq!((head.framing, head.keep_alive), (Framing::UntilClose, false));
        let head = parse_response(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap().unwrap();
        assert_eq!((head.framing, head.keep_alive), (Framing::None, true));
    }

    proptest! {
        #[test]
        fn hostile_heads_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_request(&bytes);
            let _ = parse_response(&bytes);
            let mut framed = b"POST / HTTP/1.1\r\n".to_vec();
            framed.extend(&bytes);
            let _ = parse_request(&framed);
        }
    }
}
