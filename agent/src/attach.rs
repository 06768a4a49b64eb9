//! The agent's line to control: reports up, desired state down, over one gRPC stream.
//!
//! Control may be away for ever: this task only dials again, with backoff, and decides nothing. A
//! report goes up on each change and every [`REPORT_INTERVAL`]; where control does not keep up, only
//! the newest is kept.

use std::time::Duration;

use control::api::control_client::ControlClient;
use control::api::{AgentReport, DesiredState};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::random::Jitter;

/// At least this often a report goes up, so that control knows the agent lives.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent connection is asked for a sign of life this often, and given up this long after.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const DIAL_PAUSE_INITIAL: Duration = Duration::from_millis(250);
const DIAL_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Reports between the agent and the transport. The newest state is what counts.
const REPORTS_QUEUED_MAX: usize = 1;

/// What comes from control.
#[derive(Debug)]
pub enum FromControl {
    /// The stream stands.
    Connected,
    /// What to run from now on.
    Desired(DesiredState),
    /// The stream ended; it will be dialled again.
    Disconnected(String),
}

/// The address of control, checked.
///
/// # Errors
/// When it is no URL.
pub fn endpoint(url: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(url.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// Keeps the line up for as long as `events` has a receiver.
pub async fn keep_attached(
    endpoint: Endpoint,
    mut reports: watch::Receiver<AgentReport>,
    events: mpsc::Sender<FromControl>,
    mut jitter: Jitter,
) {
    let mut pause = DIAL_PAUSE_INITIAL;
    while !events.is_closed() {
        let why = match endpoint.connect().await {
            Ok(channel) => {
                let mut told = false;
                let ended = session(channel, &mut reports, &events, &mut told).await;
                if told {
                    pause = DIAL_PAUSE_INITIAL;
                }
                match ended {
                    Ok(()) => "control closed the stream".to_owned(),
                    Err(status) => status.message().to_owned(),
                }
            }
            Err(error) => chain(&error),
        };
        if events.send(FromControl::Disconnected(why)).await.is_err() {
            return;
        }
        tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * jitter.unit())).await;
        pause = (pause * 2).min(DIAL_PAUSE_MAX);
    }
}

/// One stream, from attach to its end. Sets `told` once control has said something.
async fn session(
    channel: Channel,
    reports: &mut watch::Receiver<AgentReport>,
    events: &mpsc::Sender<FromControl>,
    told: &mut bool,
) -> Result<(), tonic::Status> {
    let (outgoing, stream) = mpsc::channel(REPORTS_QUEUED_MAX);
    // Full means control is behind: the next tick carries what is newest then.
    let send = |report: AgentReport| {
        let _ = outgoing.try_send(report);
    };
    send(reports.borrow_and_update().clone());
    let answer = ControlClient::new(channel).attach(ReceiverStream::new(stream)).await?;
    let mut incoming = answer.into_inner();
    let mut tick = tokio::time::interval(REPORT_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    if events.send(FromControl::Connected).await.is_err() {
        return Ok(());
    }
    loop {
        tokio::select! {
            changed = reports.changed() => match changed {
                Ok(()) => send(reports.borrow_and_update().clone()),
                Err(_) => return Ok(()),
            },
            _ = tick.tick() => send(reports.borrow().clone()),
            message = incoming.message() => match message? {
                None => return Ok(()),
                Some(desired) => {
                    *told = true;
                    if events.send(FromControl::Desired(desired)).await.is_err() {
                        return Ok(());
                    }
                }
            },
        }
    }
}

/// An error with its causes: the transport's own text names none.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}
