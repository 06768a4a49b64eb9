//! Before the first token another worker is asked, as often as the budget pays.

use super::ask::{assert_whole, chat, picks, raw, start, stream, workers};
use super::speaker::{Fault, Speaker, Turn};

/// Breakers that never open: here only the budget is looked at.
const NO_BREAKERS: &str = "[router.breaker]\nfailures_max = 64\nfailure_share_min = 1.0\n\
                           connect_failures_max = 1000\n\
                           [router.breaker.outlier]\nerror_share_max = 1.0\n";

#[test]
fn a_worker_that_dies_before_the_first_token_costs_a_retry_and_nothing_else() {
    for fault in [Fault::Close, Fault::Reset, Fault::Garbage] {
        let engines = Speaker::group(3, move |number, _| match number {
            0 | 2 => Turn::fails(fault, 0),
            _ => Turn::well(),
        });
        let router = start(NO_BREAKERS, &workers(&engines));
        for prompt in ["first", "second"] {
            assert_whole(&stream(&router, &chat(prompt)), prompt);
        }
        let asked: usize = engines.iter().map(|engine| engine.asked().len()).sum();
        assert_eq!(asked, 4, "{fault:?}");
        let retries = router.metric("cgn_router_retries_total{cause=\"engine_failed\"}");
        assert_eq!(retries, 2.0, "{fault:?}");
    }
}

#[test]
fn an_empty_budget_lets_the_client_hear_of_the_first_failure() {
    let engines = Speaker::group(2, |number, _| match number {
        0 => Turn::fails(Fault::Close, 0),
        _ => Turn::well(),
    });
    let keys = format!("[router.retry]\nratio = 0.0\nmin_per_s = 0\n{NO_BREAKERS}");
    let router = start(&keys, &workers(&engines));
    let response = String::from_utf8(raw(&router, super::ask::CHAT, &chat("x"))).unwrap();
    assert!(
        response.starts_with("HTTP/1.1 502 ") && response.contains("engine_failed"),
        "{response}"
    );
    assert_eq!(router.metric("cgn_router_retries_refused_total"), 1.0);
    assert_eq!(router.metric("cgn_router_retries_total{cause=\"engine_failed\"}"), 0.0);
    assert_whole(&stream(&router, &chat("y")), "y");
}

#[test]
fn a_budget_is_spent_and_then_no_load_is_added_to_a_failing_cluster() {
    let engines = Speaker::group(3, |_, _| Turn::fails(Fault::Close, 0));
    let keys = format!("[router.retry]\nratio = 0.0\nmin_per_s = 1\n{NO_BREAKERS}");
    let router = start(&keys, &workers(&engines));
    for i in 0..30 {
        let response = raw(&router, super::ask::CHAT, &chat(&format!("{i}")));
        assert!(response.starts_with(b"HTTP/1.1 502 "), "{}", String::from_utf8_lossy(&response));
    }
    let asked: usize = engines.iter().map(|engine| engine.asked().len()).sum();
    let picked: f64 = engines.iter().map(|engine| picks(&router, engine)).sum();
    // One attempt each, and one retry a second over ten seconds; a slow machine may see a few more.
    assert!((40..=50).contains(&asked), "{asked} attempts for 30 requests");
    assert!(picked >= 40.0);
    assert!(router.metric("cgn_router_retries_refused_total") >= 20.0);
}
