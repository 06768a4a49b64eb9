//! One agent's stream: reports up, desired states down, until either side ends it.
//!
//! The node is attached from the first report on and no longer than this function runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};
use tracing::debug;

use crate::api::{AgentReport, DesiredState};
use crate::error::ControlError;
use crate::keeper::{Keeper, Place};

/// An agent speaks first, and soon.
pub const FIRST_REPORT_S: u64 = 10;
/// How often an agent is tried that came back before its old stream was seen to break.
const ATTACH_TRIES: u32 = 10;
const ATTACH_PAUSE: Duration = Duration::from_millis(100);

/// Serves the stream to its end. A refusal is its last word.
pub async fn serve(
    keeper: Arc<Keeper>,
    mut reports: Streaming<AgentReport>,
    down: mpsc::Sender<Result<DesiredState, Status>>,
    mut stopping: watch::Receiver<bool>,
) {
    let place = tokio::select! {
        place = attach(&keeper, &mut reports) => place,
        _ = stopping.wait_for(|stop| *stop) => Ok(None),
    };
    let ended = match place {
        Ok(None) => Ok(()),
        Ok(Some(mut place)) => {
            let ended = follow(&keeper, &mut place, &mut reports, &down, &mut stopping).await;
            // When it is control that ends, the data planes go on with the picture they have.
            if !*stopping.borrow() {
                keeper.detach(&place);
            }
            ended
        }
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        debug!(%error, "an agent's stream was ended");
        // Nobody is left to hear it when the agent is gone.
        let _ = down.try_send(Err(error.into()));
    }
}

/// `None` when the agent left without a word.
async fn attach(
    keeper: &Keeper,
    reports: &mut Streaming<AgentReport>,
) -> Result<Option<Place>, ControlError> {
    let first = tokio::time::timeout(Duration::from_secs(FIRST_REPORT_S), reports.message()).await;
    let report = match first {
        Ok(Ok(Some(report))) => report,
        Ok(_) => return Ok(None),
        Err(_) => return Err(ControlError::Silent(FIRST_REPORT_S)),
    };
    for _ in 1..ATTACH_TRIES {
        match keeper.attach(report.clone()) {
            Err(ControlError::NodeTaken(_)) => tokio::time::sleep(ATTACH_PAUSE).await,
            other => return other.map(Some),
        }
    }
    keeper.attach(report).map(Some)
}

async fn follow(
    keeper: &Keeper,
    place: &mut Place,
    reports: &mut Streaming<AgentReport>,
    down: &mpsc::Sender<Result<DesiredState, Status>>,
    stopping: &mut watch::Receiver<bool>,
) -> Result<(), ControlError> {
    // The first desired state is always sent, even an empty one: an agent may have leftovers.
    let mut is_due = true;
    loop {
        tokio::select! {
            report = reports.message() => match report {
                Ok(Some(report)) => keeper.report(place, report)?,
                Ok(None) | Err(_) => return Ok(()),
            },
            permit = down.reserve(), if is_due => {
                let Ok(permit) = permit else { return Ok(()) };
                permit.send(Ok(place.desired.borrow_and_update().clone()));
                is_due = false;
            }
            changed = place.desired.changed(), if !is_due => {
                changed.map_err(|_| ControlError::Replaced(place.node.clone()))?;
                is_due = true;
            }
            () = down.closed() => return Ok(()),
            _ = stopping.wait_for(|stop| *stop) => return Ok(()),
        }
    }
}
