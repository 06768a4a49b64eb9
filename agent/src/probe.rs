//! Asks an engine how it is: HTTP on 127.0.0.1, each question with a timeout and a size limit.
//!
//! Liveness is `/health` alone: engines answer it from a thread of its own while a long prompt keeps
//! the rest busy. What is running is asked after that and may stay unanswered.
//!
//! | | llama.cpp | vLLM | SGLang |
//! |---|---|---|---|
//! | slots, context | `/props` | as started; `/v1/models` `max_model_len` | as vLLM |
//! | cache | | `/metrics` `vllm:cache_config_info` | `sglang:max_total_num_tokens` |
//! | requests | `llamacpp:requests_*` | `vllm:num_requests_*` | `sglang:num_*_reqs` |

use std::time::Duration;

use dataplane::wire::EngineKind;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use crate::engine::{Expected, Facts, KvCapacity};
use crate::supervise::{InFlight, ProbeOutcome};

/// Longest answer that is read: `/props` carries the chat template.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// An HTTP client for probes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Prober {
    client: Client<HttpConnector, Empty<Bytes>>,
    timeout: Duration,
}

impl Prober {
    /// Each answer must come within `timeout`.
    pub fn new(timeout: Duration) -> Self {
        // A fresh connection each time: the probe shows that the engine still accepts, too.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        Prober { client, timeout }
    }

    /// Asks the engine at `port`. `facts_known`: what it says of itself need not be asked again.
    pub async fn probe(&self, port: u16, expected: &Expected, facts_known: bool) -> ProbeOutcome {
        match self.ask(port, "/health").await {
            Ok((200, _)) => {}
            Ok((status, _)) => return ProbeOutcome::Down(format!("/health answers {status}")),
            Err(error) => return ProbeOutcome::Down(format!("/health: {error}")),
        }
        let facts = if facts_known {
            None
        } else {
            match self.facts(port, expected).await {
                Ok(facts) => Some(facts),
                Err(why) => return ProbeOutcome::Down(why),
            }
        };
        ProbeOutcome::Up { facts, in_flight: self.in_flight(port, expected.kind).await }
    }

    async fn facts(&self, port: u16, expected: &Expected) -> Result<Facts, String> {
        let path = match expected.kind {
            EngineKind::LlamaCpp => "/props",
            _ => "/v1/models",
        };
        let body = match self.ask(port, path).await {
            Ok((200, body)) => body,
            Ok((status, _)) => return Err(format!("{path} answers {status}")),
            Err(error) => return Err(format!("{path}: {error}")),
        };
        let facts = match expected.kind {
            EngineKind::LlamaCpp => llama_cpp_facts(&body),
            _ => openai_facts(&body, expected.slots),
        };
        let mut facts = facts.map_err(|error| format!("{path}: {error}"))?;
        if expected.kv == KvCapacity::Said {
            facts.kv_cache_tokens = self.kv_cache_tokens(port, expected.kind).await;
        }
        Ok(facts)
    }

    /// 0 where the engine does not say: it serves without.
    async fn kv_cache_tokens(&self, port: u16, kind: EngineKind) -> u64 {
        let Ok((200, body)) = self.ask(port, "/metrics").await else { return 0 };
        let text = String::from_utf8_lossy(&body);
        let tokens = match kind {
            EngineKind::Vllm => vllm_cache_tokens(&text),
            EngineKind::Sglang => gauge_sum(&text, "sglang:max_total_num_tokens").map(u64::from),
            _ => None,
        };
        tokens.unwrap_or(0)
    }

    async fn in_flight(&self, port: u16, kind: EngineKind) -> Option<InFlight> {
        let (running, waiting) = match kind {
            EngineKind::LlamaCpp => ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
            EngineKind::Vllm => ("vllm:num_requests_running", "vllm:num_requests_waiting"),
            EngineKind::Sglang => ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
            _ => return None,
        };
        match self.ask(port, "/metrics").await {
            Ok((200, body)) => {
                let text = String::from_utf8_lossy(&body);
                let sum = |name| gauge_sum(&text, name);
                Some(InFlight { running: sum(running)?, waiting: sum(waiting).unwrap_or(0) })
            }
            _ => None,
        }
    }

    async fn ask(&self, port: u16, path: &str) -> Result<(u16, Bytes), AskError> {
        let asked = async {
            let uri = format!("http://127.0.0.1:{port}{path}").parse::<hyper::Uri>()?;
            let answer = self.client.get(uri).await?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok((status, body.map_err(|error| AskError::Body(error.to_string()))?.to_bytes()))
        };
        tokio::time::timeout(self.timeout, asked).await.unwrap_or(Err(AskError::Late(self.timeout)))
    }
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("no answer within {} ms", .0.as_millis())]
    Late(Duration),
    #[error("{}", if .0.is_connect() { "no connection" } else { "the connection broke" })]
    Client(#[from] hyper_util::client::legacy::Error),
    #[error("the answer broke off: {0}")]
    Body(String),
    #[error("{0}")]
    Uri(#[from] hyper::http::uri::InvalidUri),
}

/// llama.cpp's `/props`.
#[derive(Deserialize)]
struct Props {
    total_slots: u32,
    default_generation_settings: GenerationSettings,
}

#[derive(Deserialize)]
struct GenerationSettings {
    n_ctx: u32,
}

fn llama_cpp_facts(body: &[u8]) -> serde_json::Result<Facts> {
    let props: Props = serde_json::from_slice(body)?;
    let context_length_tokens = props.default_generation_settings.n_ctx;
    Ok(Facts { slots: props.total_slots, context_length_tokens, kv_cache_tokens: 0 })
}

/// OpenAI's `/v1/models`, with the length vLLM and SGLang add.
#[derive(Deserialize)]
struct Models {
    data: Vec<ModelCard>,
}

#[derive(Deserialize)]
struct ModelCard {
    #[serde(default)]
    max_model_len: Option<u32>,
}

fn openai_facts(body: &[u8], slots: u32) -> serde_json::Result<Facts> {
    let models: Models = serde_json::from_slice(body)?;
    let context_length_tokens = models.data.iter().find_map(|card| card.max_model_len);
    let context_length_tokens = context_length_tokens.unwrap_or(0);
    Ok(Facts { slots, context_length_tokens, kv_cache_tokens: 0 })
}

/// `num_gpu_blocks` × `block_size` of `vllm:cache_config_info`, summed over its engines. On a CPU the
/// blocks are called so too.
fn vllm_cache_tokens(exposition: &str) -> Option<u64> {
    let mut sum = None;
    for line in exposition.lines() {
        let Some(labels) = line.strip_prefix("vllm:cache_config_info{") else { continue };
        let number = |name: &str| label(labels, name)?.parse::<u64>().ok();
        let tokens = number("num_gpu_blocks")?.checked_mul(number("block_size")?)?;
        sum = Some(sum.unwrap_or(0u64).checked_add(tokens)?);
    }
    sum
}

/// The value of a label that has no quote in it.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let is_whole = |at: usize| at == 0 || labels.as_bytes()[at - 1] == b',';
    let (at, _) = labels
        .match_indices(name)
        .find(|&(at, _)| is_whole(at) && labels[at + name.len()..].starts_with("=\""))?;
    labels[at + name.len() + 2..].split('"').next()
}

/// The sum of `name` over its labels; none if it is not there or not a count.
fn gauge_sum(exposition: &str, name: &str) -> Option<u32> {
    let mut sum = None;
    for line in exposition.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        let value = match rest.as_bytes().first() {
            Some(b'{') => rest.rsplit_once('}')?.1,
            Some(b' ' | b'\t') => rest,
            // A longer name.
            _ => continue,
        };
        let value: f64 = value.split_whitespace().next()?.parse().ok()?;
        if !(0.0..=f64::from(u32::MAX)).contains(&value) {
            return None;
        }
        sum = Some(sum.unwrap_or(0.0) + value);
    }
    // Saturates; a fraction of a request is none.
    sum.map(|sum: f64| sum as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn llama_cpp_says_slots_and_context_in_props() {
        let body = br#"{"default_generation_settings":{"params":{"seed":1},"n_ctx":2048},"total_slots":2}"#;
        let facts = llama_cpp_facts(body).unwrap();
        assert_eq!(facts, Facts { slots: 2, context_length_tokens: 2048, kv_cache_tokens: 0 });
        assert!(llama_cpp_facts(b"{}").is_err());
    }

    #[test]
    fn vllm_says_its_length_in_models() {
        let facts = openai_facts(br#"{"data":[{"id":"m","max_model_len":4096}]}"#, 8).unwrap();
        assert_eq!(facts, Facts { slots: 8, context_length_tokens: 4096, kv_cache_tokens: 0 });
        assert_eq!(openai_facts(br#"{"data":[{}]}"#, 8).unwrap().context_length_tokens, 0);
    }

    #[test]
    fn gauges_are_summed_over_labels_and_not_confused_with_longer_names() {
        let text =
            "# TYPE a gauge\na{e=\"0\",m=\"x}\"} 2.0\na{e=\"1\"} 3\na_total 99\nb 4 17\nc NaN\n";
        assert_eq!(gauge_sum(text, "a"), Some(5));
        assert_eq!(gauge_sum(text, "b"), Some(4));
        assert_eq!(gauge_sum(text, "c"), None);
        assert_eq!(gauge_sum(text, "d"), None);
    }

    #[test]
    fn vllm_says_its_cache_in_the_labels_of_a_metric() {
        let line = |engine: &str, blocks: &str| {
            format!(
                "vllm:cache_config_info{{_block_size_resolved=\"True\",block_size=\"32\",engine=\"{engine}\",\
                 user_block_size=\"7\",num_gpu_blocks=\"{blocks}\",num_gpu_blocks_override=\"80\"}} 1.0\n"
            )
        };
        assert_eq!(vllm_cache_tokens(&line("0", "80")), Some(2560));
        assert_eq!(vllm_cache_tokens(&(line("0", "80") + &line("1", "8"))), Some(2816));
        assert_eq!(vllm_cache_tokens(&line("0", "None")), None);
        assert_eq!(vllm_cache_tokens(&line("0", "18446744073709551615")), None);
        assert_eq!(vllm_cache_tokens("vllm:cache_config_info{} 1.0\n"), None);
        assert_eq!(vllm_cache_tokens(""), None);
    }

    proptest! {
        #[test]
        fn hostile_answers_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "a[{} 0-9.eE+-]{0,20}") {
            let _ = llama_cpp_facts(&bytes);
            let _ = openai_facts(&bytes, 1);
            let _ = gauge_sum(&text, "a");
            let _ = vllm_cache_tokens(&format!("vllm:cache_config_info{{{text}"));
        }
    }

    #[tokio::test]
    async fn nobody_there_is_down() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let expected = Expected {
            kind: EngineKind::LlamaCpp,
            capabilities: vec![],
            slots: 1,
            kv: KvCapacity::Pool { tokens: 0 },
            model_files: None,
        };
        let outcome = Prober::new(Duration::from_secs(5)).probe(port, &expected, false).await;
        assert_eq!(outcome, ProbeOutcome::Down("/health: no connection".into()));
    }
}
