//! The router beside nginx and its peers, before the same bare engine, in one run.
//!
//! `cargo bench --workspace --bench proxy [-- PART --seconds N --rounds N]`. Needs `nginx`, `wrk` and
//! `taskset`; `h2load` for the encrypted rows. Without a part it is the main table. Parts:
//!
//! * `--peers`: other gateways, from `$CGN_PEERS` (`cargo xtask bench -- --peers` installs them),
//! * `--long [--minutes N]`: 60,000-token prompts of which the last 1,000 tokens are new,
//! * `--memory`: idle connections and slow streams,
//! * `--soak [N] [--epoch-s N]`: N requests with churn of connections, tenants and models.
//!
//! Load generator and engine share core 0, the proxy under test has core 1. CPU time is what the kernel
//! accounts to the proxy's threads, over the requests or tokens completed. Each round measures every
//! proxy once, in turn; tables show medians over rounds. It prints; it asserts nothing.

mod churn;
mod client;
mod cpu;
mod encrypted;
mod engine;
mod house;
mod long;
mod memory;
mod nginx;
mod peers;
mod proxies;
mod rounds;
mod soak;
mod stage;
mod streams;
mod table;
mod wrk;

use std::process::ExitCode;
use std::time::Duration;

use rounds::Plan;
use stage::Stage;

const SOAK_REQUESTS_DEFAULT: u32 = 1_000_000;
const EPOCH_S_DEFAULT: u32 = 5;
const LONG_MINUTES_DEFAULT: u32 = 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, port] = arguments.as_slice()
        && first == "engine"
    {
        engine::run(port.parse().expect("the port of the bare engine"));
        return ExitCode::SUCCESS;
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), String> {
    let known = ["--bench", "--peers", "--long", "--memory", "--soak"];
    let with_number = ["--seconds", "--rounds", "--minutes", "--epoch-s"];
    for argument in arguments.iter().filter(|argument| argument.starts_with('-')) {
        if !known.iter().chain(&with_number).any(|flag| flag == argument) {
            let all = [known.as_slice(), with_number.as_slice()].concat().join(" ");
            return Err(format!("unknown flag `{argument}`; known are {all}"));
        }
    }
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let number = |flag: &str, default: u32| {
        let at = arguments.iter().position(|argument| argument == flag);
        at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(default).max(1)
    };
    let plan = Plan { seconds: number("--seconds", 5), rounds: number("--rounds", 3) as usize };
    stage::raise_file_limit()?;
    let stage = Stage::set_up()?;
    if !["--peers", "--long", "--memory", "--soak"].into_iter().any(has) {
        return main_table(&stage, plan);
    }
    if has("--peers") {
        print!("{}", peers::run(&stage, plan)?);
    }
    if has("--long") {
        print!("{}", long::run(&stage, number("--minutes", LONG_MINUTES_DEFAULT))?);
    }
    if has("--memory") {
        print!("{}", memory::run(&stage)?);
    }
    if has("--soak") {
        let requests = number("--soak", SOAK_REQUESTS_DEFAULT).into();
        let epoch = Duration::from_secs(number("--epoch-s", EPOCH_S_DEFAULT).max(5).into());
        print!("{}", soak::run(&stage, requests, epoch)?);
    }
    Ok(())
}

fn main_table(stage: &Stage, plan: Plan) -> Result<(), String> {
    let Plan { seconds, rounds } = plan;
    let answers = rounds::answers(stage, plan)?;
    print!("\nMedians of {rounds} rounds of {seconds} s; one core for the proxy.\n");
    print!("{}", table::answers(&answers));
    let streams = rounds::streamed(stage, plan)?;
    print!("{}", table::streams(&streams));
    if stage::has_program("h2load") {
        print!("{}", encrypted::run(stage, seconds, rounds)?);
    } else {
        println!("\nTLS and HTTP/2: skipped, `h2load` is missing: apt-get install nghttp2-client");
    }
    print!("{}", table::bars(&rounds::bars(&answers, &streams)));
    Ok(())
}
