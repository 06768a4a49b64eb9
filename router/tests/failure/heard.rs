//! What a client hears of an answer: the payload behind the framing, and the events in it.

use router::http::body::BodyScanner;
use router::http::head::parse_response;
use router::resume::events::{Events, data};
use serde_json::Value;

/// A stream, read as an SDK reads it, with all that an SDK would pass over.
#[derive(Debug, Default)]
pub struct Heard {
    pub text: String,
    /// Every `finish_reason` that was sent.
    pub finish_reasons: Vec<String>,
    /// Every error event.
    pub errors: Vec<Value>,
    pub ids: Vec<Value>,
    pub roles: usize,
    pub dones: usize,
    pub usage: Option<Value>,
    /// What stood behind `[DONE]` or behind an error event.
    pub after_the_end: usize,
    /// Bytes of an event that never ended.
    pub cut_bytes: usize,
    /// Events that are no JSON.
    pub unreadable: usize,
}

impl Heard {
    pub fn of(payload: &[u8]) -> Self {
        let (mut events, mut heard) = (Events::default(), Heard::default());
        events.push(payload, |event| heard.event(data(event).bytes()));
        heard.cut_bytes = events.incomplete_bytes();
        heard
    }

    fn event(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.after_the_end += usize::from(self.dones > 0 || !self.errors.is_empty());
        if data == b"[DONE]" {
            self.dones += 1;
            return;
        }
        let Ok(event) = serde_json::from_slice::<Value>(data) else {
            self.unreadable += 1;
            return;
        };
        if event.get("error").is_some_and(|error| !error.is_null()) {
            self.errors.push(event["error"].clone());
            return;
        }
        if !self.ids.contains(&event["id"]) {
            self.ids.push(event["id"].clone());
        }
        if event["usage"].is_object() {
            self.usage = Some(event["usage"].clone());
        }
        for choice in event["choices"].as_array().into_iter().flatten() {
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
            self.text.push_str(text.unwrap_or_default());
            self.roles += usize::from(choice["delta"]["role"].is_string());
            self.finish_reasons.extend(choice["finish_reason"].as_str().map(str::to_owned));
        }
    }

    /// Whether it is one whole answer, as one engine would have sent it.
    pub fn is_whole(&self) -> bool {
        self.is_well_formed()
            && self.errors.is_empty()
            && self.dones == 1
            && self.finish_reasons.len() == 1
            && self.ids.len() == 1
            && self.roles <= 1
    }

    /// Whether it ended with one error event instead.
    pub fn is_ended_by_error(&self) -> bool {
        self.is_well_formed() && self.errors.len() == 1 && self.dones == 0
    }

    fn is_well_formed(&self) -> bool {
        self.cut_bytes == 0 && self.unreadable == 0 && self.after_the_end == 0
    }
}

/// The body of a whole response without its framing; `None` where it was cut off.
pub fn payload(response: &[u8]) -> Option<Vec<u8>> {
    let head = parse_response(response).ok()??;
    let mut scanner = BodyScanner::new(head.framing);
    let mut payload = Vec::new();
    scanner.feed(&response[head.length..], |run| payload.extend_from_slice(run)).ok()?;
    (scanner.is_done() || scanner.may_close()).then_some(payload)
}
