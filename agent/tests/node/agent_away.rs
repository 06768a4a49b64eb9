//! The agent killed: its engines go with it, the router says so, and a new agent brings all back.

use crate::client::Answer;
use crate::process::{eventually, is_running};
use crate::recipe::{FAST, ask, up};

#[test]
fn engines_end_with_their_agent_and_come_back_with_the_next() {
    let (mut house, engines) = up(2, 4, FAST);
    assert_eq!(house.chat(&ask("hello", 2)).status, 200);
    house.agent.as_mut().unwrap().crash();
    house.agent = None;
    eventually("the engines are gone", || !engines.iter().any(|engine| is_running(engine.pid)));

    // The first one may be who finds out, by failing on every worker.
    let first = house.chat(&ask("hello", 2));
    if first.status != 503 {
        is_refusal(&first, 502, "engine_failed");
    }
    is_refusal(&house.chat(&ask("hello", 2)), 503, "no_engine_ready");
    let ready = house.get("/readyz").unwrap();
    assert_eq!(ready.status, 503, "{ready:?}");

    house.agent = Some(house.process("cgn-agent"));
    house.ready();
    eventually("an answer", || house.chat(&ask("hello", 2)).status == 200);
    eventually("both are back", || {
        let now = house.engines();
        let is_back = |old: &crate::house::Engine| {
            now.iter().any(|new| {
                new.worker == old.worker && new.state == "ready" && new.epoch > old.epoch
            })
        };
        engines.iter().all(is_back)
    });
}

fn is_refusal(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    let retry_after: Option<u32> = answer.field("retry-after").and_then(|text| text.parse().ok());
    assert!(retry_after.is_some_and(|seconds| seconds > 0), "{answer:?}");
    let error = &answer.json()["error"];
    assert_eq!((&error["type"], &error["code"]), (&"server_error".into(), &code.into()), "{error}");
    assert!(error["message"].is_string() && error.get("param").is_some(), "{error}");
}
