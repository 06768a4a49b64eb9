//! The router beside nginx, as a plain reverse proxy before the same bare engine, in one run.
//!
//! `cargo bench -p router --bench proxy [-- --seconds N --rounds N]`. Needs `nginx`, `wrk` and
//! `taskset`. Load generator and engine share core 0, the proxy under test has core 1. CPU time is
//! what the kernel accounts to the proxy's threads (`/proc/PID/task/*/schedstat`), over the requests
//! completed. Each round measures every proxy once, in turn; the table shows medians over rounds.
//! It prints; it asserts nothing.

mod cpu;
mod engine;
mod load;
mod proxies;
mod table;

use std::process::ExitCode;

use load::Case;
use proxies::{Proxy, Stage};
use table::Row;

struct Plan {
    seconds: u32,
    rounds: usize,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, port] = arguments.as_slice()
        && first == "engine"
    {
        engine::run(port.parse().expect("the port of the bare engine"));
        return ExitCode::SUCCESS;
    }
    let number = |flag: &str, default: u32| {
        let at = arguments.iter().position(|argument| argument == flag);
        at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    let plan = Plan { seconds: number("--seconds", 5), rounds: number("--rounds", 3) as usize };
    match run(&plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(plan: &Plan) -> Result<(), String> {
    let stage = Stage::set_up()?;
    let mut rows = Vec::new();
    for case in Case::ALL {
        let mut proxies: Vec<_> = Proxy::ALL.map(|proxy| (proxy.name(), Vec::new())).into();
        for round in 0..plan.rounds {
            for (at, proxy) in Proxy::ALL.into_iter().enumerate() {
                eprintln!(
                    "{} · {} · round {}/{}",
                    case.name(),
                    proxy.name(),
                    round + 1,
                    plan.rounds
                );
                let measured = load::measure(&stage, &stage.start(proxy)?, case, plan.seconds)?;
                proxies[at].1.push(measured);
            }
        }
        rows.push(Row { case, proxies });
    }
    print!("{}", table::render(&rows, plan.seconds, plan.rounds));
    Ok(())
}
