//! A worker that lacks a prompt's beginning is given it first: a router and an agent that can, will not, or is
//! gone.

use dataplane::digest::{Unit, of_tokens, seed};
use dataplane::feed::{Load, ToAgent, ToRouter, Warm};

use super::client::post;
use super::engine::{Engine, json};
use super::kv_events::{A, Agent, B, House, tokens};

/// As both sides are by default.
const BLOCK_TOKENS: u32 = 16;
const ANSWER: &str = r#"{"usage":{"prompt_tokens":600,"completion_tokens":1,"total_tokens":601}}"#;

/// A house whose agent says that both workers can be warmed.
fn house(keys: &str) -> (House, Agent) {
    let engine = || Engine::fixed(json(ANSWER));
    let house = House::around([engine(), engine()], keys);
    let mut agent = Agent::accept(&house.listener);
    say_warmable(&mut agent, BLOCK_TOKENS);
    heard(&house, &mut agent, 1);
    (house, agent)
}

fn say_warmable(agent: &mut Agent, block_tokens: u32) {
    for worker in [A, B] {
        agent.say(&ToRouter::Warmable { worker: worker.to_owned(), block_tokens });
    }
}

/// Waits until the router has taken what was said: a later word of the same line shows in a metric.
fn heard(house: &House, agent: &mut Agent, inflight: u32) {
    let load = Load { inflight, ..Load::default() };
    agent.say(&ToRouter::Others { worker: B.to_owned(), load, routers: 1 });
    let metric = "cgn_router_worker_inflight_others_requests{worker=\"n/b/0\"}";
    house.wait(metric, f64::from(inflight));
}

/// The next wish; what the router tells of its load is none.
fn wish(agent: &mut Agent) -> Warm {
    loop {
        match agent.hear_all() {
            ToAgent::Warm(wish) => return wish,
            ToAgent::Load { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

fn warms(house: &House, result: &str) -> f64 {
    house.router.metric(&format!("cgn_router_warms_total{{result=\"{result}\"}}"))
}

fn all_warms(house: &House) -> f64 {
    ["warmed", "nothing", "late", "given_up", "busy"]
        .map(|result| warms(house, result))
        .iter()
        .sum()
}

fn asked(house: &House) -> usize {
    house.engines.iter().map(|engine| engine.asked().len()).sum()
}

#[test]
fn a_prompt_is_sent_when_its_worker_was_given_what_it_lacks() {
    let (house, mut agent) = house("");
    let prompt = tokens(1, 600);
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| house.ask(&prompt));
        let wish = wish(&mut agent);
        let digests = of_tokens(&seed(Unit::Tokens, "m", "", ""), &prompt, 16);
        assert_eq!(wish.digests, digests);
        assert_eq!(wish.blocks_min, 16, "256 tokens");
        assert!((1..=1_000).contains(&wish.deadline_ms), "{wish:?}");
        assert_eq!(asked(&house), 0, "the engine was asked before");
        let (worker, ticket) = (wish.worker.clone(), wish.ticket);
        // Who was not asked for it is not believed.
        agent.say(&ToRouter::Warmed { worker: worker.clone(), ticket: ticket + 1, tokens: 16 });
        agent.say(&ToRouter::Warmed { worker: worker.clone(), ticket, tokens: 480 });
        let (answered_by, prefix_tokens) = answer.join().unwrap();
        assert_eq!(answered_by, worker);
        assert_eq!(prefix_tokens, 480);
    });
    assert_eq!((warms(&house, "warmed"), asked(&house)), (1.0, 1));
    assert_eq!(house.router.metric("cgn_router_warm_tokens_total"), 480.0);
    // Its worker holds it now, as far as anybody knows; and short prompts are not worth it.
    house.ask(&prompt);
    house.ask(&tokens(5_000, 200));
    assert_eq!(all_warms(&house), 1.0);
}

#[test]
fn a_prompt_is_sent_without_when_its_agent_has_nothing_says_nothing_or_leaves() {
    let (house, mut agent) = house("[router.kv]\nwarm_ms_max = 300\n");
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| house.ask(&tokens(1, 600)));
        let Warm { worker, ticket, .. } = wish(&mut agent);
        agent.say(&ToRouter::Warmed { worker, ticket, tokens: 0 });
        assert_eq!(answer.join().unwrap().1, 0);
        assert_eq!(warms(&house, "nothing"), 1.0);

        let answer = scope.spawn(|| house.ask(&tokens(10_000, 600)));
        wish(&mut agent);
        answer.join().unwrap();
        assert_eq!(warms(&house, "late"), 1.0);

        let answer = scope.spawn(|| house.ask(&tokens(20_000, 600)));
        wish(&mut agent);
        drop(agent);
        answer.join().unwrap();
        assert_eq!(warms(&house, "nothing"), 2.0);
    });
    assert_eq!(asked(&house), 3);
    // Nobody is there to be asked: it is known at once.
    house.ask(&tokens(30_000, 600));
    assert_eq!(warms(&house, "nothing"), 3.0);
}

#[test]
fn nobody_is_asked_where_it_is_off() {
    let (house, _agent) = house("[router.kv]\nwarm_ms_max = 0\n");
    house.ask(&tokens(1, 600));
    assert_eq!(all_warms(&house), 0.0);
}

#[test]
fn nobody_is_asked_who_cuts_otherwise() {
    let (house, mut agent) = house("");
    say_warmable(&mut agent, 2 * BLOCK_TOKENS);
    heard(&house, &mut agent, 2);
    house.ask(&tokens(1, 600));
    assert_eq!(all_warms(&house), 0.0);
}

#[test]
fn a_client_that_leaves_while_its_worker_is_warmed_leaves_nothing_behind() {
    let (house, mut agent) = house("[router.kv]\nwarm_ms_max = 20000\n");
    let body = format!(r#"{{"model":"m","prompt":{:?},"max_tokens":1}}"#, tokens(1, 600));
    let mut client = house.router.client();
    client.send(post("/v1/completions", "", &body));
    let Warm { worker, ticket, .. } = wish(&mut agent);
    drop(client);
    house.wait("cgn_router_clients_gone_total", 1.0);
    assert_eq!(warms(&house, "given_up"), 1.0);
    // The answer is for nobody, and the line goes on.
    agent.say(&ToRouter::Warmed { worker, ticket, tokens: 480 });
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| house.ask(&tokens(40_000, 600)));
        let Warm { worker, ticket, .. } = wish(&mut agent);
        agent.say(&ToRouter::Warmed { worker, ticket, tokens: 320 });
        assert_eq!(answer.join().unwrap().1, 320);
    });
    assert_eq!(asked(&house), 1);
    house.wait("cgn_router_worker_inflight_requests", 0.0);
}
