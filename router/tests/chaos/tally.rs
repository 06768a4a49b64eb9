//! What the clients saw, and what of it they must not see.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;

use router::http::head::parse_response;
use serde_json::Value;

use super::heard::{Heard, payload};

/// Of all streams at most this share may end with an error event: the engine that went on died too.
const ERRORS_SHARE_MAX: f64 = 0.05;

#[derive(Default)]
struct Seen {
    streams: u32,
    answers: u32,
    /// Streams that ended with an error event, by its code.
    error_events: BTreeMap<String, u32>,
    /// Refusals, by status and code.
    refusals: BTreeMap<String, u32>,
    /// What must not be.
    wrong: Vec<String>,
}

/// Shared by the clients.
#[derive(Default)]
pub struct Tally(Mutex<Seen>);

impl Tally {
    /// Notes one response.
    pub fn judge(&self, response: &std::io::Result<Vec<u8>>, stream: bool, reference: &str) {
        let mut seen = self.0.lock().unwrap();
        let response = match response {
            Ok(response) => response,
            Err(error) => return seen.wrong.push(format!("no answer: {error}")),
        };
        let text = String::from_utf8_lossy(response);
        let Ok(Some(head)) = parse_response(response) else {
            return seen.wrong.push(format!("no answer: {text:?}"));
        };
        let Some(payload) = payload(response) else {
            return seen.wrong.push(format!("cut off: {text}"));
        };
        match (head.status, stream) {
            (200, true) => seen.stream(&payload, reference),
            (200, false) => seen.answer(&payload, reference),
            (status @ (429 | 502 | 503 | 504), _) => {
                let error: Value = serde_json::from_slice(&payload).unwrap_or_default();
                let kind = format!("{status} {}", error["error"]["code"]);
                *seen.refusals.entry(kind).or_default() += 1;
                // As a client that was told so waits.
                drop(seen);
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
            _ => seen.wrong.push(format!("not allowed: {text}")),
        }
    }

    /// Fails where a client saw what it must not see.
    pub fn assert_good(&self) {
        let seen = self.0.lock().unwrap();
        assert!(
            seen.wrong.is_empty(),
            "{} wrong: {:#?}",
            seen.wrong.len(),
            &seen.wrong[..seen.wrong.len().min(5)]
        );
        assert!(seen.streams > 0 && seen.answers > 0, "nobody was served");
        let errors: u32 = seen.error_events.values().sum();
        let share = f64::from(errors) / f64::from(errors + seen.streams);
        assert!(share <= ERRORS_SHARE_MAX, "{errors} error events");
    }
}

impl Seen {
    fn stream(&mut self, payload: &[u8], reference: &str) {
        let heard = Heard::of(payload);
        if heard.is_whole() && heard.text == reference {
            self.streams += 1;
        } else if heard.is_ended_by_error() && reference.starts_with(&heard.text) {
            let code = heard.errors[0]["code"].to_string();
            *self.error_events.entry(code).or_default() += 1;
        } else {
            self.wrong.push(format!("{heard:?} instead of {reference:?}"));
        }
    }

    fn answer(&mut self, payload: &[u8], reference: &str) {
        let answer: Value = serde_json::from_slice(payload).unwrap_or_default();
        let choice = &answer["choices"][0];
        if choice["message"]["content"] == *reference && choice["finish_reason"].is_string() {
            self.answers += 1;
        } else {
            self.wrong.push(format!("{answer} instead of {reference:?}"));
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.0.lock().unwrap();
        write!(
            f,
            "whole streams: {}, whole answers: {}, error events: {:?}, refused: {:?}, wrong: {}",
            seen.streams,
            seen.answers,
            seen.error_events,
            seen.refusals,
            seen.wrong.len()
        )
    }
}
