//! `cgnctl recipe up`: asks for a recipe's engines and waits until all are ready.
//!
//! What cannot get ready is taken back: nothing is left running and control does not go on trying.
//! Only a deployment that was serving before this command is left, or put back, as it was.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::Instant;

use super::connect::Control;
use super::output::{Engine, engine_table, print};
use super::progress::Progress;
use super::wait::{self, Verdict};
use super::{Failure, Global, failure};
use crate::api::{Deployment, DeploymentStatus};

const POLL_EVERY: Duration = Duration::from_millis(250);
/// Beyond an engine's own start-up time: placing it, and a report's way.
const MARGIN_S: u64 = 15;
/// How long engines that never were ready may take to go.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(30);

/// Options of `recipe up`.
#[derive(Debug, Args)]
pub(super) struct Up {
    /// As `recipe ls` lists it.
    name: String,
    /// How many engines, instead of what the recipe says.
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
    /// Wait until all engines are ready (the default).
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Ask for it and return.
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
    /// How long to wait [default: the recipe's startup_timeout_s and 15 s].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout_s: Option<u32>,
}

#[derive(Serialize)]
struct Done {
    recipe: String,
    model: String,
    /// `ready`, or `asked` with --no-wait.
    state: &'static str,
    already_up: bool,
    replicas: u32,
    ready: u32,
    workers: Vec<Engine>,
}

/// Brings it up.
pub(super) async fn run(global: &Global, up: &Up) -> Result<(), Failure> {
    let recipe = super::recipe::tree(global).read(&up.name)?;
    let deployment = recipe.deployment(&up.name, up.replicas);
    failure::check(&deployment)?;
    let startup_s = u64::from(recipe.engine.startup_timeout_s);
    let limit_s = up.timeout_s.map_or(startup_s + MARGIN_S, u64::from);
    let mut control = Control::connect(global).await?;

    let before = control.deployment(&up.name).await?;
    let is_same = before.as_ref().is_some_and(|one| one.deployment.as_ref() == Some(&deployment));
    let is_up = before.as_ref().is_some_and(|one| is_same && one.ready >= deployment.replicas);
    if !is_same {
        control.apply(&deployment).await?;
    }
    if up.no_wait || is_up {
        let now = control.deployment(&up.name).await?;
        let state = if is_up { "ready" } else { "asked" };
        return report(global, &deployment, now, state, is_up);
    }
    match until_ready(&mut control, &deployment, Duration::from_secs(limit_s)).await? {
        Ok(status) => report(global, &deployment, Some(status), "ready", false),
        Err(why) => {
            let left = take_back(&mut control, &deployment, before.as_ref()).await?;
            Err(Failure::Failed(format!("recipe {} did not come up: {why} ({left})", up.name)))
        }
    }
}

/// The inner error says why it will not get ready.
async fn until_ready(
    control: &mut Control,
    deployment: &Deployment,
    limit: Duration,
) -> Result<Result<DeploymentStatus, String>, Failure> {
    let started = Instant::now();
    let mut progress = Progress::start(deployment.replicas);
    let ended = loop {
        let nodes = control.nodes().await?;
        let status = control.deployment(&deployment.name).await?;
        match wait::judge(status.as_ref(), &nodes, started.elapsed(), limit) {
            Verdict::Ready => break status.ok_or_else(String::new),
            Verdict::Failed(why) => break Err(why),
            Verdict::Waiting { ready, line } => progress.show(ready, &line),
        }
        tokio::time::sleep(POLL_EVERY).await;
    };
    progress.finish();
    Ok(ended)
}

/// Undoes the request; says what is left.
async fn take_back(
    control: &mut Control,
    deployment: &Deployment,
    before: Option<&DeploymentStatus>,
) -> Result<&'static str, Failure> {
    if let Some(DeploymentStatus { deployment: Some(old), ready: 1.., .. }) = before {
        if old == deployment {
            return Ok("it was serving before and was left as it is");
        }
        control.apply(old).await?;
        return Ok("the deployment that was serving before is back");
    }
    control.delete(&deployment.name).await?;
    let started = Instant::now();
    while started.elapsed() < CLEAN_UP_TIMEOUT {
        if wait::is_gone(&control.nodes().await?, &deployment.name) {
            return Ok("nothing of it is left running");
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    Ok("its engines are still stopping, see `cgnctl cluster nodes`")
}

fn report(
    global: &Global,
    deployment: &Deployment,
    status: Option<DeploymentStatus>,
    state: &'static str,
    already_up: bool,
) -> Result<(), Failure> {
    let (ready, engines) = status.map_or((0, Vec::new()), |one| (one.ready, one.engines));
    let done = Done {
        recipe: deployment.name.clone(),
        model: deployment.spec.as_ref().map(|spec| spec.model.clone()).unwrap_or_default(),
        state,
        already_up,
        replicas: deployment.replicas,
        ready,
        workers: engines.into_iter().map(Engine::from).collect(),
    };
    print(global.output, &done, |done| {
        let counts = format!("{} of {} ready", done.ready, done.replicas);
        let head = match (done.already_up, done.state) {
            (true, _) => format!("{} is already up: {counts}", done.recipe),
            (_, "ready") => format!("{} is up: {counts}, model {}", done.recipe, done.model),
            _ => format!("{} is asked for: {counts} so far", done.recipe),
        };
        match engine_table(done.workers.iter()) {
            table if table.is_empty() => head,
            table => format!("{head}\n\n{table}"),
        }
    })
}
