//! Where the events of a stream end (`text/event-stream`), whatever way its bytes were cut.
//!
//! Fed payload, already without chunk heads. Whole events are handed out as they lie in the caller's
//! buffer; only an event that is cut by the end of a run is copied. Line ends are LF or CRLF, mixed
//! at will; a lone CR, which the format would allow, is sent by no engine and gives up. Giving up
//! ends the following of this stream, never the stream.

use memchr::{memchr, memchr_iter};

/// A longer event is not followed. Engines send about 250 bytes an event; llama.cpp with `verbose`
/// repeats its settings in 2 KiB. It also bounds what a relay may have to hold back.
pub const EVENT_BYTES_MAX: usize = 32 << 10;

/// Splits a stream into events.
#[derive(Debug, Default)]
pub struct Events {
    /// The event that is not complete yet.
    pending: Vec<u8>,
    /// Where its last line begins.
    line_start: usize,
    given_up: bool,
}

impl Events {
    /// Whether an event was too long or not of this format: nothing is followed any more.
    pub fn has_given_up(&self) -> bool {
        self.given_up
    }

    /// How many bytes at the end of what was pushed belong to an event that is not complete.
    pub fn incomplete_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Takes the next run of payload; calls `event` with each event that it completes, line ends
    /// included.
    pub fn push(&mut self, run: &[u8], mut event: impl FnMut(&[u8])) {
        if self.given_up {
            return;
        }
        let mut rest = run;
        if !self.pending.is_empty() {
            rest = self.complete(rest, &mut event);
        }
        while let Some(end) = event_end(rest) {
            if end > EVENT_BYTES_MAX {
                return self.give_up();
            }
            event(&rest[..end]);
            rest = &rest[end..];
        }
        if !rest.is_empty() {
            self.keep(rest);
        }
    }

    /// Goes on with the pending event, line by line; returns what lies behind its end.
    fn complete<'a>(&mut self, run: &'a [u8], event: &mut impl FnMut(&[u8])) -> &'a [u8] {
        let mut rest = run;
        while let Some(at) = memchr(b'\n', rest) {
            let (line, behind) = rest.split_at(at + 1);
            if self.pending.len() + line.len() > EVENT_BYTES_MAX {
                self.give_up();
                return &[];
            }
            self.pending.extend_from_slice(line);
            rest = behind;
            if is_empty_line(&self.pending[self.line_start..]) {
                event(&self.pending);
                self.pending.clear();
                self.line_start = 0;
                return rest;
            }
            self.line_start = self.pending.len();
        }
        self.keep(rest);
        &[]
    }

    /// Keeps the beginning of an event, or more of it, that holds no end.
    fn keep(&mut self, part: &[u8]) {
        if self.pending.len() + part.len() > EVENT_BYTES_MAX {
            return self.give_up();
        }
        let base = self.pending.len();
        self.pending.extend_from_slice(part);
        if let Some(at) = memchr::memrchr(b'\n', part) {
            self.line_start = base + at + 1;
        }
        if has_lone_cr(&self.pending) {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        *self = Events { given_up: true, ..Events::default() };
    }
}

/// The length of the first event of `bytes`, the empty line included.
fn event_end(bytes: &[u8]) -> Option<usize> {
    let mut line = 0;
    for at in memchr_iter(b'\n', bytes) {
        if is_empty_line(&bytes[line..=at]) {
            return Some(at + 1);
        }
        line = at + 1;
    }
    None
}

fn is_empty_line(line: &[u8]) -> bool {
    matches!(line, b"\n" | b"\r\n")
}

/// A CR that ends a line by itself. The last byte may still be followed by its LF.
fn has_lone_cr(bytes: &[u8]) -> bool {
    memchr_iter(b'\r', bytes).any(|at| bytes.get(at + 1).is_some_and(|next| *next != b'\n'))
}

/// What an event carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// A comment, or no field we know: `: ping`.
    None,
    /// The value of its one `data` field.
    One(&'a [u8]),
    /// Several `data` fields, joined by LF.
    Joined(Vec<u8>),
}

impl Data<'_> {
    /// Its bytes; empty where there are none.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Data::None => b"",
            Data::One(bytes) => bytes,
            Data::Joined(bytes) => bytes,
        }
    }
}

/// The data of one event.
pub fn data(event: &[u8]) -> Data<'_> {
    let mut found = Data::None;
    for line in event.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(value) = line.strip_prefix(b"data") else { continue };
        let value = match value {
            [] => value,
            [b':', b' ', value @ ..] | [b':', value @ ..] => value,
            _ => continue,
        };
        found = match found {
            Data::None => Data::One(value),
            Data::One(before) => Data::Joined([before, b"\n", value].concat()),
            Data::Joined(mut before) => {
                before.push(b'\n');
                before.extend_from_slice(value);
                Data::Joined(before)
            }
        };
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All events of `parts`, and how many bytes are left of an incomplete one.
    fn split(parts: &[&[u8]]) -> (Vec<Vec<u8>>, usize) {
        let (mut events, mut out) = (Events::default(), Vec::new());
        for part in parts {
            events.push(part, |event| out.push(event.to_vec()));
        }
        assert!(!events.has_given_up());
        (out, events.incomplete_bytes())
    }

    #[test]
    fn line_ends_may_be_mixed_and_data_is_read_with_and_without_a_space() {
        let stream = b"data: a\n\ndata:b\r\n\r\ndata: c\r\n\n: ping\n\nid: 1\ndata: d\ndata\ndata:e\n\ndata: half";
        let (events, left) = split(&[stream]);
        let read: Vec<Vec<u8>> = events.iter().map(|event| data(event).bytes().to_vec()).collect();
        let expected: [&[u8]; 5] = [b"a", b"b", b"c", b"", b"d\n\ne"];
        assert_eq!(read, expected);
        assert_eq!(left, b"data: half".len());
        assert_eq!(data(b": ping\n\n"), Data::None);
        assert_eq!(data(b"database: x\n\n"), Data::None);
    }

    #[test]
    fn what_cannot_be_followed_gives_up() {
        let given_up = |parts: &[&[u8]]| {
            let mut events = Events::default();
            parts.iter().for_each(|part| events.push(part, |_| ()));
            events.has_given_up()
        };
        let long = vec![b'x'; EVENT_BYTES_MAX + 1];
        assert!(given_up(&[&long]));
        assert!(given_up(&[&long[..EVENT_BYTES_MAX], b"\n\n"]));
        assert!(given_up(&[&[&long[..], b"\n\n"].concat()]));
        assert!(!given_up(&[&long[..EVENT_BYTES_MAX - 2], b"\n", b"\n"]));
        assert!(given_up(&[b"data: x\r", b"\rdata: y"]));
        assert!(!given_up(&[b"data: x\r", b"\n\r\n"]));
    }

    fn naive(bytes: &[u8]) -> (Vec<Vec<u8>>, usize) {
        let (mut out, mut event, mut line) = (Vec::new(), Vec::new(), Vec::new());
        for byte in bytes {
            event.push(*byte);
            line.push(*byte);
            if *byte == b'\n' {
                if line == b"\n" || line == b"\r\n" {
                    out.push(std::mem::take(&mut event));
                }
                line.clear();
            }
        }
        (out, event.len())
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_events(
            lines in prop::collection::vec("(data: ?[a-c]{0,3}|: ?p|)(\n|\r\n)", 0..12),
            tail in "[a-c]{0,3}",
            cuts in prop::collection::vec(0usize..80, 0..5),
        ) {
            let bytes = [lines.concat(), tail].concat().into_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(split(&parts), naive(&bytes));
        }

        #[test]
        fn hostile_bytes_stay_bounded(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..20)) {
            let mut events = Events::default();
            for part in &parts {
                events.push(part, |event| { let _ = data(event); });
                prop_assert!(events.incomplete_bytes() <= EVENT_BYTES_MAX);
            }
        }
    }
}
