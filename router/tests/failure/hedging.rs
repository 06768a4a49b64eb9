//! A late first token may be asked of a second worker: only where that is switched on, and paid for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use super::ask::{CHAT, assert_whole, chat, eventually, raw, start, stream, workers};
use super::process::Router;
use super::speaker::{Fault, Speaker, Turn};

/// What the router must have seen before it knows what is late.
const SAMPLES: usize = 64;

/// Two engines that are quick until `late` is set: then the first request of all is never answered, or
/// fails after a while.
struct Pair {
    engines: Vec<Speaker>,
    late: Arc<AtomicBool>,
}

impl Pair {
    fn new(first: Turn) -> Pair {
        let (late, since) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
        let is_late = Arc::clone(&late);
        let engines = Speaker::group(2, move |_, _| {
            match is_late.load(SeqCst) && since.fetch_add(1, SeqCst) == 0 {
                true => first,
                false => Turn::well(),
            }
        });
        Pair { engines, late }
    }

    fn router(&self, hedge: &str) -> Router {
        let router = start(hedge, &workers(&self.engines));
        for i in 0..SAMPLES + 6 {
            let prompt = format!("{i}");
            assert_whole(&stream(&router, &chat(&prompt)), &prompt);
        }
        self.late.store(true, SeqCst);
        router
    }

    fn asked(&self) -> usize {
        self.engines.iter().map(|engine| engine.asked().len()).sum()
    }

    fn cancelled(&self) -> usize {
        self.engines.iter().map(|engine| engine.cancelled().len()).sum()
    }
}

fn hedges(router: &Router, result: &str) -> f64 {
    router.metric(&format!("cgn_router_hedges_total{{result=\"{result}\"}}"))
}

const ON: &str = "[router.hedge]\nenabled = true\nbudget_ratio = 1.0\n";

#[test]
fn the_second_wins_and_the_first_is_let_go() {
    let pair = Pair::new(Turn::fails(Fault::Stall, 0));
    let router = pair.router(ON);
    let before = pair.asked();
    assert_whole(&stream(&router, &chat("late")), "late");
    assert_eq!((pair.asked() - before, hedges(&router, "won")), (2, 1.0));
    eventually("the loser's connection is closed", || pair.cancelled() == 1);
}

#[test]
fn without_budget_nobody_is_asked_twice() {
    let slow = Turn { pause: Duration::from_millis(300), ..Turn::well() };
    let pair = Pair::new(slow);
    let router = pair.router("[router.hedge]\nenabled = true\nbudget_ratio = 0.0\n");
    let before = pair.asked();
    assert_whole(&stream(&router, &chat("late")), "late");
    assert_eq!(pair.asked() - before, 1);
}

#[test]
fn it_is_off_by_default() {
    let slow = Turn { pause: Duration::from_millis(300), ..Turn::well() };
    let pair = Pair::new(slow);
    let router = pair.router("");
    let before = pair.asked();
    assert_whole(&stream(&router, &chat("late")), "late");
    assert_eq!(pair.asked() - before, 1);
    assert_eq!((hedges(&router, "won"), hedges(&router, "lost")), (0.0, 0.0));
}

/// One of both fails: the other one is still under watch.
#[test]
fn a_rival_that_fails_leaves_the_first_under_its_time_limit() {
    let (late, since) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
    let is_late = Arc::clone(&late);
    let engines = Speaker::group(2, move |_, _| {
        match is_late.load(SeqCst).then(|| since.fetch_add(1, SeqCst)) {
            Some(0) => Turn::fails(Fault::Stall, 0),
            Some(1) => Turn::fails(Fault::Garbage, 0),
            _ => Turn::well(),
        }
    });
    let pair = Pair { engines, late };
    let router = pair.router(&format!("{ON}[router.limits]\nfirst_byte_s_max = 1\n"));
    let answer = String::from_utf8(raw(&router, CHAT, &chat("late"))).unwrap();
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
}
