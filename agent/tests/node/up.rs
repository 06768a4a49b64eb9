//! From `recipe up` to an answer, and what `cgnctl` then says about it.

use serde_json::{Value, json};

use crate::process::{eventually, is_running};
use crate::recipe::{FAST, MODEL, NAME, ask, up, words};

#[test]
fn what_cgnctl_says_of_a_node_that_is_up_is_so() {
    let (house, engines) = up(3, 4, FAST);
    assert!(engines.iter().all(|engine| is_running(engine.pid)));

    let listed = house.ctl(&["recipe", "ls"]);
    assert_eq!(listed["recipes"][0]["name"], NAME);
    assert_eq!(listed["recipes"][0]["engine"]["replicas"], 3);

    let nodes = house.ctl(&["cluster", "nodes"]);
    assert_eq!(
        (&nodes["nodes"][0]["id"], &nodes["nodes"][0]["engines_ready"]),
        (&json!("n"), &json!(3))
    );
    assert_eq!(house.engines(), engines);
    let mut workers: Vec<&str> = engines.iter().map(|engine| engine.worker.as_str()).collect();
    workers.sort_unstable();
    assert_eq!(workers, ["n/sim/sim/test/0", "n/sim/sim/test/1", "n/sim/sim/test/2"]);

    let models = house.ctl(&["model", "ls"]);
    assert_eq!(models["models"].as_array().unwrap().len(), 1);
    let model = &models["models"][0];
    assert_eq!((&model["name"], &model["kinds"]), (&json!(MODEL), &json!(["vllm"])));
    assert_eq!((&model["workers"], &model["workers_ready"]), (&json!(3), &json!(3)));
    assert_eq!((&model["slots"], &model["context_length_tokens"]), (&json!(12), &json!(8192)));
    let offered = house.get("/v1/models").unwrap().json();
    assert_eq!(offered["data"][0]["id"], MODEL);

    let answer = house.chat(&ask("hello", 5));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["usage"]["completion_tokens"], 5);
    assert!(workers.contains(&answer.worker()));

    let again = house.ctl(&["recipe", "up", NAME]);
    assert_eq!(again["already_up"], true);
    assert_eq!(house.engines(), engines, "nothing was started twice");
}

#[test]
fn explain_names_the_worker_the_next_equal_request_goes_to() {
    let (house, _) = up(3, 4, FAST);
    // Until then it decides by what it learned, and then by what they say: two questions, two answers.
    eventually("all engines' events are heard", || house.metric("cgn_router_kv_known{") == 6.0);
    let file = house.dir.path().join("ask.json");
    let explain = |body: &Value| {
        std::fs::write(&file, body.to_string()).unwrap();
        house.ctl(&["route", "explain", "--body", file.to_str().unwrap()])
    };
    for number in 0..6 {
        let body = ask(&words(number, 400), 3);
        let before = explain(&body);
        assert_eq!(before["unit"], "tokens", "{before}");
        assert!(best_prefix(&before) < 16, "nobody has seen it: {before}");
        let first = house.chat(&body);
        assert_eq!(first.status, 200);

        let after = explain(&body);
        assert_eq!(after["picked"], first.worker(), "{after}");
        assert_eq!(after["prompt_tokens"], first.json()["usage"]["prompt_tokens"]);
        let second = house.chat(&body);
        assert_eq!(second.worker(), first.worker());
        // What was said, what the answer's head says and what the engine counted are one number, but
        // for the block with the last token, which an engine computes again.
        let said = best_prefix(&after);
        assert_eq!(second.field("x-cgn-prefix-tokens"), Some(said.to_string().as_str()));
        let cached = &second.json()["usage"]["prompt_tokens_details"]["cached_tokens"];
        let cached = cached.as_u64().unwrap();
        assert!(said >= 400 && said.abs_diff(cached) <= 16, "said {said}, cached {cached}");
    }
}

/// The most tokens any worker is said to hold.
fn best_prefix(explanation: &Value) -> u64 {
    let candidates = explanation["candidates"].as_array().unwrap().iter();
    candidates.map(|candidate| candidate["prefix_tokens"].as_u64().unwrap()).max().unwrap()
}
