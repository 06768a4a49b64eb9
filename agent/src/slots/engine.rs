//! Asks llama.cpp's `llama-server` of its slots: what each holds, and to write or read one's state. HTTP on
//! 127.0.0.1; each answer has a time limit and a size limit.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use super::choose::{Content, Slot};

/// Longest answer that is read: a slot tells its sampling parameters, some 2 KB; there are at most
/// [`crate::engine::SLOTS_MAX`].
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why the engine did not do it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It is not there, or hung up.
    #[error("no connection to the engine")]
    Gone,
    /// It takes longer than may be waited.
    #[error("no answer within {} ms", .0.as_millis())]
    Late(Duration),
    /// It says no.
    #[error("the engine answers {0}: {1}")]
    Refused(u16, String),
    /// What it says cannot be understood.
    #[error("the engine's answer cannot be understood")]
    Nonsense,
}

/// An engine's door for slots. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {
    client: Client<HttpConnector, Full<Bytes>>,
    port: u16,
}

impl Engine {
    /// The engine at that port of 127.0.0.1.
    pub fn new(port: u16) -> Self {
        // A connection each: between two of them the engine may have closed one that was kept.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        Engine { client, port }
    }

    /// All slots.
    ///
    /// # Errors
    /// Any [`EngineError`].
    pub async fn slots(&self, limit: Duration) -> Result<Vec<Slot>, EngineError> {
        let body = self.ask(Method::GET, "/slots", Bytes::new(), limit).await?;
        slots(&body).ok_or(EngineError::Nonsense)
    }

    /// Has the slot's state written to a file of the engine's slot folder.
    ///
    /// # Errors
    /// Any [`EngineError`].
    pub async fn save(&self, slot: u32, file: &str, limit: Duration) -> Result<(), EngineError> {
        self.act(slot, "save", file, limit).await.map(drop)
    }

    /// Has a state read into the slot; gives its tokens.
    ///
    /// # Errors
    /// Any [`EngineError`].
    pub async fn restore(
        &self,
        slot: u32,
        file: &str,
        limit: Duration,
    ) -> Result<u32, EngineError> {
        let body = self.act(slot, "restore", file, limit).await?;
        let restored: Restored =
            serde_json::from_slice(&body).map_err(|_| EngineError::Nonsense)?;
        Ok(restored.n_restored)
    }

    async fn act(
        &self,
        slot: u32,
        action: &str,
        file: &str,
        limit: Duration,
    ) -> Result<Bytes, EngineError> {
        let path = format!("/slots/{slot}?action={action}");
        let body = serde_json::json!({ "filename": file }).to_string();
        self.ask(Method::POST, &path, body.into(), limit).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Bytes, EngineError> {
        let asked = async {
            let request = Request::builder()
                .method(method)
                .uri(format!("http://127.0.0.1:{}{path}", self.port))
                .header(CONTENT_TYPE, "application/json")
                .body(Full::new(body))
                .map_err(|_| EngineError::Nonsense)?;
            let answer = self.client.request(request).await.map_err(|_| EngineError::Gone)?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|_| EngineError::Gone)?.to_bytes();
            match status {
                200 => Ok(body),
                _ => Err(EngineError::Refused(status, said(&body))),
            }
        };
        tokio::time::timeout(limit, asked).await.unwrap_or(Err(EngineError::Late(limit)))
    }
}

/// The beginning of an error's text.
fn said(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().filter(|char| !char.is_control()).take(200).collect()
}

#[derive(Deserialize)]
struct Restored {
    n_restored: u32,
}

#[derive(Deserialize)]
struct Told {
    id: u32,
    is_processing: bool,
    #[serde(default)]
    n_ctx: u32,
    #[serde(default)]
    id_task: Option<i64>,
    #[serde(default)]
    n_prompt_tokens: u32,
}

/// What an answer of `/slots` says; none where it is something else.
fn slots(body: &[u8]) -> Option<Vec<Slot>> {
    let told: Vec<Told> = serde_json::from_slice(body).ok()?;
    let slot = |told: Told| {
        let tokens = told.n_prompt_tokens;
        Slot {
            id: told.id,
            is_busy: told.is_processing,
            context_tokens: told.n_ctx,
            content: told.id_task.map(|task| Content { task, tokens }),
        }
    };
    Some(told.into_iter().map(slot).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slots_are_understood_before_and_after_their_first_task() {
        let body = br#"[{"id":0,"n_ctx":512,"speculative":false,"is_processing":false},
            {"id":1,"n_ctx":512,"is_processing":true,"id_task":3,"n_prompt_tokens":77,"params":{"x":[1]}}]"#;
        let [fresh, busy] = slots(body).unwrap().try_into().unwrap();
        assert_eq!(fresh, Slot { id: 0, is_busy: false, context_tokens: 512, content: None });
        assert!(busy.is_busy);
        assert_eq!(busy.content, Some(Content { task: 3, tokens: 77 }));
        assert_eq!(slots(b"{}"), None);
        assert_eq!(slots(br#"[{"id":-1,"is_processing":false}]"#), None);
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_gone() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let asked = Engine::new(port).slots(Duration::from_secs(5)).await;
        assert!(matches!(asked, Err(EngineError::Gone)), "{asked:?}");
    }

    proptest! {
        #[test]
        fn hostile_answers_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = slots(&bytes);
            let _ = said(&bytes);
        }
    }
}
