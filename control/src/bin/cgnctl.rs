//! `cgnctl`: the command line of Cognitora. All of it is in `control::cli`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use control::cli::Cli;

fn main() -> ExitCode {
    dataplane::crash::abort_on_panic();
    let cli = Cli::parse();
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli.run()),
        Err(error) => {
            eprintln!("error: the system refuses what every process needs: {error}; see ulimit -a");
            ExitCode::FAILURE
        }
    }
}
