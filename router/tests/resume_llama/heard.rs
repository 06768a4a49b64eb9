//! What a client hears of a stream.

use router::resume::events::{Events, data};
use serde_json::{Value, json};

/// A stream, read as an SDK reads it.
#[derive(Debug, Default)]
pub struct Heard {
    pub text: String,
    pub finish_reason: Option<String>,
    usage: Option<(u64, u64)>,
    roles: usize,
    ends: usize,
    names: Vec<(Value, Value, Value)>,
}

impl Heard {
    pub fn of(payload: &[u8]) -> Self {
        let (mut events, mut heard) = (Events::default(), Heard::default());
        events.push(payload, |event| heard.event(data(event).bytes()));
        assert_eq!(events.incomplete_bytes(), 0, "{}", String::from_utf8_lossy(payload));
        heard
    }

    fn event(&mut self, data: &[u8]) {
        if data == b"[DONE]" {
            self.ends += 1;
            return;
        }
        let event: Value = serde_json::from_slice(data).unwrap();
        self.names.push((event["id"].clone(), event["created"].clone(), event["model"].clone()));
        if let Some(usage) = event.get("usage").filter(|usage| !usage.is_null()) {
            let count = |key: &str| usage[key].as_u64().unwrap();
            self.usage = Some((count("prompt_tokens"), count("completion_tokens")));
        }
        for choice in event["choices"].as_array().unwrap() {
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
            self.text.push_str(text.unwrap_or_default());
            self.roles += usize::from(choice["delta"]["role"].is_string());
            if let Some(reason) = choice["finish_reason"].as_str() {
                assert!(self.finish_reason.replace(reason.to_owned()).is_none(), "ended twice");
            }
        }
    }

    /// What must be equal with and without a death.
    pub fn essence(&self) -> Value {
        json!([self.text, self.finish_reason, self.usage, self.roles, self.ends])
    }

    /// Whether one engine could have sent it: one id and model, and the time never goes back. The
    /// first engine's own clock may tick.
    pub fn is_one_stream(&self) -> bool {
        let times: Vec<u64> = self.names.iter().filter_map(|name| name.1.as_u64()).collect();
        self.names.iter().all(|name| name.0 == self.names[0].0 && name.2 == self.names[0].2)
            && times.len() == self.names.len()
            && times[times.len() - 1] >= times[0]
            && self.ends == 1
            && self.roles <= 1
    }
}
