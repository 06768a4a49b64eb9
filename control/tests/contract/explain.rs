//! `cgnctl route explain` through control to an attached router and back.

use dataplane::wire::{Candidate, Explanation, FromPlane, ScoreWeights, ToPlane};
use serde_json::Value;

use crate::house::House;
use crate::plane::Plane;

const ASK: [&str; 6] = ["route", "explain", "--model", "sim", "--prompt", "hello"];

fn explanation() -> Explanation {
    Explanation {
        model: "sim".to_owned(),
        unit: "tokens".to_owned(),
        prompt_tokens: 70,
        prompt_blocks: 4,
        weights: ScoreWeights::default(),
        temperature: 0.0,
        tokenizer: "distrusted".to_owned(),
        picked: "n1/sim/0".to_owned(),
        reason: "holds 64 of 70 prompt tokens".to_owned(),
        candidates: vec![Candidate {
            worker: "n1/sim/0".to_owned(),
            eligible: true,
            excluded_because: String::new(),
            source: "partial events".to_owned(),
            prefix_tokens: 64,
            fetch_tokens: 32,
            queued_ms: 12.5,
            queued_others_ms: 2.5,
            inflight: 3,
            inflight_others: 2,
            slots: 4,
            kv: 0.5,
            load: 0.2,
            power: 0.1,
            capacity: 0.05,
            cost: 0.85,
        }],
    }
}

/// Answers one question and gives what was asked.
async fn answer(plane: &mut Plane, result: Result<Explanation, String>) -> (String, Value) {
    let (path, body, _) = answer_steered(plane, result).await;
    (path, body)
}

/// The same, with the weights and the temperature asked for.
async fn answer_steered(
    plane: &mut Plane,
    result: Result<Explanation, String>,
) -> (String, Value, (Option<ScoreWeights>, Option<f64>)) {
    loop {
        if let ToPlane::Explain { id, path, body, weights, temperature } = plane.hear().await {
            // An answer to a question nobody asked is none of anybody's business.
            let stray = FromPlane::Explained { id: id + 1, result: Err("stray".to_owned()) };
            plane.say(&stray).await;
            plane.say(&FromPlane::Explained { id, result }).await;
            return (path, serde_json::from_str(&body).unwrap(), (weights, temperature));
        }
    }
}

#[tokio::test]
async fn the_routers_table_comes_back_as_it_was_given() {
    let house = House::start("").await;
    let _other = Plane::dial(&house, "cgn-kvcached").await;
    let mut router = Plane::dial(&house, "cgn-router").await;
    let mut args = vec!["--output", "json"];
    args.extend(ASK);
    router.see(|_| true).await;
    let (ran, (path, body)) =
        tokio::join!(house.cgnctl(&args), answer(&mut router, Ok(explanation())));
    assert_eq!(path, "/v1/completions");
    assert_eq!(body, serde_json::json!({ "model": "sim", "prompt": "hello" }));
    let got: Explanation = serde_json::from_value(ran.json()).unwrap();
    assert_eq!(got, explanation());

    let (ran, _) = tokio::join!(house.cgnctl(&ASK), answer(&mut router, Ok(explanation())));
    assert_eq!(ran.code, 0);
    let row: Vec<&str> = ran.stdout.lines().last().unwrap().split_whitespace().collect();
    let expected =
        "* n1/sim/0 64 partial-events 32 12.50 1+2/4 0.50 0.20 0.10 0.05 0.85".split(' ');
    assert_eq!(row, expected.collect::<Vec<_>>());
    assert!(ran.stdout.contains("the model's files are distrusted"), "{}", ran.stdout);
    assert!(ran.stdout.contains("holds 64 of 70 prompt tokens"));
}

#[tokio::test]
async fn messages_and_bodies_from_files_are_asked_on_their_path() {
    let house = House::start("").await;
    let mut router = Plane::dial(&house, "cgn-router").await;
    router.see(|_| true).await;
    let file = house.dir.path().join("ask.json");
    let name = file.to_str().unwrap();
    std::fs::write(&file, r#"[{"role":"user","content":"hi"}]"#).unwrap();
    let args = ["route", "explain", "--model", "sim", "--messages", name];
    let (_, (path, body)) =
        tokio::join!(house.cgnctl(&args), answer(&mut router, Ok(explanation())));
    assert_eq!(path, "/v1/chat/completions");
    assert_eq!(body["messages"][0]["content"], "hi");

    std::fs::write(&file, r#"{"model":"other","prompt":"x","logprobs":1}"#).unwrap();
    let args = ["route", "explain", "--body", name];
    let (_, (path, body)) =
        tokio::join!(house.cgnctl(&args), answer(&mut router, Ok(explanation())));
    assert_eq!(path, "/v1/completions");
    assert_eq!(body, serde_json::json!({ "model": "other", "prompt": "x", "logprobs": 1 }));

    std::fs::write(&file, "{").unwrap();
    assert!(house.cgnctl(&args).await.error(2).contains("ask.json"));
}

#[tokio::test]
async fn without_a_router_or_with_one_that_says_no_it_fails_in_one_line() {
    let house = House::start("explain_timeout_s = 1").await;
    let none = house.cgnctl(&ASK).await;
    assert!(none.error(1).contains("no cgn-router is attached"), "{none:?}");

    let mut router = Plane::dial(&house, "cgn-router").await;
    router.see(|_| true).await;
    let refusal = Err("there is no model `sim`; see /v1/models".to_owned());
    let (ran, _) = tokio::join!(house.cgnctl(&ASK), answer(&mut router, refusal));
    assert!(ran.error(1).contains("there is no model `sim`"), "{ran:?}");

    let slow = house.cgnctl(&ASK).await;
    assert!(slow.error(1).contains("did not answer within 1 s"), "{slow:?}");

    let hang_up = async move {
        router.hear().await;
        router.hear().await;
        drop(router);
    };
    let (gone, ()) = tokio::join!(house.cgnctl(&ASK), hang_up);
    assert!(gone.error(1).contains("the router hung up"), "{gone:?}");
}

#[tokio::test]
async fn other_weights_and_another_temperature_are_asked_with_the_question() {
    let house = House::start("").await;
    let mut router = Plane::dial(&house, "cgn-router").await;
    router.see(|_| true).await;
    let (_, (_, _, none)) =
        tokio::join!(house.cgnctl(&ASK), answer_steered(&mut router, Ok(explanation())));
    assert_eq!(none, (None, None));
    let typed = "kv=0,load=1,power=0,capacity=0";
    let args = [&ASK[..], &["--weights", typed, "--temperature", "0.5"]].concat();
    let (_, (_, _, asked)) =
        tokio::join!(house.cgnctl(&args), answer_steered(&mut router, Ok(explanation())));
    assert_eq!(asked, (typed.parse().ok(), Some(0.5)));
    let args = [&ASK[..], &["--temperature", "-1"]].concat();
    assert_eq!(house.cgnctl(&args).await.code, 2);
}
