//! What the engine tells about itself: models, properties, slots, event sources, and its tokenizer.
//!
//! Nothing here generates or changes anything.

use serde_json::{Value, json};

use super::engine::Ended;
use super::openai::{self, Fields};
use super::options::{Dialect, Settings};
use super::publisher;
use super::refusal::Refusal;
use super::routes::{Answer, Server};
use super::template;
use super::tokenizer::{self, Specials};

impl Server {
    pub(super) fn tokenize(&self, dialect: Dialect, body: &[u8]) -> Result<Answer, Refusal> {
        let object = openai::parse_object(body)?;
        let fields = Fields(&object);
        if dialect == Dialect::LlamaCpp {
            let specials = match fields.optional_flag("parse_special")?.unwrap_or(true) {
                true => Specials::Parsed,
                false => Specials::Literal,
            };
            let text = fields.text("content")?.unwrap_or_default();
            let tokens = tokenizer::encode(&text, specials);
            return Ok(Answer::Json(match fields.flag("with_pieces")? {
                false => json!({ "tokens": tokens }),
                true => {
                    let pieces: Vec<_> = tokens
                        .iter()
                        .map(|token| json!({"id": token, "piece": piece(*token)}))
                        .collect();
                    json!({ "tokens": pieces })
                }
            }));
        }
        let text = match fields.text("prompt")? {
            Some(prompt) => prompt,
            None => openai::chat_prompt(&object)?,
        };
        let tokens = tokenizer::encode(&text, Specials::Parsed);
        let strings = fields.flag("return_token_strs")?.then(|| {
            let strings = tokens.iter().map(|token| {
                String::from_utf8_lossy(&tokenizer::decode(&[*token]).unwrap_or_default())
                    .into_owned()
            });
            strings.collect::<Vec<_>>()
        });
        Ok(Answer::Json(json!({"count": tokens.len(), "tokens": tokens, "token_strs": strings,
                               "max_model_len": self.settings.context_tokens})))
    }

    pub(super) fn models(&self) -> Value {
        let Settings { model, context_tokens, dialect, .. } = &self.settings;
        let entry = match dialect {
            Dialect::LlamaCpp => json!({"id": model, "aliases": [model], "tags": [],
                "object": "model", "created": self.started_s, "owned_by": "llamacpp",
                "meta": {"n_vocab": tokenizer::VOCABULARY_TOKENS, "n_ctx": context_tokens,
                         "n_ctx_train": context_tokens}}),
            Dialect::Vllm => json!({"id": model, "object": "model", "created": self.started_s,
                "owned_by": "vllm", "root": model, "parent": null,
                "max_model_len": context_tokens}),
        };
        json!({"object": "list", "data": [entry]})
    }

    pub(super) fn props(&self) -> Value {
        let Settings { model, context_tokens, limits, .. } = &self.settings;
        json!({
            "default_generation_settings": {"n_ctx": context_tokens, "params": {}},
            "total_slots": limits.seqs_max,
            "model_alias": model,
            "model_path": model,
            "modalities": {"vision": false, "video": false, "audio": false},
            "endpoint_slots": true,
            "endpoint_props": false,
            "endpoint_metrics": true,
            "chat_template": template::JINJA,
            "bos_token": "",
            "eos_token": "<|im_end|>",
            "build_info": concat!("cgn-sim-engine-", env!("CARGO_PKG_VERSION")),
        })
    }

    pub(super) async fn slots(&self) -> Result<Answer, Refusal> {
        let look = self.door.look().await.map_err(|Ended| Refusal::Ending)?;
        let slots: Vec<_> = (0..self.settings.limits.seqs_max)
            .map(|id| {
                let mut slot = json!({"id": id, "n_ctx": self.settings.context_tokens,
                    "speculative": false, "is_processing": id < look.running.len()});
                if let Some(ticket) = look.running.get(id) {
                    slot["id_task"] = json!(ticket);
                }
                slot
            })
            .collect();
        Ok(Answer::Json(Value::Array(slots)))
    }

    pub(super) fn kv_event_sources(&self) -> Value {
        let (Some(publisher), Some(events)) = (&self.publisher, &self.settings.events) else {
            return json!({});
        };
        json!({"0": {
            "enable_kv_cache_events": true,
            "publisher": "zmq",
            "endpoint": publisher.endpoint,
            "replay_endpoint": publisher.replay_endpoint,
            "buffer_steps": events.buffer_steps,
            "hwm": 100_000,
            "max_queue_size": publisher::QUEUE_MAX,
            "topic": events.topic,
        }})
    }
}

pub(super) fn detokenize(dialect: Dialect, body: &[u8]) -> Result<Answer, Refusal> {
    let object = openai::parse_object(body)?;
    let tokens = match object.get("tokens") {
        None | Some(Value::Null) => return Err(Refusal::Missing("tokens")),
        Some(Value::Array(tokens)) => openai::token_ids("tokens", tokens)?,
        Some(_) => {
            let message = "expected an array".to_owned();
            return Err(Refusal::Field { field: "tokens".to_owned(), message });
        }
    };
    let bytes = tokenizer::decode(&tokens).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    Ok(Answer::Json(match dialect {
        Dialect::LlamaCpp => json!({ "content": text }),
        Dialect::Vllm => json!({ "prompt": text }),
    }))
}

/// llama.cpp shows a piece that is not whole UTF-8 as its bytes.
fn piece(token: u32) -> Value {
    let bytes = tokenizer::decode(&[token]).unwrap_or_default();
    match String::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(error) => json!(error.into_bytes()),
    }
}
