//! `cgn-agent --config FILE`: supervises the engines of its node until told to stop.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Starts, watches and ends the engines of this node, as control desires
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Configuration file (TOML)
    #[arg(long)]
    config: PathBuf,
}

fn main() -> ExitCode {
    dataplane::crash::abort_on_panic();
    let args = Args::parse();
    let config = match agent::config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    // Engines die with the thread that spawned them, so that thread is this one.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}; the limits of this user (ulimit -a) are too tight");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(agent::agent::run(config, args.config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
