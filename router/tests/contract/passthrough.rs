//! What passes through unharmed: every byte of a request's body to the engine, and every byte of its answer
//! back, whatever the fields mean, over HTTP/1.1 and HTTP/2 alike.

use std::io::Write;

use super::client::chat;
use super::engine::{Engine, STREAM_HEAD, chunk, json};
use super::frames::Http2;
use super::process::{Router, worker};

const CHAT: &str = "/v1/chat/completions";

/// Bodies as clients send them; each holds what a proxy that parses and prints again would change.
const CHATS: &[&str] = &[
    // Numbers: digits, exponents and signs are the engine's business.
    r#"{"model":"m","temperature":0.30,"top_p":1e0,"min_p":1E-2,"seed":18446744073709551615,"big":123456789012345678901234567890,"zero":-0.0,"presence_penalty":-2.00,"frequency_penalty":2,"messages":[]}"#,
    // Order, repetition, white space.
    "\t{ \"messages\" :\r\n[ ] ,\n \"z\":1,\"a\":2,\"z\":3, \"model\" : \"m\" }\r\n ",
    // Escapes and text.
    r#"{"model":"m","messages":[{"role":"user","content":"\u0041\/\"\\ é 漢 \ud83d\ude00 😀 \u2028"}]}"#,
    // Tools and how they are chosen.
    r#"{"model":"m","messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"x\": 0.10}"}}]},{"role":"tool","tool_call_id":"c1","content":"[1, 2]"}],"tools":[{"type":"function","function":{"name":"f","strict":true,"parameters":{"type":"object","properties":{"x":{"type":"number","multipleOf":0.10}}}}}],"tool_choice":{"type":"function","function":{"name":"f"}},"parallel_tool_calls":false}"#,
    // Structured answers, in OpenAI's and the engines' ways.
    r#"{"model":"m","messages":[],"response_format":{"type":"json_schema","json_schema":{"name":"s","strict":true,"schema":{"type":"object","additionalProperties":false}}},"guided_regex":"a{1,3}","structured_outputs":{"grammar":"root ::= \"x\""},"grammar":"root ::= [a-z]"}"#,
    // Sampling and counting.
    r#"{"model":"m","messages":[],"n":3,"best_of":4,"seed":7,"stop":["\n\n","</s>"],"logprobs":true,"top_logprobs":5,"logit_bias":{"50256":-100},"max_tokens":1,"max_completion_tokens":2,"min_tokens":1,"ignore_eos":true,"top_k":-1,"repetition_penalty":1.10,"priority":-1}"#,
    // Images and sound.
    r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"what?"},{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo=","detail":"low"}},{"type":"input_audio","input_audio":{"data":"UklGRg==","format":"wav"}},{"type":"video_url","video_url":{"url":"http://v/1"}}]}],"modalities":["text","audio"],"audio":{"voice":"x","format":"wav"}}"#,
    // Streams, reasoning, identity, vendors.
    r#"{"model":"m","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true},"reasoning_effort":"high","reasoning":{"effort":null},"chat_template_kwargs":{"enable_thinking":false},"messages":[{"role":"assistant","reasoning_content":"…","content":"x"}],"user":"u","metadata":{"a":"b"},"store":false,"service_tier":"auto","safety_identifier":"s","prompt_cache_key":"k"}"#,
    r#"{"model":"m","messages":[],"cache_salt":"s","kv_transfer_params":{"do_remote_decode":true,"remote_block_ids":[1,2]},"return_tokens_as_token_ids":true,"vendor":{"nested":[[[{"deep":[null,true,false,[]]}]]]},"id_slot":3,"cache_prompt":true,"mm_processor_kwargs":{},"rid":"r","bootstrap_room":9007199254740993,"lora_path":null}"#,
];

const OTHERS: &[(&str, &str)] = &[
    (
        "/v1/completions",
        r#"{"model":"m","prompt":"x","suffix":"y","echo":true,"logprobs":5,"temperature":0.30}"#,
    ),
    ("/v1/completions", r#"{"model":"m","prompt":[ 1, 2,3 ],"prompt_logprobs":0}"#),
    ("/v1/completions", r#"{"model":"m","prompt":[[1,2],[3]],"n":2}"#),
    (
        "/v1/embeddings",
        r#"{"model":"m","input":["a","b"],"encoding_format":"base64","dimensions":1e2}"#,
    ),
];

#[test]
fn every_byte_of_a_body_reaches_the_engine() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 4));
    let mut http1 = router.client();
    let mut http2 = Http2::connect(router.http);
    let chats = CHATS.iter().map(|body| (CHAT, *body));
    for (at, (path, body)) in chats.chain(OTHERS.iter().copied()).enumerate() {
        assert_eq!(http1.post(path, "", body).status, 200, "{body}");
        let stream = 1 + 2 * at as u32;
        http2.post(stream, path, body.as_bytes());
        assert_eq!(http2.answer(stream).0, 200, "{body}");
        let asked = engine.asked();
        for asked in &asked[asked.len() - 2..] {
            assert_eq!(String::from_utf8_lossy(&asked.body), body);
            assert_eq!(asked.line(), format!("POST {path} HTTP/1.1"));
            assert_eq!(asked.field("content-type"), Some("application/json"));
        }
    }
}

/// Answers with fields nobody knows, numbers in odd forms, bytes that are no text.
const ANSWERS: &[&[u8]] = &[
    br#"{"id":"x","object":"chat.completion","choices":[{"index":0,"finish_reason":"length","stop_reason":7,"message":{"role":"assistant","content":null,"reasoning_content":"\u00e9","tool_calls":[]},"logprobs":{"content":[{"token":" a","logprob":-0.10,"bytes":[32,97]}]}}],"usage":{"prompt_tokens":1,"completion_tokens":1e0,"prompt_tokens_details":{"cached_tokens":0}},"timings":{"x":0.30},"system_fingerprint":null,"vendor":[1.0]}"#,
    b" { \"spaces\" : 1 }\r\n\r\n",
    b"{\"broken\": ",
    b"\xff\xfe\0not text",
];

#[test]
fn every_byte_of_an_answer_reaches_the_client() {
    for body in ANSWERS {
        let mut whole = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Vendor: a, b\r\nX-Vendor: c\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        whole.extend_from_slice(body);
        let router = Router::start("", &worker(&Engine::fixed(whole), 1));
        let answer = router.client().post(CHAT, "", &chat("x"));
        assert_eq!((answer.status, &answer.body[..]), (200, *body));
        assert_eq!(answer.head.matches("X-Vendor: ").count(), 2);
        let mut http2 = Http2::connect(router.http);
        http2.post(1, CHAT, chat("x").as_bytes());
        assert_eq!(http2.answer(1), (200, body.to_vec()));
    }
}

/// What is in the chunks.
fn payload(mut chunks: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = chunks.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        text.push_str(&rest[..size]);
        chunks = &rest[size + 2..];
    }
    text
}

#[test]
fn an_event_stream_is_passed_on_with_its_comments_line_ends_and_unknown_fields() {
    let parts = [
        ": a comment\n\n",
        "event: response.created\r\nid: 7\r\nretry: 10\r\ndata: {\"x\": 0.30}\r\n\r\n",
        "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"…\",\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\\\"a\"}}]},\"finish_reason\":null}]}\n\n",
        "data: first line\ndata: second line\n\nda",
        "ta: cut anywhere \u{e9}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1},\"vendor\":1e3}\n\n",
        "data: [DONE]\n\n: behind the end\n\n",
    ];
    let chunks: String = parts.iter().map(|part| chunk(part)).collect();
    let router =
        Router::start("", &worker(&Engine::fixed(format!("{STREAM_HEAD}{chunks}0\r\n\r\n")), 1));
    let body = r#"{"model":"m","stream":true,"messages":[]}"#;
    let answer = router.client().post(CHAT, "", body);
    // Where a stream could be resumed, its chunks may be joined; what is in them is the engine's.
    assert_eq!(payload(answer.text()), parts.concat());
    let mut http2 = Http2::connect(router.http);
    http2.post(1, CHAT, body.as_bytes());
    assert_eq!(http2.answer(1), (200, parts.concat().into_bytes()));
}

#[test]
fn errors_of_the_engine_stay_the_engines() {
    for (status, body) in [
        (
            "400 Bad Request",
            r#"{"object":"error","message":"context length","type":"BadRequestError","code":400}"#,
        ),
        ("404 Not Found", r#"{"detail":"Not Found"}"#),
        ("422 Unprocessable Entity", r#"{"detail":[{"loc":["body","n"],"msg":"x"}]}"#),
        ("500 Internal Server Error", "Internal Server Error"),
    ] {
        let whole = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let router = Router::start("", &worker(&Engine::fixed(whole), 1));
        let answer = router.client().post(CHAT, "", &chat("x"));
        assert_eq!((answer.status.to_string().as_str(), answer.text()), (&status[..3], body));
        let mut http2 = Http2::connect(router.http);
        http2.post(1, CHAT, chat("x").as_bytes());
        let (code, text) = http2.answer(1);
        assert_eq!((code, text), (answer.status, body.as_bytes().to_vec()));
    }
}

#[test]
fn long_bodies_and_long_answers_are_the_same_bytes_over_both() {
    let engine = Engine::start(|asked, stream| {
        stream.write_all(&json(std::str::from_utf8(&asked.body).unwrap())).is_ok()
    });
    let router = Router::start("", &worker(&engine, 2));
    for size in [60_000, 65_000, 300_000, 3_000_000] {
        let body = chat(&"0123456789".repeat(size / 10));
        assert_eq!(router.client().post(CHAT, "", &body).text(), body);
        let mut http2 = Http2::connect(router.http);
        // The windows are ours to keep: this writes as they open.
        http2.post_within_windows(1, CHAT, body.as_bytes());
        let (status, text) = http2.answer(1);
        assert_eq!(status, 200);
        assert!(text == body.as_bytes(), "{size}");
    }
}
