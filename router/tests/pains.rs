//! What users of today's gateways complain about, each with the tests that hold it here.
//!
//! The first list is what was measured at another gateway, the second and third are what its sources and
//! public threads say, as far as a gateway is concerned. `each_named_test_exists` keeps [`PAINS`] true.
//! The tests of this file are those that stand nowhere else.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "shared with other tests")]
#[path = "failure/ask.rs"]
mod ask;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "contract/client.rs"]
mod client;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "contract/engine.rs"]
mod engine;
#[path = "failure/heard.rs"]
mod heard;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "contract/process.rs"]
mod process;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "failure/speaker.rs"]
mod speaker;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use ask::{CHAT, assert_whole, begin, chat, eventually, raw, start, stream, with, workers};
use client::Client;
use process::Router;
use speaker::{Fault, Speaker, Turn, WORDS};

/// A pain, and where it is tested: `file::test`.
const PAINS: &[(&str, &[&str])] = &[
    // Measured.
    (
        "one of three idle replicas takes everything, distinct prompts or not",
        &[
            "router/tests/contract/routing.rs::distinct_prompts_spread_evenly_over_idle_equal_workers",
            "router/tests/pains.rs::no_worker_takes_everything_under_load",
            "agent/tests/node/spread.rs::three_hundred_distinct_prompts_land_evenly_short_and_long",
            "agent/tests/node/spread.rs::prompts_with_one_long_system_prompt_follow_it_and_others_do_not",
        ],
    ),
    (
        "streams stall for 44 ms (Nagle and delayed acknowledgements)",
        &[
            "router/tests/pains.rs::small_pieces_of_a_stream_are_not_held_back",
            "router/tests/contract/openai.rs::the_first_token_is_not_held_back",
        ],
    ),
    (
        "a new connection to the engine for each request",
        &["router/tests/pains.rs::a_thousand_requests_need_few_connections"],
    ),
    (
        "fields are lost, limits replaced, numbers rounded on the way to the engine",
        &[
            "router/tests/contract/openai.rs::the_engine_gets_the_clients_bytes_whatever_they_say",
            "router/tests/pains.rs::the_body_reaches_the_engine_byte_for_byte",
        ],
    ),
    (
        "usage and finish_reason are made up",
        &[
            "router/tests/pains.rs::usage_and_finish_reason_are_the_engines",
            "router/tests/contract/openai.rs::a_stream_arrives_byte_for_byte",
            "router/tests/contract/openai.rs::the_engines_own_counts_reach_the_metrics",
        ],
    ),
    (
        "errors that are no OpenAI errors, and a 503 for an unknown model",
        &[
            "router/tests/contract/openai.rs::bad_requests_get_the_openai_envelope_and_the_connection_lives_on",
            "router/tests/contract/openai.rs::an_endpoint_no_engine_offers_is_a_clear_error",
            "router/tests/pains.rs::an_unknown_model_is_a_404_streamed_or_not",
        ],
    ),
    (
        "a dead engine gives empty 200s while others are idle",
        &[
            "router/tests/pains.rs::no_200_is_empty_when_an_engine_is_dead",
            "router/tests/contract/failure.rs::an_engine_that_dies_between_a_streams_head_and_its_first_event_costs_nothing",
            "router/tests/chaos.rs::no_answer_is_cut_short_and_what_goes_on_elsewhere_says_the_same",
        ],
    ),
    ("a 500 leaks an internal URL", &["router/tests/pains.rs::no_error_names_an_engine"]),
    (
        "/readyz says ok while nothing can be served",
        &[
            "router/tests/pains.rs::readiness_tells_the_truth",
            "router/tests/failure/drain.rs::a_router_that_drains_says_so_and_lets_streams_finish",
        ],
    ),
    (
        "a cordon is undone by the next heartbeat",
        &["router/tests/failure/drain.rs::a_cordon_sticks_over_snapshots_and_health"],
    ),
    (
        "three metric families after traffic",
        &[
            "router/tests/documented.rs::what_a_running_router_exposes_is_documented_with_type_and_labels",
        ],
    ),
    // From its sources.
    (
        "routing by prefix is inert",
        &["router/tests/contract/routing.rs::a_conversation_stays_where_its_prefix_is"],
    ),
    (
        "tokens are words, not the model's",
        &["router/tests/contract/routing.rs::llama_cpp_prompts_are_cut_by_their_exact_tokens"],
    ),
    ("load is not looked at", &["router/tests/pains.rs::no_worker_takes_everything_under_load"]),
    (
        "no retry, no failover, no breaker, no time limits",
        &[
            "router/tests/failure/retries.rs::a_worker_that_dies_before_the_first_token_costs_a_retry_and_nothing_else",
            "router/tests/failure/retries.rs::a_budget_is_spent_and_then_no_load_is_added_to_a_failing_cluster",
            "router/tests/failure/breakers.rs::it_opens_after_failures_and_probes_close_it_again",
            "router/tests/failure/timeouts.rs::an_address_that_does_not_answer_costs_the_connect_timeout_and_no_request",
            "router/tests/failure/timeouts.rs::a_stream_whose_engine_falls_silent_goes_on_elsewhere",
        ],
    ),
    (
        "drain kills, a crash is for ever",
        &[
            "router/tests/failure/drain.rs::a_draining_worker_gets_nothing_new_and_its_streams_finish",
            "agent/tests/supervise_engines.rs::an_engine_becomes_ready_and_comes_back_after_sigkill",
        ],
    ),
    (
        "scopes, models and limits of a tenant are not enforced, its headers are believed",
        &[
            "router/src/identity/tests.rs::scopes_endpoints_and_models_are_enforced",
            "router/src/meter/tests.rs::requests_are_admitted_as_the_model_says",
            "router/tests/contract/http.rs::hop_by_hop_fields_stop_here_and_the_others_pass",
        ],
    ),
    (
        "admission and deadlines are dead code",
        &[
            "router/tests/contract/failure.rs::a_full_queue_is_a_429_with_retry_after",
            "router/src/forecast.rs::who_would_be_late_hears_when_to_come_back",
        ],
    ),
    (
        "metrics, dashboards and alerts that name what does not exist",
        &[
            "router/tests/documented.rs::each_documented_metric_is_declared_and_each_declared_one_documented",
            "router/tests/documented.rs::rules_and_dashboard_use_metrics_that_are_documented",
        ],
    ),
    (
        "unknown configuration keys are ignored",
        &["router/tests/contract/start.rs::an_unknown_key_names_file_line_and_nearest_key"],
    ),
    // From public threads.
    (
        "workers starve: the load is out of balance",
        &["router/tests/pains.rs::no_worker_takes_everything_under_load"],
    ),
    (
        "what is known of a cache goes stale without a word",
        &["router/tests/contract/routing.rs::an_engine_that_cannot_tokenize_is_routed_by_text"],
    ),
    (
        "requests hang after a worker was chosen",
        &[
            "router/tests/pains.rs::a_request_to_a_crashed_worker_never_hangs",
            "router/tests/contract/failure.rs::a_silent_engine_is_given_up_with_504",
            "router/tests/failure/timeouts.rs::a_stream_that_never_ends_is_ended_and_so_is_its_engine",
        ],
    ),
    (
        "scaling down aborts what runs",
        &[
            "router/tests/failure/drain.rs::streams_of_a_worker_that_drains_for_too_long_go_on_elsewhere",
            "router/tests/contract/start.rs::sigterm_lets_a_stream_finish_and_exits_with_zero",
            "agent/tests/supervise_engines.rs::a_removed_engine_finishes_its_stream_first",
        ],
    ),
    (
        "tool calls and reasoning break in the gateway's parsers",
        &["router/tests/pains.rs::the_body_reaches_the_engine_byte_for_byte"],
    ),
    (
        "it does not run without etcd, or before an engine as it is",
        &[
            "router/tests/contract/routing.rs::snapshots_are_followed_questions_answered_and_control_may_die",
            "router/tests/resume_llama.rs::greedy_answers_go_on_with_the_same_words_wherever_they_were_cut",
        ],
    ),
    (
        "a dead worker keeps receiving traffic",
        &["router/tests/failure/breakers.rs::a_refused_connection_opens_it_at_once"],
    ),
    (
        "a stream is lost with its worker unless an option says otherwise",
        &[
            "router/tests/failure/resume.rs::wherever_and_however_an_engine_dies_the_client_reads_the_whole_answer",
        ],
    ),
];

#[test]
fn each_named_test_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (pain, tests) in PAINS {
        assert!(!tests.is_empty(), "{pain}");
        for test in *tests {
            let (file, name) = test.split_once("::").unwrap();
            let text = std::fs::read_to_string(root.join(file)).expect(file);
            let is_there =
                text.contains(&format!("fn {name}(")) || text.contains(&format!("def {name}("));
            assert!(is_there, "{pain}: no {name} in {file}");
        }
    }
}

/// Asks once for each prompt, so many at a time.
fn ask_all(router: &Router, prompts: &[String], at_once: usize) {
    std::thread::scope(|scope| {
        for part in prompts.chunks(prompts.len().div_ceil(at_once)) {
            scope.spawn(move || {
                let mut client = router.client();
                for prompt in part {
                    let body = with(chat(prompt), json!({ "stream": false })).to_string();
                    assert_eq!(client.post(CHAT, "", &body).status, 200);
                }
            });
        }
    });
}

#[test]
fn no_worker_takes_everything_under_load() {
    let shared = "You are a helpful assistant who answers briefly. ".repeat(40);
    for prefix in ["", shared.as_str()] {
        let engines = Speaker::group(3, |_, _| Turn::slow(5));
        let entries = workers(&engines).replace("slots = 16", "slots = 4");
        let router = start("", &entries);
        let prompts: Vec<String> = (0..300).map(|i| format!("{prefix}question {i}")).collect();
        ask_all(&router, &prompts, 16);
        let shares: Vec<usize> = engines.iter().map(|engine| engine.asked().len()).collect();
        println!("{} bytes shared: {shares:?}", prefix.len());
        assert_eq!(shares.iter().sum::<usize>(), 300);
        // A shared prefix may draw more to one, never all: places elsewhere are free.
        let (least, most) = if prefix.is_empty() { (75, 125) } else { (15, 240) };
        assert!(shares.iter().all(|share| (least..=most).contains(share)), "{shares:?}");
    }
}

/// The time from the request to the third event, of which each leaves the engine in a small write of
/// its own; the median of several.
fn to_third_event(address: std::net::SocketAddr) -> Duration {
    let mut client = Client::connect(address);
    let mut times: Vec<Duration> = (0..31)
        .map(|i| {
            let begun = Instant::now();
            client.send(client::post(CHAT, "", &chat(&format!("{i}")).to_string()));
            client.until("w1x");
            let time = begun.elapsed();
            client.until("0\r\n\r\n");
            time
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// Compared with the engine itself, which pauses between its events: 40 ms of a delayed acknowledgement
/// would show as a multiple of it.
#[test]
fn small_pieces_of_a_stream_are_not_held_back() {
    let engine = Speaker::one(|_, _| Turn::slow(2));
    let router = start("", &workers([&engine]));
    let (direct, through) = (to_third_event(engine.address), to_third_event(router.http));
    println!("to the third event: {direct:?} directly, {through:?} through the router");
    assert!(through < direct * 3, "{direct:?} directly, {through:?} through the router");
}

#[test]
fn a_thousand_requests_need_few_connections() {
    let engine = Speaker::one(|_, _| Turn::well());
    let router = start("", &workers([&engine]));
    let prompts: Vec<String> = (0..1_000).map(|i| format!("{i}")).collect();
    ask_all(&router, &prompts, 8);
    assert_eq!(engine.asked().len(), 1_000);
    // Eight at once on two cores, and the probes.
    let connections = engine.connections();
    assert!(connections <= 40, "{connections} connections for 1000 requests");
}

#[test]
fn the_body_reaches_the_engine_byte_for_byte() {
    let engine = Speaker::one(|_, _| Turn::well());
    let router = start("", &workers([&engine]));
    let body = concat!(
        r#"{ "model":"m","messages":[{"role":"user","content":[{"type":"text","text":"caf\u00e9"},"#,
        r#"{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}],"#,
        r#""temperature":0.3,"top_p":1.0,"seed":18446744073709551615,"n":2,"logprobs":true,"#,
        r#""top_logprobs":3,"max_completion_tokens":55,"presence_penalty":-1e-3,"stop":["X"],"#,
        r#""tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"#,
        r#""tool_choice":"auto","response_format":{"type":"json_object"},"user":"u","#,
        r#""reasoning_effort":"low","stream_options":null,"vendor_field":{"a":[1.10,2E5]} }"#
    );
    assert_eq!(router.client().post(CHAT, "", body).status, 200);
    assert_eq!(String::from_utf8_lossy(&engine.asked()[0].bytes), body);
}

#[test]
fn usage_and_finish_reason_are_the_engines() {
    let engine = Speaker::one(|_, _| Turn::well());
    let router = start("", &workers([&engine]));
    let heard = stream(&router, &chat("x"));
    assert_whole(&heard, "x");
    let usage = json!({ "prompt_tokens": 7, "completion_tokens": WORDS, "total_tokens": 19 });
    assert_eq!(
        (heard.finish_reasons, heard.usage),
        (vec!["length".to_owned()], Some(usage.clone()))
    );
    let body = with(chat("x"), json!({ "stream": false })).to_string();
    let answer: Value =
        serde_json::from_slice(&router.client().post(CHAT, "", &body).body).unwrap();
    assert_eq!(
        (&answer["usage"], &answer["choices"][0]["finish_reason"]),
        (&usage, &json!("length"))
    );
}

#[test]
fn an_unknown_model_is_a_404_streamed_or_not() {
    let engine = Speaker::one(|_, _| Turn::well());
    let router = start("", &workers([&engine]));
    for path in [CHAT, "/v1/completions", "/v1/embeddings", "/v1/messages"] {
        for stream in [true, false] {
            let fields =
                json!({ "model": "unknown", "stream": stream, "prompt": "x", "input": "x" });
            let body = with(chat("x"), fields);
            let answer = router.client().post(path, "", &body.to_string());
            let code = answer.error()["code"].clone();
            assert_eq!((answer.status, code), (404, json!("model_not_found")), "{path} {stream}");
        }
    }
    assert!(engine.asked().is_empty());
}

#[test]
fn no_200_is_empty_when_an_engine_is_dead() {
    let engines = Speaker::group(3, |_, _| Turn::well());
    let router = start("", &workers(&engines));
    engines[0].stop();
    for i in 0..40 {
        let prompt = format!("{i}");
        assert_whole(&stream(&router, &chat(&prompt)), &prompt);
    }
    engines.iter().for_each(Speaker::stop);
    for i in 0..6 {
        let stream = i % 2 == 0;
        let body = with(chat("x"), json!({ "stream": stream })).to_string();
        let answer = router.client().post(CHAT, "", &body);
        assert!(matches!(answer.status, 502 | 503), "{answer:?}");
        assert_eq!(answer.error()["type"], "server_error");
    }
}

#[test]
fn no_error_names_an_engine() {
    let faults = [Fault::Close, Fault::Garbage, Fault::Stall, Fault::Dies];
    for fault in faults {
        let engine =
            Speaker::one(move |number, _| Turn::fails(fault, if number == 0 { 5 } else { 0 }));
        let keys = "[router.limits]\nfirst_byte_s_max = 1\ninter_token_s_max = 1\n\
                    [router.resume]\nwait_ms_max = 100\n";
        let router = start(keys, &workers([&engine]));
        for _ in 0..2 {
            let response = String::from_utf8(raw(&router, CHAT, &chat("x"))).unwrap();
            let body = response.split_once("\r\n\r\n").unwrap().1;
            assert!(body.contains("\"error\""), "{fault:?}: {response}");
            let port = engine.address.port().to_string();
            let said = body.lines().filter(|line| line.contains("\"error\""));
            for line in said {
                assert!(!line.contains(&port) && !line.contains("127.0.0.1"), "{fault:?}: {line}");
            }
        }
    }
}

#[test]
fn readiness_tells_the_truth() {
    let engine = Speaker::one(|_, _| Turn::well());
    let router = start("[router.limits]\nprobe_interval_ms = 100\n", &workers([&engine]));
    let is_ready = |status: u16| router.client().get("/readyz").status == status;
    assert!(is_ready(200));
    engine.stop();
    eventually("it is not ready", || is_ready(503));
    let again = engine.restarted();
    eventually("it is ready again", || is_ready(200));
    assert_whole(&stream(&router, &chat("x")), "x");
    assert_eq!(again.asked().len(), 1);
}

#[test]
fn a_request_to_a_crashed_worker_never_hangs() {
    let engines = Speaker::group(2, |_, _| Turn::slow(20));
    // Nobody notices for the tests' sake: no probe, and a long patience with an engine.
    let router = start("[router.limits]\nprobe_interval_ms = 600000\n", &workers(&engines));
    let mut running: Vec<_> =
        (0..8).map(|i| begin(&router, CHAT, &chat(&format!("{i}")))).collect();
    eventually("both work", || engines.iter().all(|engine| engine.asked().len() >= 2));
    engines[0].stop();
    for (i, client) in running.iter_mut().enumerate() {
        assert_whole(&ask::of_response(&client.rest()), &format!("{i}"));
    }
    for i in 0..8 {
        let prompt = format!("later {i}");
        assert_whole(&stream(&router, &chat(&prompt)), &prompt);
    }
}
