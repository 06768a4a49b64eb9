//! `cgn-control --config FILE`: the control process of a node.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use control::api::control_server::ControlServer;
use control::clock::Clock;
use control::config::Control;
use control::keeper::Keeper;
use control::plane::{Planes, listen::Socket, listen::SocketError};
use control::server::ControlPort;
use control::store::{Store, StoreError};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

/// How often time passes for the cluster's state.
const TICK: Duration = Duration::from_secs(1);
/// A connection whose other side is gone or stuck is found out by a ping in this rhythm.
const PING_EVERY: Duration = Duration::from_secs(10);
/// Calls open on one connection.
const CALLS_PER_CONNECTION_MAX: u32 = 128;
/// How long calls may still run after a signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// The control process of a node: desired and observed state, and snapshots for the data planes.
#[derive(Parser)]
#[command(name = "cgn-control", version)]
struct Args {
    /// TOML file with a [control] section.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{address} is taken ({source}); stop the other process or change [control] listen")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("the system refuses what every process needs: {0}; check its limits (ulimit -a)")]
    System(#[from] std::io::Error),
    #[error("the control port broke: {0}; start it again")]
    Serve(#[from] tonic::transport::Error),
}

fn main() -> ExitCode {
    dataplane::crash::abort_on_panic();
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let config = match Control::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ran = runtime.map_err(StartError::from).and_then(|runtime| runtime.block_on(run(&config)));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: &Control) -> Result<(), StartError> {
    let address = config.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Listen { address, source })?;
    let store = Store::open(&config.data_dir)?;
    let socket = Socket::bind(&config.socket)?;
    let keeper = Arc::new(Keeper::new(config.limits(), store, Clock::start())?);
    let planes = Arc::new(Planes::new(Duration::from_secs(config.explain_timeout_s)));
    let (stop, stopping) = watch::channel(false);

    let port = ControlPort {
        keeper: Arc::clone(&keeper),
        planes: Arc::clone(&planes),
        stopping: stopping.clone(),
    };
    let mut stopped = stopping;
    let serve = Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .add_service(ControlServer::new(port))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            async move { drop(stopped.wait_for(|stop| *stop).await) },
        );
    let data_planes = socket.serve(planes, keeper.snapshots(), config.planes_max);
    info!(listen = %address, socket = %config.socket.display(), "control is up");

    tokio::pin!(serve);
    tokio::select! {
        served = &mut serve => return Ok(served?),
        () = data_planes => {}
        () = tick(&keeper) => {}
        signalled = end_signal() => signalled?,
    }
    stop.send_replace(true);
    match tokio::time::timeout(STOP_TIMEOUT, serve).await {
        Ok(served) => Ok(served?),
        Err(_) => {
            warn!("stopping with calls still open");
            Ok(())
        }
    }
}

async fn tick(keeper: &Keeper) {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        keeper.tick();
    }
}

async fn end_signal() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => info!("stopping: SIGTERM"),
        _ = interrupt.recv() => info!("stopping: SIGINT"),
    }
    Ok(())
}
