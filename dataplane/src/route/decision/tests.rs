//! A decision comes back from its line as it was, whatever was in it, and decides the same again.

use proptest::prelude::*;

use super::super::pick::{Because, Exclusion};
use super::super::speeds::{Held, Speeds};
use super::*;

/// Any bits: subnormal, huge, -0.0, infinite, no number at all.
fn any_f64() -> impl Strategy<Value = f64> {
    prop_oneof![any::<u64>().prop_map(f64::from_bits), 0f64..1e4, Just(-0.0), Just(5e-324)]
}

fn excluded() -> impl Strategy<Value = Option<Exclusion>> {
    use Exclusion::{BreakerOpen, Draining, Ejected, NotCapable, NotReady, Tried};
    let all = vec![NotCapable, NotReady, Draining, Tried, BreakerOpen, Ejected];
    prop_oneof![2 => Just(None), 1 => prop::sample::select(all).prop_map(Some)]
}

fn candidate() -> impl Strategy<Value = Candidate> {
    let held = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
        |(gpu_tokens, host_tokens, disk_tokens, peer_tokens)| Held {
            gpu_tokens,
            host_tokens,
            disk_tokens,
            peer_tokens,
        },
    );
    let counts = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>());
    let watts = prop::option::of(any::<u32>().prop_map(f32::from_bits));
    (excluded(), held, any_f64(), counts, watts, any_f64()).prop_map(
        |(excluded, held, queued_ms, counts, power_watts, cache_free)| {
            let (decoding, inflight, slots, picked) = counts;
            Candidate {
                excluded,
                held,
                queued_ms,
                decoding,
                inflight,
                slots,
                picked,
                power_watts,
                cache_free,
            }
        },
    )
}

fn rules() -> impl Strategy<Value = Rules> {
    let speeds = prop::array::uniform7(any_f64()).prop_map(|all| {
        let [
            start_ms,
            token_ms,
            pair_ms,
            host_token_ms,
            disk_token_ms,
            peer_token_ms,
            decode_share,
        ] = all;
        Speeds {
            start_ms,
            token_ms,
            pair_ms,
            host_token_ms,
            disk_token_ms,
            peer_token_ms,
            decode_share,
        }
    });
    (prop::array::uniform6(any_f64()), speeds).prop_map(|(all, speeds)| {
        let [kv, load, power, capacity, temperature, affinity] = all;
        let weights = ScoreWeights { kv, load, power, capacity };
        Rules { weights, speeds, temperature, affinity }
    })
}

prop_compose! {
    fn decision()(
        states in prop::collection::vec(candidate(), 1..20),
        rules in rules(),
        (prompt_tokens, seed, time_unix_ms) in any::<(u64, u64, u64)>(),
        preferred in prop::option::of(any::<prop::sample::Index>()),
        (worker, model) in ("\\PC{0,9}", "\\PC{0,9}"),
        tried: u32,
    ) -> Decision {
        let request = Request {
            prompt_tokens, preferred: preferred.map(|at| at.index(states.len())),
        };
        let picked = pick::worker(&states, &request, &rules, seed);
        let seen = |(at, state)| Seen {
            worker: format!("{worker}/{at}"), source: "events".to_owned(), state,
        };
        Decision {
            version: VERSION, time_unix_ms, request_id: "r\"\n".to_owned(), trace_id: "0f".to_owned(),
            model, tried, rules_from: RulesFrom::Request, request, rules, seed,
            candidates: states.into_iter().enumerate().map(seen).collect(), picked,
        }
    }
}

/// Everything of a decision with floats as their bits, so that NaN equals itself and 0.0 not -0.0.
fn bits(one: &Decision) -> (String, Vec<u64>) {
    let mut bits = Vec::new();
    for seen in &one.candidates {
        let state = &seen.state;
        bits.extend([state.queued_ms, state.cache_free].map(f64::to_bits));
        bits.extend(state.power_watts.map(|watts| u64::from(watts.to_bits())));
    }
    let Rules { weights, speeds, temperature, affinity } = one.rules;
    let ScoreWeights { kv, load, power, capacity } = weights;
    bits.extend([kv, load, power, capacity, temperature, affinity].map(f64::to_bits));
    let Speeds { start_ms, token_ms, pair_ms, .. } = speeds;
    let Speeds { host_token_ms, disk_token_ms, peer_token_ms, decode_share, .. } = speeds;
    bits.extend([start_ms, token_ms, pair_ms, decode_share].map(f64::to_bits));
    bits.extend([host_token_ms, disk_token_ms, peer_token_ms].map(f64::to_bits));
    (format!("{one:?}"), bits)
}

proptest! {
    #[test]
    fn a_line_comes_back_as_it_was_and_decides_the_same(one in decision()) {
        let line = one.to_line().unwrap();
        prop_assert!(!line.contains(&b'\n'));
        let back = Decision::from_line(&line).unwrap();
        prop_assert_eq!(bits(&back), bits(&one));
        prop_assert_eq!(back.again(None), one.picked);
        prop_assert_eq!(back.to_line().unwrap(), line);
    }

    #[test]
    fn a_torn_line_is_refused(one in decision(), at: prop::sample::Index) {
        let line = one.to_line().unwrap();
        prop_assert!(Decision::from_line(&line[..at.index(line.len())]).is_err());
    }
}

fn plain(count: usize) -> Decision {
    let state = Candidate {
        excluded: None,
        held: Held::default(),
        queued_ms: 0.1,
        decoding: 0,
        inflight: 0,
        slots: 4,
        picked: 0,
        power_watts: Some(0.1),
        cache_free: 1.0,
    };
    let seen = |at| Seen { worker: format!("w{at}"), source: "learned".to_owned(), state };
    let mut one = Decision {
        version: VERSION,
        time_unix_ms: 1,
        request_id: "r".to_owned(),
        trace_id: "t".to_owned(),
        model: "m".to_owned(),
        tried: 0,
        rules_from: RulesFrom::Configuration,
        request: Request { prompt_tokens: 100, preferred: None },
        rules: Rules::default(),
        seed: 7,
        candidates: (0..count).map(seen).collect(),
        picked: None,
    };
    one.picked = one.again(None);
    one
}

#[test]
fn what_a_line_cannot_be_is_said() {
    let text = String::from_utf8(plain(2).to_line().unwrap()).unwrap();
    let refused = |text: &str| Decision::from_line(text.as_bytes()).unwrap_err().to_string();
    let other = text.replace("\"version\":1", "\"version\":2,\"new\":3");
    assert_eq!(refused(&other), "of version 2, this is for version 1");
    let unknown = text.replace("\"version\":1", "\"version\":1,\"new\":3");
    assert!(refused(&unknown).contains("unknown field `new`"), "{}", refused(&unknown));
    let picked = format!("\"at\":{}", plain(2).picked.unwrap().at);
    assert_eq!(refused(&text.replace(&picked, "\"at\":2")), "it names candidate 2 of 2");
    let preferred = text.replace("\"preferred\":null", "\"preferred\":9");
    assert_eq!(refused(&preferred), "it names candidate 9 of 2");
    assert!(refused("").starts_with("not a decision"));
    assert!(refused(&text.replace("0.1", "null")).contains("expected a number"));
}

#[test]
fn other_rules_may_pick_another_worker() {
    let mut one = plain(2);
    one.candidates[0].state.queued_ms = 1_000.0;
    one.candidates[0].state.held.gpu_tokens = 90;
    one.picked = one.again(None);
    assert_eq!(one.worker(one.picked), Some("w1"));
    let weights = ScoreWeights { kv: 1.0, load: 0.0, power: 0.0, capacity: 0.0 };
    let again = one.again(Some(&Rules { weights, ..one.rules }));
    assert_eq!(again, Some(Picked { at: 0, because: Because::Cheapest }));
    assert_eq!(one.worker(again), Some("w0"));
    assert_eq!(one.worker(None), None);
}
