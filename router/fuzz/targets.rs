//! What each fuzz target does with its bytes, and what must hold whatever they are. Used by the
//! targets (`cargo +nightly fuzz run TARGET`) and by `tests/corpus.rs`, which replays the corpus.

use dataplane::wire::EngineKind;
use minijinja::Value;
use router::http::body::{BodyScanner, Framing};
use router::http::head::{parse_request, parse_response};
use router::identity::certificate;
use router::identity::jwks::Jwks;
use router::identity::jwt::{JwtConfig, Verifier};
use router::identity::key::KeyFile;
use router::openai::Endpoint;
use router::parse::{self, Prompt};
use router::resume::events::{EVENT_BYTES_MAX, Events};
use router::resume::object::Object;
use router::resume::{Rewriter, Tape, Transcript};
use router::tokenizer::conversation::Fields;
use router::tokenizer::template::Template;
use router::trace::context::{TraceContext, tracestate};
use router::usage::Tail;

/// A request head: its ranges lie within the bytes.
pub fn request_head(bytes: &[u8]) {
    if let Ok(Some(head)) = parse_request(bytes) {
        assert!(head.length <= bytes.len());
        assert!(!bytes[head.method.clone()].is_empty());
        assert!(
            head.fields.iter().all(|f| f.name.end <= head.length && f.value.end <= head.length)
        );
    }
}

/// A response head, likewise.
pub fn response_head(bytes: &[u8]) {
    if let Ok(Some(head)) = parse_response(bytes) {
        assert!(head.length <= bytes.len());
        assert!(bytes.get(head.reason.clone()).is_some());
        assert!(
            head.fields.iter().all(|f| f.name.end <= head.length && f.value.end <= head.length)
        );
    }
}

/// Chunks: fed whole or byte by byte, the payload and the verdict are the same.
pub fn chunks(bytes: &[u8]) {
    let mut whole = (BodyScanner::new(Framing::Chunked), Vec::new());
    let all = whole.0.feed(bytes, |run| whole.1.extend_from_slice(run));
    let mut single = (BodyScanner::new(Framing::Chunked), Vec::new());
    let mut taken = Ok(0);
    for byte in bytes {
        match single.0.feed(&[*byte], |run| single.1.extend_from_slice(run)) {
            Ok(one) => taken = taken.map(|sum| sum + one),
            Err(error) => {
                taken = Err(error);
                break;
            }
        }
    }
    assert_eq!(all, taken);
    assert_eq!(whole.1, single.1);
    let mut tail = Tail::default();
    tail.push(&whole.1);
    let _ = tail.usage();
}

/// A request body: its ranges are JSON of their own; what serde_json refuses is refused.
pub fn call(bytes: &[u8]) {
    for endpoint in [Endpoint::Chat, Endpoint::Completions, Endpoint::Embeddings, Endpoint::Other] {
        let Ok(call) = parse::json_call(endpoint, bytes) else { continue };
        match call.prompt {
            Prompt::Chat { messages, tools } => {
                assert!(bytes[messages].starts_with(b"["));
                assert!(tools.is_none_or(|tools| bytes[tools].starts_with(b"[")));
            }
            Prompt::Text(text) => assert!(bytes[text].starts_with(b"\"")),
            Prompt::Tokens(tokens) => assert!(bytes[tokens].starts_with(b"[")),
            Prompt::Opaque(opaque) => assert!(bytes[opaque].len() > 2),
            Prompt::Many => {}
        }
    }
}

/// A `traceparent`: what is read is what stands there, and is read again from what is written.
pub fn traceparent(bytes: &[u8]) {
    if let Some(context) = TraceContext::parse(bytes) {
        let written = context.traceparent();
        assert_eq!(written[3..52], bytes[3..52]);
        assert_eq!(TraceContext::parse(&written), Some(context));
    }
    if let Some(state) = tracestate(bytes) {
        assert_eq!(state.as_bytes(), bytes);
    }
}

/// An event stream: cut anywhere, its events are the same; what went onto the tape comes off it; what
/// a rewriter writes can be read. The first byte says where the stream is cut and the engine dies.
pub fn sse(bytes: &[u8]) {
    let Some((at, stream)) = bytes.split_first() else { return };
    let at = usize::from(*at).min(stream.len());
    let (mut whole, mut events) = (Events::default(), Vec::new());
    whole.push(stream, |event| events.push(event.to_vec()));
    assert!(whole.incomplete_bytes() <= EVENT_BYTES_MAX);
    let (mut single, mut tape, mut at_event) = (Events::default(), Tape::default(), 0);
    for byte in stream {
        tape.push(std::slice::from_ref(byte));
        single.push(std::slice::from_ref(byte), |event| {
            assert_eq!(events.get(at_event).map(Vec::as_slice), Some(event));
            at_event += 1;
        });
    }
    // A lone CR is seen at once where it comes alone, and later where its event is whole.
    assert!(single.has_given_up() || at_event == events.len());
    if tape.is_whole() {
        let mut left = events.iter();
        tape.replay(|event| assert!(left.any(|one| one == event)));
        assert_eq!(tape.incomplete_bytes(), whole.incomplete_bytes());
    }
    for endpoint in [Endpoint::Chat, Endpoint::Completions] {
        let mut tape = Tape::default();
        tape.push(&stream[..at]);
        let Ok(sent) = Transcript::read(endpoint, &tape) else { continue };
        for mut rewriter in
            [Rewriter::replay(endpoint, &sent), Rewriter::continuation(endpoint, &sent)]
        {
            let mut out = Vec::new();
            let _ = rewriter.push(stream, &mut out);
            let mut written = Events::default();
            written.push(&out, |event| {
                let data = router::resume::events::data(event);
                let is_json = || Object::read(data.bytes().trim_ascii()).is_some();
                assert!(event.starts_with(b":") || data.bytes() == b"[DONE]" || is_json());
            });
            assert_eq!(written.incomplete_bytes(), 0);
        }
    }
}

/// What identity reads from files, issuers and clients: a key file, a key set, a token's head, a
/// certificate. Each takes the bytes or refuses them; what it takes is within its bounds.
pub fn credential(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Err(error) = KeyFile::parse(std::path::Path::new("keys"), text) {
            assert!(!error.to_string().is_empty());
        }
        let config = JwtConfig {
            issuer: "i".to_owned(),
            audience: "a".to_owned(),
            jwks_url: "https://localhost/".to_owned(),
            ..JwtConfig::default()
        };
        let verifier = Verifier::new(&config).expect("a configuration that is good");
        if verifier.head(text).is_ok() {
            assert_eq!(text.matches('.').count(), 2);
        }
        let mut keys = Jwks::new(verifier.schedule());
        if let Ok(count) = keys.fetched(1, bytes) {
            assert_eq!(count, keys.len());
        }
    }
    if let Ok(holder) = certificate::holder(bytes) {
        assert!(holder.names.iter().all(|name| !name.contains(char::is_control)));
    }
}

/// A chat's body as an engine prepares it: it is read or refused, whatever it is.
pub fn conversation(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if parse::is_too_deep(bytes) {
        return;
    }
    let Ok(fields) = Fields::read(text) else { return };
    for kind in [EngineKind::Vllm, EngineKind::Sglang] {
        for wants_parts in [false, true] {
            let Ok(conversation) = fields.chat(kind, wants_parts) else { continue };
            let variables = Value::from_pairs(conversation.variables);
            let template = Template::new("{{ messages | tojson }}{{ tools }}").expect("a template");
            let _ = template.render(variables, 0, 1 << 20);
        }
    }
    let _ = fields.completion();
}
