//! The main table's cases: every proxy once in each round, in turn.

use crate::proxies::Proxy;
use crate::stage::Stage;
use crate::table::{Answers, Bar, Streams, of};
use crate::{streams, wrk};

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of one measurement, without its warm-up.
    pub seconds: u32,
    /// Measurements of each proxy in each case.
    pub rounds: usize,
}

/// Answers in one piece: name, bytes of a prompt, connections.
pub const ANSWERS: [(&str, usize, u32); 3] = [
    ("1 KB, 64 connections", 1 << 10, 64),
    ("32 KB, 64 connections", 32 << 10, 64),
    ("1 KB, 1 connection", 1 << 10, 1),
];

/// Streams: name, connections, tokens, milliseconds between two.
pub const STREAMS: [(&str, usize, u64, u64); 3] = [
    ("64 tokens, 64 connections", 64, 64, 5),
    ("500 tokens, 64 connections", 64, 500, 5),
    ("2 tokens, 1 connection", 1, 2, 1),
];

/// Measures answers in one piece.
pub fn answers(stage: &Stage, plan: Plan) -> Result<Vec<Answers>, String> {
    let mut cases = Vec::new();
    for (case, prompt_bytes, connections) in ANSWERS {
        let mut rows: Vec<_> = Proxy::ALL.map(|p| (p.name().to_owned(), Vec::new())).into();
        for round in 0..plan.rounds {
            for (proxy, (name, runs)) in Proxy::ALL.into_iter().zip(&mut rows) {
                eprintln!("{case} · {name} · round {}/{}", round + 1, plan.rounds);
                let running = proxy.start(stage)?;
                let (fields, seconds) = (proxy.fields(), plan.seconds);
                let load = wrk::Load { prompt_bytes, connections, fields, seconds };
                runs.push(wrk::measure(stage, &running, load)?);
            }
        }
        cases.push(Answers { case, rows });
    }
    Ok(cases)
}

/// Measures streams.
pub fn streamed(stage: &Stage, plan: Plan) -> Result<Vec<Streams>, String> {
    let mut cases = Vec::new();
    for (case, connections, tokens, pause_ms) in STREAMS {
        let mut rows: Vec<_> = Proxy::ALL.map(|p| (p.name().to_owned(), Vec::new())).into();
        for round in 0..plan.rounds {
            for (proxy, (name, runs)) in Proxy::ALL.into_iter().zip(&mut rows) {
                eprintln!("{case} · {name} · round {}/{}", round + 1, plan.rounds);
                let running = proxy.start(stage)?;
                let (fields, seconds) = (proxy.fields(), plan.seconds);
                let load = streams::Load { connections, tokens, pause_ms, fields, seconds };
                runs.push(streams::measure(&running, load)?);
            }
        }
        cases.push(Streams { case, rows });
    }
    Ok(cases)
}

/// What was promised against nginx.
pub fn bars(answers: &[Answers], streams: &[Streams]) -> Vec<Bar> {
    let mut bars = Vec::new();
    let ours = [Proxy::Everything, Proxy::Deadline, Proxy::KvText];
    for (case, most) in answers.iter().zip([[1.0, 1.0, 1.5], [1.25, 1.25, 2.0]]) {
        let nginx = of(&case.rows, Proxy::Nginx.name(), |m| m.cpu_us);
        for (proxy, ratio_max) in ours.into_iter().zip(most) {
            let ratio = of(&case.rows, proxy.name(), |m| m.cpu_us) / nginx;
            let what = format!("CPU per request, {}, {}", case.case, proxy.name());
            bars.push(Bar { what, ratio, ratio_max });
        }
    }
    let all = Proxy::Everything.name();
    let against = |case: &Streams, figure: fn(&streams::Measured) -> f64| {
        of(&case.rows, all, figure) / of(&case.rows, Proxy::Nginx.name(), figure)
    };
    for case in streams.iter().take(2) {
        let what = format!("CPU per token, {}, {all}", case.case);
        bars.push(Bar { what, ratio: against(case, |m| m.cpu_us), ratio_max: 1.0 });
        let what = format!("p99 of a token's delay under load, {}, {all}", case.case);
        bars.push(Bar { what, ratio: against(case, |m| m.delay_p99_us), ratio_max: 1.0 });
    }
    if let Some(case) = streams.last() {
        let what = format!("first token at one connection, {all}");
        bars.push(Bar { what, ratio: against(case, |m| m.first_p50_us), ratio_max: 1.2 });
    }
    bars
}
