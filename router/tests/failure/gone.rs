//! A client that is gone stops its engine, quickly.

use std::time::{Duration, Instant};

use super::ask::{CHAT, begin, chat, eventually, start, stream, workers};
use super::speaker::{Fault, Speaker, Turn};

/// The goal is 100 ms behind the 50 ms between two looks. A busy machine gets more; the measured value
/// is printed.
const GENEROUS: Duration = Duration::from_millis(1_500);

/// How long after the client's end the engine saw its own.
fn noticed(turn: Turn, heard: Option<&str>) -> Duration {
    let engine = Speaker::one(move |number, _| if number < 8 { Turn::well() } else { turn });
    let router = start("", &workers([&engine]));
    // What goes out over a connection that was used before is not sent again when that one is ended.
    for i in 0..8 {
        stream(&router, &chat(&format!("{i}")));
    }
    let mut client = begin(&router, CHAT, &chat("x"));
    match heard {
        Some(text) => drop(client.until(text)),
        None => eventually("the engine works", || engine.asked().len() == 9),
    }
    // Longer than a tick: it is within one phase for some time.
    std::thread::sleep(Duration::from_millis(150));
    let left = Instant::now();
    drop(client);
    eventually("the engine is let go", || engine.cancelled().len() == 1);
    let after = engine.cancelled()[0].saturating_duration_since(left);
    eventually("it is counted", || router.metric("cgn_router_clients_gone_total") == 1.0);
    assert_eq!(engine.asked().len(), 9, "nobody works for a client that is gone");
    after
}

#[test]
fn a_gone_client_cancels_before_the_first_token_and_in_the_middle() {
    let before = noticed(Turn::fails(Fault::Stall, 0), None);
    let within = noticed(Turn::fails(Fault::Stall, 5), Some("w3x"));
    println!(
        "the engine saw the end after {before:?} before the first token, {within:?} in a stream"
    );
    assert!(before < GENEROUS && within < GENEROUS, "{before:?} {within:?}");
}

#[test]
fn a_gone_client_cancels_a_stream_that_runs() {
    let running = Turn { pause: Duration::from_millis(10), ..Turn::fails(Fault::Endless, 5) };
    let after = noticed(running, Some("w3x"));
    println!("the engine saw the end after {after:?} while it spoke");
    assert!(after < GENEROUS, "{after:?}");
}
