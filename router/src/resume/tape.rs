//! What a client was sent of one stream, as long as the stream could still be resumed.
//!
//! Runs beside every token, so nothing is parsed here: each event is written down as its difference
//! to the one before, which in an engine's stream is the token and little else: about ten bytes for
//! an event of 250. Only when an engine dies are the events put together again and read.

use crate::resume::events::Events;

/// The differences of one stream may take so many bytes: about 12,000 tokens. Over it the stream is
/// passed on, but no longer resumed.
pub const TAPE_BYTES_MAX: usize = 128 << 10;

/// So many bytes of events are put together again at most: 16,000 tokens of 250 bytes, read within 20 ms.
/// Without it a stream of long events that hardly differ would fit on the tape and into no memory.
pub const STREAM_BYTES_MAX: usize = 4 << 20;

/// Bytes in front of each difference: what is equal at the beginning, at the end, what differs.
const ENTRY_HEAD_BYTES: usize = 6;

/// The events of a stream, in order.
#[derive(Debug, Default)]
pub struct Tape {
    events: Events,
    differences: Differences,
}

#[derive(Debug, Default)]
struct Differences {
    last: Vec<u8>,
    packed: Vec<u8>,
    stream_bytes: usize,
    is_full: bool,
}

impl Tape {
    /// Takes payload as it is sent to the client.
    pub fn push(&mut self, run: &[u8]) {
        if !self.is_whole() {
            return;
        }
        let Tape { events, differences } = self;
        events.push(run, |event| differences.record(event));
        if !self.is_whole() {
            // What is kept of it is of no use any more.
            self.differences.last = Vec::new();
            self.differences.packed = Vec::new();
        }
    }

    /// Whether everything sent is on it. Once false, always false; a relay that holds back the
    /// beginning of an event then sends it on.
    pub fn is_whole(&self) -> bool {
        !self.differences.is_full && !self.events.has_given_up()
    }

    /// How many bytes at the end of what was pushed are the beginning of an event. A relay that
    /// holds these back can let another engine go on, or say an error, in an event of its own.
    pub fn incomplete_bytes(&self) -> usize {
        self.events.incomplete_bytes()
    }

    /// How many of the last `part_bytes` that were pushed end with an event, so may be sent on.
    pub fn complete_prefix_bytes(&self, part_bytes: usize) -> usize {
        part_bytes.saturating_sub(self.incomplete_bytes())
    }

    /// Calls `event` with each whole event that was pushed, comments left out.
    pub fn replay(&self, mut event: impl FnMut(&[u8])) {
        let mut last: Vec<u8> = Vec::new();
        let mut rest = self.differences.packed.as_slice();
        while let Some((head, behind)) = rest.split_first_chunk::<ENTRY_HEAD_BYTES>() {
            let [p0, p1, s0, s1, d0, d1] = *head;
            let (prefix, suffix, differing) = (
                usize::from(u16::from_le_bytes([p0, p1])),
                usize::from(u16::from_le_bytes([s0, s1])),
                usize::from(u16::from_le_bytes([d0, d1])),
            );
            let (middle, next) = behind.split_at(differing);
            last.splice(prefix..last.len() - suffix, middle.iter().copied());
            event(&last);
            rest = next;
        }
    }
}

impl Differences {
    fn record(&mut self, event: &[u8]) {
        if self.is_full || is_comment(event) {
            return;
        }
        let prefix = common_prefix(&self.last, event);
        let suffix = common_suffix(&self.last[prefix..], &event[prefix..]);
        let middle = &event[prefix..event.len() - suffix];
        let head = [prefix, suffix, middle.len()].map(u16::try_from);
        let [Ok(prefix), Ok(suffix), Ok(differing)] = head else {
            self.is_full = true;
            return;
        };
        self.stream_bytes += event.len();
        if self.packed.len() + ENTRY_HEAD_BYTES + middle.len() > TAPE_BYTES_MAX
            || self.stream_bytes > STREAM_BYTES_MAX
        {
            self.is_full = true;
            return;
        }
        for length in [prefix, suffix, differing] {
            self.packed.extend_from_slice(&length.to_le_bytes());
        }
        self.packed.extend_from_slice(middle);
        self.last.clear();
        self.last.extend_from_slice(event);
    }
}

/// A ping carries nothing, and would be a large difference.
fn is_comment(event: &[u8]) -> bool {
    match event.first() {
        Some(b'\r' | b'\n') => true,
        Some(b':') => memchr::memmem::find(event, b"\ndata").is_none(),
        _ => false,
    }
}

const STEP_BYTES: usize = 16;

fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let steps = a
        .chunks_exact(STEP_BYTES)
        .zip(b.chunks_exact(STEP_BYTES))
        .take_while(|(a, b)| a == b)
        .count();
    let at = steps * STEP_BYTES;
    at + a[at..].iter().zip(&b[at..]).take_while(|(a, b)| a == b).count()
}

fn common_suffix(a: &[u8], b: &[u8]) -> usize {
    let steps = a
        .rchunks_exact(STEP_BYTES)
        .zip(b.rchunks_exact(STEP_BYTES))
        .take_while(|(a, b)| a == b)
        .count();
    let at = steps * STEP_BYTES;
    let (a, b) = (&a[..a.len() - at], &b[..b.len() - at]);
    at + a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replayed(tape: &Tape) -> Vec<u8> {
        let mut all = Vec::new();
        tape.replay(|event| all.extend_from_slice(event));
        all
    }

    /// An event of llama.cpp that carries `text`.
    fn event(text: &str, created: usize) -> String {
        format!(
            "data: {{\"choices\":[{{\"finish_reason\":null,\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}],\
             \"created\":{created},\"id\":\"chatcmpl-0123456789abcdef0123456789\",\"model\":\"m\",\
             \"system_fingerprint\":\"b1\",\"object\":\"chat.completion.chunk\"}}\n\n"
        )
    }

    #[test]
    fn a_token_costs_about_ten_bytes() {
        let mut tape = Tape::default();
        let stream: String = (0..1000).map(|n| event(" word", 1_795_261_000 + n / 50)).collect();
        stream.as_bytes().chunks(37).for_each(|part| tape.push(part));
        assert_eq!(replayed(&tape), stream.as_bytes());
        assert!(tape.differences.packed.len() < 12 * 1000, "{}", tape.differences.packed.len());
    }

    #[test]
    fn a_stream_over_the_limit_is_let_go() {
        let mut tape = Tape::default();
        let mut pushed = 0;
        while tape.is_whole() {
            tape.push(format!("data: {pushed:0>1000}\n\ndata: {pushed:->1000}\n\n").as_bytes());
            pushed += 2;
            assert!(pushed < 1000);
        }
        assert!(tape.differences.packed.capacity() == 0);
        tape.push(b"data: x\n\n");
        assert!(replayed(&tape).is_empty());
        assert_eq!(tape.incomplete_bytes(), 0);
    }

    #[test]
    fn long_events_that_hardly_differ_are_let_go_too() {
        let mut tape = Tape::default();
        let event = format!("data: {}\n\n", "x".repeat(30_000));
        let fits = STREAM_BYTES_MAX / event.len();
        (0..fits).for_each(|_| tape.push(event.as_bytes()));
        assert!(tape.is_whole());
        tape.push(event.as_bytes());
        assert!(!tape.is_whole());
    }

    #[test]
    fn pings_are_left_out_and_half_an_event_is_known() {
        let mut tape = Tape::default();
        tape.push(b"data: a\n\n: ping\n\n\ndata: b\n\ndata: {\"hal");
        assert_eq!(replayed(&tape), b"data: a\n\ndata: b\n\n");
        assert_eq!(tape.incomplete_bytes(), 11);
        assert_eq!(tape.complete_prefix_bytes(31), 20);
        tape.push(b"f");
        assert_eq!(tape.complete_prefix_bytes(1), 0);
    }

    proptest! {
        #[test]
        fn what_went_in_comes_out(
            events in prop::collection::vec("data: [ab]{0,70}\n\n", 0..20),
            cut in 1usize..50,
        ) {
            let stream = events.concat();
            let mut tape = Tape::default();
            stream.as_bytes().chunks(cut).for_each(|part| tape.push(part));
            prop_assert_eq!(replayed(&tape), stream.into_bytes());
            prop_assert_eq!(tape.incomplete_bytes(), 0);
        }
    }
}
