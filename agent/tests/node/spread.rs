//! Where prompts go on idle equal workers: distinct ones evenly, those with a long common prefix to
//! the worker that holds it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::house::House;
use crate::recipe::{FAST, ask, up, words};

const PROMPTS: usize = 300;
const FAIR: usize = 100;
const OFF_MAX: usize = 15;

/// Sends them one after the other, so that every worker is idle at each decision.
fn landed(house: &House, prompts: impl Iterator<Item = Value>) -> BTreeMap<String, usize> {
    let mut landed = BTreeMap::new();
    for prompt in prompts {
        let answer = house.chat(&prompt);
        assert_eq!(answer.status, 200, "{answer:?}");
        *landed.entry(answer.worker().to_owned()).or_default() += 1;
    }
    landed
}

fn is_even(landed: &BTreeMap<String, usize>) -> bool {
    landed.len() == 3 && landed.values().all(|count| count.abs_diff(FAIR) <= OFF_MAX)
}

#[test]
fn three_hundred_distinct_prompts_land_evenly_short_and_long() {
    let (house, _) = up(3, 4, FAST);
    let short = landed(&house, (0..PROMPTS).map(|number| ask(&format!("{number} is short"), 2)));
    println!("300 distinct short prompts: {short:?}");
    assert!(is_even(&short), "{short:?}");
    let long = |number| {
        let mut body = ask("And now?", 2);
        let system = json!({ "role": "system", "content": words(number, 150) });
        body["messages"].as_array_mut().unwrap().insert(0, system);
        body
    };
    let long = landed(&house, (0..PROMPTS).map(long));
    println!("300 distinct prompts with long system prompts: {long:?}");
    assert!(is_even(&long), "{long:?}");
}

#[test]
fn prompts_with_one_long_system_prompt_follow_it_and_others_do_not() {
    let (house, _) = up(3, 4, FAST);
    let system = words(0, 300);
    let with_system = |number: usize| {
        let mut body = ask(&format!("Question {number}"), 2);
        let system = json!({ "role": "system", "content": system });
        body["messages"].as_array_mut().unwrap().insert(0, system);
        body
    };
    let first = house.chat(&with_system(0));
    for number in 1..30 {
        let answer = house.chat(&with_system(number));
        assert_eq!(answer.worker(), first.worker(), "{answer:?}");
        let usage = &answer.json()["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert!(cached >= 300, "{usage}");
    }
    // The common beginning of the template is no reason to crowd.
    let others = landed(&house, (0..30).map(|number| ask(&format!("{number} is short"), 2)));
    assert!(!others.contains_key(first.worker()), "it had 30 already: {others:?}");
}
