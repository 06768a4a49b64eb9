//! `recipe down` while requests run.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::client::Exchange;
use crate::process::{eventually, is_running};
use crate::recipe::{NAME, REAL, ask, up, words};

#[test]
fn what_runs_is_finished_before_a_recipe_is_down_and_nothing_is_left() {
    let (house, engines) = up(2, 8, REAL);
    let begin = |number: usize, is_stream: bool| {
        let mut body = ask(&words(number, 20), 400);
        body["stream"] = is_stream.into();
        let body = body.to_string();
        Exchange::begin(house.http(), "POST", "/v1/chat/completions", &body).unwrap()
    };
    let mut streams: Vec<Exchange> = (0..4).map(|number| begin(number, true)).collect();
    let others: Vec<Exchange> = (4..8).map(|number| begin(number, false)).collect();
    streams.iter_mut().for_each(Exchange::streams);
    let running = || house.metric("cgn_router_worker_inflight_requests{");
    eventually("all eight are with an engine", || running() >= 8.0);

    let is_down = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let down = scope.spawn(|| {
            let down = house.ctl(&["recipe", "down", NAME, "--wait"]);
            is_down.store(true, Relaxed);
            down
        });
        // What comes meanwhile is served or refused in the right words, never broken.
        while !is_down.load(Relaxed) {
            let answer = house.chat(&ask("Is anybody there?", 2));
            assert!(matches!(answer.status, 200 | 404 | 503), "{answer:?}");
        }
        let down = down.join().unwrap();
        assert_eq!((&down["state"], &down["engines_left"]), (&"down".into(), &0.into()));
    });
    for stream in streams {
        let answer = stream.end().unwrap();
        assert!(answer.status == 200 && answer.is_done(), "{answer:?}");
    }
    for other in others {
        let answer = other.end().unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["usage"]["completion_tokens"], 400);
    }

    assert!(!engines.iter().any(|engine| is_running(engine.pid)));
    assert_eq!(house.engines(), []);
    eventually("the router has heard", || house.chat(&ask("hello", 2)).status == 404);
    let refused = house.chat(&ask("hello", 2)).json();
    assert_eq!(refused["error"]["code"], "model_not_found", "{refused}");
    let listed = house.get("/v1/models").unwrap().json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 0);
    assert_eq!(house.ctl(&["recipe", "down", NAME])["state"], "was_not_up");
}
