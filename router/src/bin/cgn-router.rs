//! `cgn-router --config FILE`: starts the router and waits for SIGTERM or SIGINT. SIGHUP reads the file again.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use router::config::Config;
use router::server::Server;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The OpenAI gateway of a Cognitora node.
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
    let mut config = match Config::load(&arguments.config) {
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
    let server = match Server::start(config.clone()) {
        Ok(server) => server,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    // For people and for scripts that configured port 0.
    println!("listening on http://{} (admin http://{})", server.http, server.admin);
    let signal = loop {
        match signals.wait() {
            Ok(Signal::SIGHUP) => reload(&server, &mut config, &arguments.config),
            signal => break signal,
        }
    };
    tracing::info!(?signal, "draining");
    // A second signal ends the drain; whoever asks for the file again asks too late.
    std::thread::spawn(move || {
        while signals.wait() == Ok(Signal::SIGHUP) {}
        std::process::exit(1);
    });
    server.stop();
    ExitCode::SUCCESS
}

/// A file that is refused changes nothing.
fn reload(server: &Server, running: &mut Config, path: &std::path::Path) {
    let fresh = Config::load(path);
    if let Err(error) = &fresh {
        tracing::error!(%error, "the configuration was not taken; all stays as it was");
    }
    server.reload(running, fresh.as_ref().ok());
}
