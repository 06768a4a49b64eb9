//! A stream whose engine dies goes on elsewhere: the same words, one role, one id, one end.

use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::ask::{
    CHAT, assert_ended_by_error, assert_whole, begin, chat, eventually, of_response, raw, resumed,
    start, stream, with, worker, workers,
};
use super::client::post;
use super::heard::Heard;
use super::speaker::{Fault, Speaker, Turn, WORDS, answer_to};

/// Events of one answer: the role, the words, the finish reason, the usage, `[DONE]`.
const EVENTS: usize = WORDS + 4;

fn dies_first(fault: Fault, at: usize) -> Vec<Speaker> {
    Speaker::group(2, move |number, _| match number {
        0 => Turn::fails(fault, at),
        _ => Turn::well(),
    })
}

#[test]
fn wherever_and_however_an_engine_dies_the_client_reads_the_whole_answer() {
    for fault in [Fault::Close, Fault::Reset, Fault::Garbage, Fault::HalfEvent, Fault::Dies] {
        for at in [1, 2, 7, WORDS] {
            let engines = dies_first(fault, at);
            let router = start("", &workers(&engines));
            let heard = stream(&router, &chat("rivers"));
            assert_whole(&heard, "rivers");
            assert_eq!(heard.usage.unwrap()["completion_tokens"], WORDS, "{fault:?} at {at}");
            // On a machine that is busy the first event may be read together with the end.
            let retried = router.metric("cgn_router_retries_total{cause=\"engine_failed\"}");
            assert_eq!(resumed(&router, "resumed") + retried, 1.0, "{fault:?} at {at}");
            assert!(at < 7 || retried == 0.0, "{fault:?} at {at}");
            assert_eq!(router.metric("cgn_router_streams_broken_total"), 0.0);
        }
    }
}

/// The answer is there, only its end is missing: nobody is asked again, and nobody needs to be there.
#[test]
fn an_engine_that_dies_behind_the_last_word_needs_no_other() {
    let engine = Speaker::one(|_, _| Turn::fails(Fault::Dies, EVENTS - 1));
    let router = start("", &workers([&engine]));
    assert_whole(&stream(&router, &chat("end")), "end");
    assert_eq!((resumed(&router, "resumed"), engine.asked().len()), (1.0, 1));
}

#[test]
fn an_end_without_finish_reason_is_no_end() {
    let engines = dies_first(Fault::PoliteEnd, 7);
    let router = start("", &workers(&engines));
    assert_whole(&stream(&router, &chat("polite")), "polite");
    assert_eq!(resumed(&router, "resumed"), 1.0);
}

#[test]
fn what_is_not_greedy_goes_on_from_its_text() {
    let engines = dies_first(Fault::Close, 7);
    let entries: String = engines.iter().map(|engine| worker(engine, "vllm")).collect();
    let router = start("[router.kv]\nmode = \"text\"\n", &entries);
    let body = with(chat("warm"), json!({ "temperature": 0.8 }));
    assert_whole(&stream(&router, &body), "warm");
    assert_eq!(resumed(&router, "resumed"), 1.0);
    let asked = engines.iter().flat_map(Speaker::asked);
    let continued: Vec<_> =
        asked.filter(|asked| asked.body["continue_final_message"] == json!(true)).collect();
    assert_eq!(continued.len(), 1);
    let given = continued[0].body["messages"][1]["content"].as_str().unwrap().to_owned();
    assert!(!given.is_empty() && answer_to("warm").starts_with(&given), "{given}");
}

#[test]
fn an_old_client_reads_it_too() {
    let engines = dies_first(Fault::Close, 5);
    let router = start("", &workers(&engines));
    let mut client = router.client();
    client.send(post(CHAT, "", &chat("old").to_string()).replace("HTTP/1.1", "HTTP/1.0"));
    let (status, _) = client.head();
    assert_eq!(status, 200);
    assert_whole(&Heard::of(&client.rest()), "old");
}

#[test]
fn a_client_of_http2_reads_it_too() {
    if Command::new("curl").arg("--version").output().is_err() {
        println!("skipped: curl is not there");
        return;
    }
    let engines = dies_first(Fault::Close, 5);
    let router = start("", &workers(&engines));
    let url = format!("http://{}{CHAT}", router.http);
    let answer = Command::new("curl")
        .args(["-sN", "--max-time", "20", "--http2-prior-knowledge", &url])
        .args(["-H", "content-type: application/json", "-d", &chat("new").to_string()])
        .output()
        .unwrap();
    assert!(answer.status.success(), "{answer:?}");
    assert_whole(&Heard::of(&answer.stdout), "new");
    assert_eq!(resumed(&router, "resumed"), 1.0);
}

#[test]
fn it_goes_on_only_once() {
    // The second says more than the first had, and dies too.
    let engines = Speaker::group(3, |number, _| match number {
        0 => Turn::fails(Fault::Close, 4),
        1 => Turn::fails(Fault::Close, 9),
        _ => Turn::well(),
    });
    let router = start("", &workers(&engines));
    let heard = stream(&router, &chat("twice"));
    assert_ended_by_error(&heard, "twice");
    assert!(heard.text.len() > answer_to("twice").len() / 3, "{heard:?}");
    assert_eq!(resumed(&router, "failed_again"), 1.0);
}

#[test]
fn a_second_engine_that_says_nothing_new_is_replaced_by_a_third() {
    let engines = Speaker::group(3, |number, _| match number {
        0 => Turn::fails(Fault::Close, 9),
        1 => Turn::fails(Fault::Close, 4),
        _ => Turn::well(),
    });
    let router = start("", &workers(&engines));
    assert_whole(&stream(&router, &chat("third")), "third");
}

#[test]
fn the_only_engine_is_waited_for() {
    let engine = Speaker::one(|number, _| match number {
        0 => Turn::fails(Fault::Dies, 6),
        _ => Turn::well(),
    });
    let keys = "[router.limits]\nprobe_interval_ms = 100\n[router.resume]\nwait_ms_max = 15000\n";
    let router = start(keys, &workers([&engine]));
    let client = std::thread::scope(|scope| {
        let reading = scope.spawn(|| stream(&router, &chat("back")));
        eventually("it is gone", || router.metric("cgn_router_worker_ready{") == 0.0);
        // Longer than three attempts at a refusing port would take.
        std::thread::sleep(Duration::from_secs(4));
        let again = engine.restarted();
        let heard = reading.join().unwrap();
        drop(again);
        heard
    });
    assert_whole(&client, "back");
}

#[test]
fn a_wait_that_is_too_long_ends_with_an_error() {
    let engine = Speaker::one(|_, _| Turn::fails(Fault::Dies, 6));
    let router = start("[router.resume]\nwait_ms_max = 300\n", &workers([&engine]));
    assert_ended_by_error(&stream(&router, &chat("gone")), "gone");
    assert_eq!(resumed(&router, "no_worker"), 1.0);
}

#[test]
fn a_client_that_leaves_while_a_worker_is_waited_for_is_noticed() {
    let engine = Speaker::one(|_, _| Turn::fails(Fault::Dies, 6));
    let router = start("[router.resume]\nwait_ms_max = 600000\n", &workers([&engine]));
    let mut client = begin(&router, CHAT, &chat("x"));
    client.until("w4x");
    eventually("the engine is gone", || router.metric("cgn_router_worker_ready{") == 0.0);
    drop(client);
    eventually("the client is gone", || router.metric("cgn_router_clients_gone_total") == 1.0);
    assert_eq!(router.metric("cgn_router_requests_running"), 0.0);
}

#[test]
fn switched_off_it_is_an_error_event() {
    let engines = dies_first(Fault::Close, 6);
    let router = start("[router.resume]\nenabled = false\n", &workers(&engines));
    assert_ended_by_error(&of_response(&raw(&router, CHAT, &chat("off"))), "off");
}
