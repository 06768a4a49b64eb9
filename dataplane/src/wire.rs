//! The local wire: what control and the data planes of one node say over control's Unix socket.
//!
//! A data plane dials, says [`FromPlane::Hello`] and then receives a [`ToPlane::Snapshot`] each time
//! the desired or observed state changes. Control may also ask [`ToPlane::Explain`], which is answered
//! by [`FromPlane::Explained`] with the same `id`. A router with tenants whose use is limited says
//! [`FromPlane::Usage`] twice a second; each is answered by [`ToPlane::Usage`], what the other routers
//! used, and an answer that was not sent before the next is asked for is left out. Either side may
//! hang up at any time: a data plane goes on with its last snapshot and dials again.
//!
//! Both sides are of one version: a message that the other side does not know ends the connection.
//!
//! The payload of a [`frame`](crate::frame) is one message as JSON.
//!
//! This file is sans-IO: bytes in, messages out.

mod usage;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use usage::{TenantUsage, USAGE_TENANTS_MAX};

use crate::frame::{Cutter, Format, FrameError};

/// First four bytes of each frame.
pub const FRAME_MAGIC: [u8; 4] = *b"CGN1";
/// Bytes before the payload.
pub const FRAME_HEAD_BYTES: usize = 8;
/// A frame may not be longer: 10,000 workers of 1 KiB each fit, a runaway length does not.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

const FORMAT: Format = Format {
    wire: "control's local wire",
    magic: FRAME_MAGIC,
    head_bytes: FRAME_HEAD_BYTES,
    payload_bytes_max: FRAME_BYTES_MAX,
};

/// Which engine speaks behind a worker's URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// vLLM's OpenAI server.
    Vllm,
    /// SGLang's OpenAI server.
    Sglang,
    /// `trtllm-serve`.
    #[serde(rename = "tensorrt_llm")]
    TensorrtLlm,
    /// `llama-server`.
    LlamaCpp,
    /// Anything that speaks the OpenAI API.
    OpenaiCompat,
}

impl EngineKind {
    /// The name used in configuration, metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            EngineKind::Vllm => "vllm",
            EngineKind::Sglang => "sglang",
            EngineKind::TensorrtLlm => "tensorrt_llm",
            EngineKind::LlamaCpp => "llama_cpp",
            EngineKind::OpenaiCompat => "openai_compat",
        }
    }
}

/// What an engine can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
}

/// Whether a worker may be given requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Known, but not answering yet (or not any more).
    NotReady,
    /// Takes requests.
    Ready,
    /// Finishes what it has, takes nothing new.
    Draining,
}

/// One engine instance as the router sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Unique in the cluster, stable over restarts of the engine: `node/deployment/0`.
    pub id: String,
    /// The node it runs on; empty in a static list.
    pub node: String,
    /// `http://host:port`, no path.
    pub url: String,
    /// The model name clients ask for.
    pub model: String,
    /// Who answers there.
    pub kind: EngineKind,
    /// Requests it works on at once.
    pub slots: u32,
    /// Tokens one request may span; 0 is unknown.
    pub context_length_tokens: u32,
    /// Tokens its KV cache holds over all slots; 0 is unknown.
    pub kv_cache_tokens: u64,
    /// What it offers.
    pub capabilities: Vec<Capability>,
    /// Whether it may be given requests.
    pub state: WorkerState,
    /// Rises at each start of the engine: what an older epoch had cached is gone.
    pub epoch: u64,
    /// Watts drawn, where the node measures it.
    pub power_watts: Option<f32>,
    /// Requests the engine itself says it is working on, where it says.
    pub running_requests: Option<u32>,
    /// Where its agent is dialled ([`crate::feed`]), for what its KV cache holds and for what other routers
    /// gave it: `host:port` or `unix:/path`; none where there is no agent, or it listens nowhere.
    #[serde(default)]
    pub kv_feed: Option<String>,
    /// Whether its engine has KV events, and `kv_feed` tells what its KV cache holds.
    #[serde(default)]
    pub kv_events: bool,
    /// Tokens in a block of its KV cache, by the engine's own word; 0 is unknown.
    #[serde(default)]
    pub kv_block_tokens: u32,
    /// Folder on the worker's node with the model's tokenizer and chat template, where it has one.
    #[serde(default)]
    pub model_files: Option<String>,
}

/// The four weights of a worker's cost. They sum to 1.0 (tolerance 0.001).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreWeights {
    /// The prefill that the worker's KV cache does not save.
    pub kv: f64,
    /// Work queued in front of the request.
    pub load: f64,
    /// Watts drawn against the thirstiest candidate.
    pub power: f64,
    /// What new blocks push out of a full KV cache.
    pub capacity: f64,
}

impl Default for ScoreWeights {
    /// The aggregated defaults.
    fn default() -> Self {
        ScoreWeights { kv: 0.55, load: 0.25, power: 0.10, capacity: 0.10 }
    }
}

impl ScoreWeights {
    /// Whether each weight is finite and not negative and all sum to 1.0.
    pub fn is_valid(&self) -> bool {
        let all = [self.kv, self.load, self.power, self.capacity];
        all.iter().all(|w| w.is_finite() && *w >= 0.0)
            && (all.iter().sum::<f64>() - 1.0).abs() <= 0.001
    }
}

/// How weights are typed: by a person on the command line, by an admin in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "weights are kv=…,load=…,power=…,capacity=…: each once, 0 or more, and 1.0 together, as in kv=0.55,load=0.25,power=0.1,capacity=0.1"
)]
pub struct WeightsError;

impl std::str::FromStr for ScoreWeights {
    type Err = WeightsError;

    fn from_str(text: &str) -> Result<Self, WeightsError> {
        const NAMES: [&str; 4] = ["kv", "load", "power", "capacity"];
        let mut found = [None; 4];
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or(WeightsError)?;
            let at = NAMES.iter().position(|known| *known == name.trim()).ok_or(WeightsError)?;
            let value = value.trim().parse::<f64>().map_err(|_| WeightsError)?;
            if found[at].replace(value).is_some() {
                return Err(WeightsError);
            }
        }
        let [Some(kv), Some(load), Some(power), Some(capacity)] = found else {
            return Err(WeightsError);
        };
        let weights = ScoreWeights { kv, load, power, capacity };
        if weights.is_valid() { Ok(weights) } else { Err(WeightsError) }
    }
}

impl std::fmt::Display for ScoreWeights {
    /// In the form that is read again.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ScoreWeights { kv, load, power, capacity } = self;
        write!(f, "kv={kv},load={load},power={power},capacity={capacity}")
    }
}

/// An immutable picture of the cluster. A newer `version` replaces an older one whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Rises with each change within one life of control.
    pub version: u64,
    /// All workers, ready or not.
    pub workers: Vec<Worker>,
    /// Overrides the router's configured weights.
    pub weights: Option<ScoreWeights>,
}

/// Control to data plane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToPlane {
    /// The new picture.
    Snapshot(Snapshot),
    /// Why would this request go where it goes?
    Explain {
        /// Echoed in the answer.
        id: u64,
        /// `/v1/chat/completions` or `/v1/completions`.
        path: String,
        /// The OpenAI request body, as a client would send it.
        body: String,
        /// Decide by these weights instead of those in force.
        #[serde(default)]
        weights: Option<ScoreWeights>,
        /// Decide by this temperature.
        #[serde(default)]
        temperature: Option<f64>,
    },
    /// The answer to [`FromPlane::Usage`].
    Usage {
        /// Other routers that were heard of lately.
        routers: u32,
        /// What they used together, and what those that ended used, in the windows asked for. A
        /// tenant that is missing was not used.
        others: Vec<TenantUsage>,
    },
}

/// Data plane to control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromPlane {
    /// First frame of a connection.
    Hello {
        /// `cgn-router` or `cgn-kvcached`.
        process: String,
        /// Its version.
        version: String,
        /// Its process id.
        pid: u32,
    },
    /// The answer to [`ToPlane::Explain`].
    Explained {
        /// The question's id.
        id: u64,
        /// The decision, or one line that says why there is none.
        result: Result<Explanation, String>,
    },
    /// What this router used of its tenants' limits, all it has to say; newer replaces older.
    Usage {
        /// Drawn at the start of the process. By it a router that dials again is known, so that
        /// nothing is counted twice.
        life: u64,
        /// The minute in which the answer is wanted: Unix time divided by 60 s.
        minute: u64,
        /// The day in which it is wanted: Unix time divided by 86,400 s.
        day: u64,
        /// Only tenants with limits and with any use, at most [`USAGE_TENANTS_MAX`].
        tenants: Vec<TenantUsage>,
    },
}

/// The table of one routing decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The model asked for.
    pub model: String,
    /// How the prompt was cut into blocks: `tokens` (exact), `text`, or `none`.
    pub unit: String,
    /// Tokens of the prompt; estimated where `unit` is `text`.
    pub prompt_tokens: u64,
    /// Whole blocks of the prompt.
    pub prompt_blocks: u64,
    /// The weights applied.
    pub weights: ScoreWeights,
    /// The temperature applied.
    #[serde(default)]
    pub temperature: f64,
    /// What makes the prompt's tokens: `files` (the model's own), `distrusted` (an engine disagreed with them),
    /// or `engine`; `none` where no tokens are made.
    #[serde(default)]
    pub tokenizer: String,
    /// Id of the worker picked; empty if none could be.
    pub picked: String,
    /// One sentence: why that one.
    pub reason: String,
    /// Every worker of the model, best first.
    pub candidates: Vec<Candidate>,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Worker id.
    pub worker: String,
    /// Whether it could be picked at all.
    pub eligible: bool,
    /// Why not, or empty.
    pub excluded_because: String,
    /// Where that is known from: `events` of its engine, `partial events`, or `learned` from what was routed
    /// there.
    #[serde(default)]
    pub source: String,
    /// Tokens of the prompt believed to be in its cache.
    pub prefix_tokens: u64,
    /// Of these, tokens that would have to be fetched.
    pub fetch_tokens: u64,
    /// Prefill work in front of it, in ms, whichever router gave it.
    pub queued_ms: f64,
    /// Of this, what other routers gave.
    #[serde(default)]
    pub queued_others_ms: f64,
    /// Requests in flight to it from all routers.
    pub inflight: u32,
    /// Of these, those of other routers.
    #[serde(default)]
    pub inflight_others: u32,
    /// Its slots.
    pub slots: u32,
    /// Weighted KV term: its own prefill, in ms like the others.
    pub kv: f64,
    /// Weighted load term: what it would wait for.
    pub load: f64,
    /// Weighted power term.
    pub power: f64,
    /// Weighted capacity term: what its blocks push out.
    pub capacity: f64,
    /// Sum of the four; the least is picked.
    pub cost: f64,
}

/// Why bytes from the other side were refused. The connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// No frame of this wire.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The payload is not the message expected.
    #[error("frame payload: {0}")]
    Payload(#[from] serde_json::Error),
}

/// One message as a frame.
///
/// # Errors
/// [`FrameError::TooLong`] when the message would not be accepted by the other side.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let mut frame = Vec::with_capacity(512);
    frame.extend_from_slice(&FRAME_MAGIC);
    frame.extend_from_slice(&[0; 4]);
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - FRAME_HEAD_BYTES;
    match u32::try_from(length) {
        Ok(len) if length <= FRAME_BYTES_MAX => {
            frame[4..8].copy_from_slice(&len.to_le_bytes());
            Ok(frame)
        }
        _ => Err(FrameError::TooLong { bytes: length, max: FRAME_BYTES_MAX }.into()),
    }
}

/// Cuts a byte stream into messages: a [`Cutter`] of this wire.
#[derive(Debug, Default)]
pub struct Decoder(Cutter);

impl Decoder {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.push(bytes);
    }

    /// The next whole message, or `None` until more bytes come.
    ///
    /// # Errors
    /// Any [`WireError`]; drop the connection, there is no way back into step.
    pub fn poll_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        let Some(frame) = self.0.poll_frame(&FORMAT)? else { return Ok(None) };
        Ok(Some(serde_json::from_slice(frame.payload)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello(pid: u32) -> FromPlane {
        FromPlane::Hello { process: "cgn-router".into(), version: "0".into(), pid }
    }

    proptest! {
        #[test]
        fn any_cut_of_the_stream_gives_the_same_messages(cuts in prop::collection::vec(1usize..40, 1..30)) {
            let stream: Vec<u8> = (0..5).flat_map(|pid| encode(&hello(pid)).unwrap()).collect();
            let mut decoder = Decoder::default();
            let (mut at, mut got, mut cuts) = (0, Vec::new(), cuts.into_iter().cycle());
            while at < stream.len() {
                let end = (at + cuts.next().unwrap()).min(stream.len());
                decoder.push(&stream[at..end]);
                at = end;
                while let Some(message) = decoder.poll_message::<FromPlane>().unwrap() {
                    got.push(message);
                }
            }
            prop_assert_eq!(got, (0..5).map(hello).collect::<Vec<_>>());
        }

        #[test]
        fn hostile_bytes_are_an_error_or_a_wait(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            let _ = decoder.poll_message::<ToPlane>();
        }
    }

    #[test]
    fn a_runaway_length_is_refused_before_it_is_waited_for() {
        let mut decoder = Decoder::default();
        decoder.push(b"CGN1\xff\xff\xff\xff");
        assert!(matches!(
            decoder.poll_message::<ToPlane>(),
            Err(WireError::Frame(FrameError::TooLong { .. }))
        ));
    }

    #[test]
    fn weights_must_sum_to_one() {
        assert!(ScoreWeights::default().is_valid());
        assert!(!ScoreWeights { kv: 0.9, ..ScoreWeights::default() }.is_valid());
        assert!(!ScoreWeights { kv: f64::NAN, ..ScoreWeights::default() }.is_valid());
    }

    #[test]
    fn weights_are_read_as_they_are_written_and_nothing_else() {
        let weights = ScoreWeights::default();
        assert_eq!(weights.to_string().parse(), Ok(weights));
        assert_eq!(
            " load = 0, kv=1 ,power=0,capacity=0".parse::<ScoreWeights>().map(|w| w.kv),
            Ok(1.0)
        );
        for bad in [
            "",
            "kv=1",
            "kv=0.5,load=0.5,power=0,capacity=0,kv=0.5",
            "kv=0.5,load=0.4,power=0,capacity=0",
            "kv=1.5,load=-0.5,power=0,capacity=0",
            "kv=NaN,load=1,power=0,capacity=0",
            "kv=1,load=0,power=0,speed=0",
            "kv=1,load=0,power=0,capacity=0,",
        ] {
            assert_eq!(bad.parse::<ScoreWeights>(), Err(WeightsError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_weights_or_an_error(text in "[kvload=.,0-9 a-z]{0,60}") {
            prop_assert!(text.parse::<ScoreWeights>().is_ok_and(|w| w.is_valid()) || text.parse::<ScoreWeights>().is_err());
        }
    }
}
