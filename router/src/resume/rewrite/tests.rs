//! What a client sees of a second engine's stream.

use proptest::prelude::*;

use super::*;
use crate::resume::tape::Tape;

fn chunk(id: &str, delta: &str, finish: &str) -> String {
    format!(
        "data: {{\"choices\":[{{\"finish_reason\":{finish},\"index\":0,\"delta\":{delta}}}],\
         \"created\":{},\"id\":\"{id}\",\"model\":\"m\",\"object\":\"chat.completion.chunk\"}}\n\n",
        id.len()
    )
}

/// A stream as llama.cpp sends it, and where each of its events ends.
fn stream(id: &str, words: &[&str]) -> Vec<String> {
    let mut events = vec![chunk(id, r#"{"role":"assistant","content":null}"#, "null")];
    events.extend(
        words.iter().map(|word| chunk(id, &format!("{{\"content\":{}}}", string(word)), "null")),
    );
    events.push(chunk(id, "{}", "\"stop\""));
    events.push(format!(
        "data: {{\"choices\":[],\"id\":\"{id}\",\"usage\":{{\"completion_tokens\":{},\"prompt_tokens\":9,\"total_tokens\":99}}}}\n\n",
        words.len()
    ));
    events.push("data: [DONE]\n\n".to_owned());
    events
}

fn sent(events: &[String]) -> Transcript {
    let mut tape = Tape::default();
    events.iter().for_each(|event| tape.push(event.as_bytes()));
    Transcript::read(Endpoint::Chat, &tape).unwrap()
}

fn rewritten(mut rewriter: Rewriter, bytes: &[u8], cut: usize) -> Result<String, Broken> {
    let mut out = Vec::new();
    for part in bytes.chunks(cut) {
        if let Err(error) = rewriter.push(part, &mut out) {
            assert!(error != Broken::Deviated || out.is_empty(), "it went to the client");
            return Err(error);
        }
    }
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn a_replay_at_any_event_gives_the_undisturbed_stream() {
    let words = ["Hello", ",", " \"w", "ö", "rld\"\n", "😀"];
    let first = stream("first", &words);
    let second = stream("second", &words).concat();
    let last_word = words.len();
    for cut in 0..=last_word + 1 {
        let rewriter = Rewriter::replay(Endpoint::Chat, &sent(&first[..cut]));
        let rest = rewritten(rewriter, second.as_bytes(), 13).unwrap();
        // Before the first event nothing has a name yet, so the second engine's stays.
        let expected = if cut == 0 { second.clone() } else { first[cut..].concat() };
        assert_eq!(rest, expected, "after {cut} events");
    }
}

#[test]
fn other_cuts_of_the_same_words_are_the_same_words() {
    let first = stream("a", &["Hel", "lo wor"]);
    let second = stream("b", &["Hello", " world", "!"]).concat();
    let rest =
        rewritten(Rewriter::replay(Endpoint::Chat, &sent(&first[..3])), second.as_bytes(), 64);
    let expected = [&stream("a", &["ld", "!"])[1..4], &[]].concat().concat();
    assert!(rest.unwrap().starts_with(&expected));
}

#[test]
fn other_words_and_an_early_end_are_noticed() {
    let first = stream("a", &["Hello", " world"]);
    let replay = || Rewriter::replay(Endpoint::Chat, &sent(&first[..3]));
    for words in [&["Hello", " there"][..], &["Hello"], &[]] {
        let second = stream("b", words).concat();
        assert_eq!(rewritten(replay(), second.as_bytes(), 64), Err(Broken::Deviated), "{words:?}");
    }
    let counted = ["data: {\"choices\":[],\"v\":1}\n\n".to_owned(), stream("b", &["Hi"]).concat()];
    assert_eq!(rewritten(replay(), counted.concat().as_bytes(), 64), Err(Broken::Deviated));
    let error = b"data: {\"error\":{\"message\":\"x\"}}\n\n";
    assert_eq!(rewritten(replay(), error, 64), Err(Broken::Deviated));
    let tool = chunk("b", r#"{"tool_calls":[{"index":0}]}"#, "null");
    assert_eq!(rewritten(replay(), tool.as_bytes(), 64), Err(Broken::Deviated));
    assert_eq!(rewritten(replay(), b"data: [DONE]\n\n", 64), Err(Broken::Deviated));
    assert_eq!(rewritten(replay(), b"data: <html>\n\n", 64), Err(Broken::Unreadable));
    assert_eq!(rewritten(replay(), &vec![b'x'; 40_000], 64), Err(Broken::Unreadable));
}

#[test]
fn a_continuation_keeps_the_name_drops_the_role_and_the_echo() {
    let words = ["It is a long ", "sentence"];
    let first = stream("a", &words);
    let mut said = sent(&first[..3]);
    let second = stream("bb", &[" here", "It is a long sentence"]).concat();
    let rest =
        rewritten(Rewriter::continuation(Endpoint::Chat, &said), second.as_bytes(), 7).unwrap();
    let expected = stream("a", &[" here", "It is a long sentence"]);
    assert_eq!(rest, expected[1..].concat());
    let echoed = stream("bb", &["It is a long sentence here", "It is a long sentence"]).concat();
    let again =
        rewritten(Rewriter::continuation(Endpoint::Chat, &said), echoed.as_bytes(), 7).unwrap();
    assert_eq!(again, rest);
    said.counted_tokens = Some(2);
    let counted =
        rewritten(Rewriter::continuation(Endpoint::Chat, &said), second.as_bytes(), 7).unwrap();
    assert!(
        counted.contains(r#""usage":{"completion_tokens":4,"prompt_tokens":7,"total_tokens":99}"#),
        "{counted}"
    );
}

#[test]
fn reasoning_is_skipped_in_either_field() {
    let events = [
        chunk("a", r#"{"reasoning_content":"hm","reasoning":"hm"}"#, "null"),
        chunk("a", r#"{"reasoning_content":" so","reasoning":" so"}"#, "null"),
        chunk("a", r#"{"content":"yes"}"#, "null"),
    ];
    for cut in 1..=3 {
        let rewriter = Rewriter::replay(Endpoint::Chat, &sent(&events[..cut]));
        let rest = rewritten(rewriter, events.concat().as_bytes(), 64).unwrap();
        assert_eq!(rest, events[cut..].concat());
    }
}

#[test]
fn completions_are_resumed_with_their_vendor_fields() {
    let event = |id: &str, text: &str, finish: &str| {
        format!(
            "data: {{\"choices\":[{{\"text\":{},\"index\":0,\"x\":0.30,\"finish_reason\":{finish}}}],\"id\":\"{id}\",\"v\":1e2}}\n\n",
            string(text)
        )
    };
    let all = |id| [event(id, "a", "null"), event(id, "b", "null"), event(id, "", "\"stop\"")];
    let mut tape = Tape::default();
    tape.push(all("one")[0].as_bytes());
    let sent = Transcript::read(Endpoint::Completions, &tape).unwrap();
    let second = [": ping\n\n".to_owned(), all("two").concat()].concat();
    let rest =
        rewritten(Rewriter::replay(Endpoint::Completions, &sent), second.as_bytes(), 5).unwrap();
    assert_eq!(rest, format!(": ping\n\n{}", all("one")[1..].concat()));
    let cut = event("two", "ab", "null").replace("\"x\"", "\"token_ids\":[1],\"x\"");
    let rewriter = Rewriter::replay(Endpoint::Completions, &sent);
    assert_eq!(rewritten(rewriter, cut.as_bytes(), 64), Err(Broken::Deviated));
}

#[test]
fn data_in_several_lines_becomes_one() {
    let event = b"data: {\"choices\":[],\r\ndata: \"v\":[1,\ndata:2]}\n\n";
    let out = rewritten(Rewriter::continuation(Endpoint::Chat, &Transcript::default()), event, 9);
    assert_eq!(out.unwrap(), "data: {\"choices\":[],\"v\":[1, 2]}\n\n");
}

#[test]
fn the_end_is_said_once_and_an_error_is_passed_on() {
    let bytes =
        b"data: {\"error\":{\"message\":\"x\"}}\n\ndata: [DONE]\n\ndata: [DONE]\n\ndata: x\n\n";
    let mut rewriter = Rewriter::continuation(Endpoint::Chat, &Transcript::default());
    let mut out = Vec::new();
    rewriter.push(bytes, &mut out).unwrap();
    assert!(rewriter.is_done());
    assert_eq!(out, b"data: {\"error\":{\"message\":\"x\"}}\n\ndata: [DONE]\n\n");
}

proptest! {
    #[test]
    fn hostile_streams_never_panic(
        text in "(data: ?[{}\\[\\]\",:a1 ]{0,24}\n\n){0,4}",
        deltas in prop::collection::vec("(\\{\\}|\\{\"content\":(\"[ab]{0,3}\"|1|null)\\}|\\{\"reasoning\":\"[ab]{0,3}\"\\}|\\{\"role\":\"a\"\\}|7)", 0..5),
        said in "[ab]{0,4}",
        thought in "[ab]{0,2}",
        cut in 1usize..40,
    ) {
        let sent = Transcript { text: said, reasoning: thought, ..Transcript::default() };
        let events: String = deltas.iter().map(|delta| chunk("x", delta, "null")).collect();
        for bytes in [&text, &events] {
            let out = rewritten(Rewriter::replay(Endpoint::Chat, &sent), bytes.as_bytes(), cut);
            for event in out.iter().flat_map(|out| out.split_terminator("\n\n")) {
                let json = event.strip_prefix("data: ").unwrap_or("{}");
                prop_assert!(json == "[DONE]" || serde_json::from_str::<serde_json::Value>(json).is_ok(), "{json}");
            }
        }
    }
}
