//! The project's own commands: `cargo xtask up`, `down`, `status`, `test`, `bench`.
//!
//! Everything a person or a machine has to do around the code stands here, in Rust and without heavy
//! dependencies, so that the first command on a fresh clone compiles in seconds. It starts real
//! processes and leaves none behind; it decides nothing about routing or engines.
#![forbid(unsafe_code)]

mod arguments;
mod bench;
mod build;
mod cache;
mod checkout;
mod failure;
mod llama;
mod model;
mod node;
mod packages;
mod progress;
mod recipe;
mod step;
mod test;
mod vllm;

use std::process::ExitCode;

use arguments::Command;
use cache::Cache;
use failure::Failure;

const HELP: &str = "\
The project's own commands. Run them from anywhere inside the clone.

  cargo xtask up [--recipe NAME] [--replicas N] [--port-offset N]
                     install what is missing, build, fetch engine and model, bring the node up
  cargo xtask down   stop everything `up` started, even after a crash
  cargo xtask status what is running
  cargo xtask test [--full] [--only STAGE]
                     all tests; the stages are listed when STAGE is unknown; --full adds
                     those that take too long for every change (a real vLLM: 6 GB, minutes)
  cargo xtask bench [-- --peers | --long | --memory | --soak]
                     the router against nginx before the same engine; or other gateways,
                     long prompts, memory (docs/BENCHMARKS.md)
  cargo xtask help   this text

Environment
  CGN_CACHE          folder for engines, models and build output
                     (default $XDG_CACHE_HOME/cognitora, then ~/.cache/cognitora, then ./target/cache)
  CGN_RUN_DIR        folder of the running node (default: run/ in the cache folder)
  CARGO_TARGET_DIR   where cargo builds (default: target/ in the cache folder)
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments::parse(&arguments) {
        Ok(command) => run(command),
        Err(failure) => Err(failure),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    if command == Command::Help {
        print!("{HELP}");
        return Ok(());
    }
    let cache = Cache::open()?;
    if matches!(command, Command::Up(_) | Command::Test { .. } | Command::Bench { .. }) {
        checkout::claim(&cache)?;
    }
    match command {
        Command::Help => Ok(()),
        Command::Up(options) => node::up(&cache, &options),
        Command::Down => node::down(&cache),
        Command::Status => node::status(&cache),
        Command::Test { full, only } => test::run(&cache, full, only.as_deref()),
        Command::Bench { flags } => bench::run(&cache, &flags),
    }
}
