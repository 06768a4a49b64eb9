//! `cgn-sim-engine`: the simulated engine as a process. See [`agent::sim`].
//!
//! Prints `listening on http://HOST:PORT` on stdout once it listens; logs go to stderr. SIGTERM and
//! SIGINT end it at once with code 0, streams and all, as the real engines' defaults do. Exit
//! codes: 1 it could not start, 2 wrong flags, 86 the end that `--fail-after` asked for.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use agent::sim::options::{Options, Settings};
use agent::sim::serve::Listening;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    dataplane::crash::abort_on_panic();
    let options = Options::parse();
    let settings = match options.settings() {
        Ok(settings) => settings,
        Err(error) => return fail(&error, 2),
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no runtime: {error}; raise the process limits"), 1),
    };
    runtime.block_on(run(settings))
}

async fn run(settings: Settings) -> ExitCode {
    // Before the line on stdout: whoever reads it may send a signal at once.
    let (mut term, mut int) =
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(term), Ok(int)) => (term, int),
            (Err(error), _) | (_, Err(error)) => {
                return fail(&format!("no signal handler: {error}; try again"), 1);
            }
        };
    let listening = match Listening::start(settings).await {
        Ok(listening) => listening,
        Err(error) => return fail(&error, 1),
    };
    let said = listening.address().and_then(|address| {
        let mut stdout = std::io::stdout();
        writeln!(stdout, "listening on http://{address}")?;
        stdout.flush()
    });
    if let Err(error) = said {
        return fail(&format!("stdout is not writable: {error}; keep it open"), 1);
    }
    tokio::select! {
        never = listening.serve() => match never {},
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("ended by a signal");
    ExitCode::SUCCESS
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(code)
}
