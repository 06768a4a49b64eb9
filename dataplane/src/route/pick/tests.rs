//! Tests of the decision: single cases, and properties against its own naive form.

use proptest::prelude::*;

use super::*;

fn idle() -> Candidate {
    Candidate {
        excluded: None,
        held: Held::default(),
        queued_ms: 0.0,
        decoding: 0,
        inflight: 0,
        slots: 4,
        picked: 0,
        power_watts: None,
        cache_free: 1.0,
    }
}

fn holding(gpu_tokens: u64) -> Candidate {
    Candidate { held: Held { gpu_tokens, ..Held::default() }, ..idle() }
}

fn asked(prompt_tokens: u64) -> Request {
    Request { prompt_tokens, preferred: None }
}

fn pick(candidates: &[Candidate], prompt_tokens: u64) -> usize {
    worker(candidates, &asked(prompt_tokens), &Rules::default(), 7).unwrap().at
}

#[test]
fn equal_idle_workers_share_evenly() {
    let mut workers = [idle(); 3];
    for seed in 0..300 {
        let picked = worker(&workers, &asked(100), &Rules::default(), seed).unwrap();
        assert_eq!(picked.because, Because::Tie);
        workers[picked.at].picked += 1;
    }
    assert_eq!(workers.map(|w| w.picked), [100, 100, 100]);
}

#[test]
fn exact_ties_are_even_by_the_seed_alone() {
    let mut counts = [0u32; 4];
    for seed in 0..8_000 {
        let picked = worker(&[idle(); 4], &asked(100), &Rules::default(), seed).unwrap();
        counts[picked.at] += 1;
    }
    // Six standard deviations of a fair draw.
    assert!(counts.iter().all(|count| (1_770..=2_230).contains(count)), "{counts:?}");
}

#[test]
fn a_short_common_preamble_does_not_draw_a_crowd() {
    let workers = [Candidate { picked: 1, ..holding(32) }, idle()];
    assert_eq!(pick(&workers, 48), 1);
}

#[test]
fn a_long_prefix_wins_until_its_worker_queues() {
    let mut workers = [Candidate { picked: 9, inflight: 3, ..holding(1_800) }, idle()];
    assert_eq!(pick(&workers, 2_000), 0, "busy is still cheaper than a recompute");
    workers[0].inflight = 16;
    assert_eq!(pick(&workers, 2_000), 1, "a queue of four per slot is not");
}

/// Requests that share one long prefix and come faster than one worker computes their ends.
#[test]
fn a_hot_prefix_is_replicated_once_that_lowers_the_predicted_first_token() {
    let rules = Rules::default();
    let mut workers =
        [Candidate { slots: 256, ..holding(8_000) }, Candidate { slots: 256, ..idle() }];
    let mut first_elsewhere = None;
    for request in 0..100 {
        let at = worker(&workers, &asked(8_500), &rules, request).unwrap().at;
        let own_ms = rules.speeds.price(&workers[at].held, 8_500).compute_ms;
        let here_ms = workers[0].queued_ms + rules.speeds.price(&workers[0].held, 8_500).compute_ms;
        if at == 1 && first_elsewhere.is_none() {
            first_elsewhere = Some(request);
            assert!(own_ms < here_ms, "waiting would have taken {here_ms} ms, this takes {own_ms}");
            workers[1].held.gpu_tokens = 8_000;
        }
        workers[at].queued_ms += own_ms;
        workers[at].inflight += 1;
    }
    let replicated_at = first_elsewhere.unwrap();
    assert!(replicated_at > 5, "not at the first wait");
    let gap = workers[0].queued_ms - workers[1].queued_ms;
    assert!(gap.abs() < 60.0, "from then on both share the load: {gap}");
}

#[test]
fn power_decides_only_where_it_is_measured() {
    let watts = |watts, picked| Candidate { power_watts: Some(watts), picked, ..idle() };
    assert_eq!(pick(&[watts(700.0, 0), watts(200.0, 5)], 100), 1);
    let unread = idle();
    assert_eq!(pick(&[watts(700.0, 5), unread], 100), 1, "taken to draw as much, so a tie");
    assert_eq!(pick(&[watts(700.0, 0), watts(200.0, 5), unread], 100), 1);
}

#[test]
fn new_blocks_go_where_they_push_out_least() {
    let full = Candidate { cache_free: 0.0, ..idle() };
    assert_eq!(pick(&[full, Candidate { picked: 9, ..idle() }], 4_000), 1);
}

#[test]
fn a_session_stays_within_its_margin_and_not_beyond() {
    let rules = Rules { affinity: 0.5, ..Rules::default() };
    let request = Request { prompt_tokens: 4_000, preferred: Some(0) };
    let queued = |queued_ms| [Candidate { queued_ms, ..idle() }, idle()];
    let picked = |queued_ms| worker(&queued(queued_ms), &request, &rules, 1).unwrap();
    assert_eq!(picked(50.0), Picked { at: 0, because: Because::Session });
    assert_eq!(picked(500.0).at, 1);
    let gone = [Candidate { excluded: Some(Exclusion::Draining), ..idle() }, idle(), idle()];
    assert_ne!(worker(&gone, &request, &rules, 1).unwrap().at, 0);
}

#[test]
fn temperature_draws_the_cheaper_more_often_but_not_always() {
    let rules = Rules { temperature: 0.7, ..Rules::default() };
    let workers = [holding(4_000), idle()];
    let first = (0..2_000)
        .filter(|seed| worker(&workers, &asked(4_096), &rules, *seed).unwrap().at == 0)
        .count();
    // Softmax over a spread of 1 at 0.7: 1 / (1 + e^(−1 / 0.7)) = 0.807.
    assert!((1_540..=1_690).contains(&first), "{first}");
}

#[test]
fn excluded_workers_are_never_picked() {
    let excluded = Candidate { excluded: Some(Exclusion::Tried), ..idle() };
    assert_eq!(worker(&[excluded, excluded], &asked(1), &Rules::default(), 0), None);
    assert_eq!(worker(&[], &asked(1), &Rules::default(), 0), None);
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let held = (0u64..9_000, 0u64..3_000, 0u64..3_000, 0u64..3_000);
    let load = (0f64..5_000.0, 0u32..40, 0u32..40, 1u32..9, 0u64..99);
    let node = (prop::bool::weighted(0.2), prop::option::of(0f32..800.0), 0f64..1.0);
    (held, load, node).prop_map(|(held, load, node)| Candidate {
        excluded: node.0.then_some(Exclusion::Tried),
        held: Held {
            gpu_tokens: held.0,
            host_tokens: held.1,
            disk_tokens: held.2,
            peer_tokens: held.3,
        },
        queued_ms: load.0,
        decoding: load.1,
        inflight: load.1 + load.2,
        slots: load.3,
        picked: load.4,
        power_watts: node.1,
        cache_free: node.2,
    })
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::vec(any_candidate(), 1..12)
}

/// The decision as one would write it down: all costs, then all keys, sorted.
fn naive(candidates: &[Candidate], request: &Request, rules: &Rules, seed: u64) -> Option<usize> {
    let scale = Scale::of(candidates, request, rules);
    let mut all: Vec<(usize, f64)> = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.excluded.is_none())
        .map(|(at, candidate)| (at, scale.terms(candidate).cost()))
        .collect();
    all.sort_by(|a, b| a.1.total_cmp(&b.1));
    let best = all.first()?.1;
    all.retain(|(_, cost)| cost - best <= TIE_MS);
    all.sort_by_key(|(at, _)| {
        let candidate = &candidates[*at];
        let slots = u64::from(candidate.slots.max(1));
        let inflight = u64::from(candidate.inflight) * 1_000 / slots;
        (inflight, candidate.picked * 1_000 / slots, shuffle(seed ^ *at as u64))
    });
    Some(all[0].0)
}

proptest! {
    #[test]
    fn it_is_its_own_naive_form_and_the_same_each_time(
        candidates in any_candidates(), tokens in 0u64..20_000, seed: u64,
    ) {
        let rules = Rules::default();
        let picked = worker(&candidates, &asked(tokens), &rules, seed);
        prop_assert_eq!(picked, worker(&candidates, &asked(tokens), &rules, seed));
        let at = picked.map(|picked| picked.at);
        prop_assert_eq!(at, naive(&candidates, &asked(tokens), &rules, seed));
        prop_assert!(at.is_none_or(|at| candidates[at].excluded.is_none()));
    }

    #[test]
    fn any_temperature_and_affinity_pick_an_eligible_worker(
        candidates in any_candidates(), preferred in prop::option::of(0usize..14),
        temperature in 0f64..3.0, affinity in 0f64..2.0, seed: u64,
    ) {
        let rules = Rules { temperature, affinity, ..Rules::default() };
        let request = Request { prompt_tokens: 3_000, preferred };
        let picked = worker(&candidates, &request, &rules, seed);
        prop_assert_eq!(picked, worker(&candidates, &request, &rules, seed));
        prop_assert_eq!(picked.is_some(), candidates.iter().any(|c| c.excluded.is_none()));
        prop_assert!(picked.is_none_or(|picked| candidates[picked.at].excluded.is_none()));
    }

    #[test]
    fn a_picked_worker_stays_picked_when_it_holds_more(
        mut candidates in any_candidates(), tokens in 0u64..20_000, more in 0u64..5_000, seed: u64,
    ) {
        let rules = Rules::default();
        if let Some(picked) = worker(&candidates, &asked(tokens), &rules, seed) {
            candidates[picked.at].held.gpu_tokens += more;
            let again = worker(&candidates, &asked(tokens), &rules, seed);
            prop_assert_eq!(again.map(|picked| picked.at), Some(picked.at));
        }
    }

    #[test]
    fn more_work_queued_never_makes_a_worker_cheaper_or_picked(
        mut candidates in any_candidates(), tokens in 0u64..20_000, which in 0usize..12,
        more_ms in 0f64..9_000.0, seed: u64,
    ) {
        let rules = Rules::default();
        let which = which % candidates.len();
        let cost = |candidates: &[Candidate]| {
            Scale::of(candidates, &asked(tokens), &rules).terms(&candidates[which]).cost()
        };
        let (before, cost_before) =
            (worker(&candidates, &asked(tokens), &rules, seed), cost(&candidates));
        candidates[which].queued_ms += more_ms;
        prop_assert!(cost(&candidates) >= cost_before);
        let after = worker(&candidates, &asked(tokens), &rules, seed);
        if before.is_some_and(|picked| picked.at != which) {
            prop_assert_ne!(after.map(|picked| picked.at), Some(which));
        }
    }
}
