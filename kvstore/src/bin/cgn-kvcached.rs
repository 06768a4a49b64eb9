//! `cgn-kvcached --config FILE`: starts the KV daemon and waits for SIGTERM or SIGINT; SIGHUP
//! has it read again what may change.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kvstore::config::Config;
use kvstore::server::Server;
use nix::sys::signal::{SigSet, Signal};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps KV blocks one hop away from the engines of a Cognitora node.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(long)]
    config: PathBuf,
    /// Checks the configuration and ends.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    dataplane::crash::abort_on_panic();
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    if arguments.check {
        println!("{}: ok", arguments.config.display());
        return ExitCode::SUCCESS;
    }
    // Blocked before any thread starts, so that every thread inherits it and only `wait` sees them.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    if let Err(error) = signals.thread_block() {
        eprintln!("error: cannot block signals: {error}");
        return ExitCode::FAILURE;
    }
    let server = match Server::start(config) {
        Ok(server) => server,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    // For people and for scripts that configured port 0. In one write: who reads only the first line may
    // close the pipe then.
    let resp = server.resp.map(|resp| format!("resp {resp}\n")).unwrap_or_default();
    let quic = server.quic().map(|quic| format!("quic {quic}\n")).unwrap_or_default();
    print!("metrics http://{}/metrics\n{resp}{quic}", server.metrics);
    let signal = loop {
        match signals.wait() {
            Ok(Signal::SIGHUP) => server.reload(&arguments.config),
            other => break other,
        }
    };
    tracing::info!(?signal, "stopping");
    // A second signal ends the wait for what is being written.
    std::thread::spawn(move || {
        while signals.wait() == Ok(Signal::SIGHUP) {}
        std::process::exit(1);
    });
    server.stop();
    ExitCode::SUCCESS
}
