//! `cgnctl recipe down`: takes a recipe's engines out of service. Running requests may finish
//! first, for as long as the recipe's `drain_timeout_s`.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::Instant;

use super::connect::Control;
use super::output::print;
use super::progress::Progress;
use super::{Failure, Global, wait};
use crate::recipe::{nearest, suggest};

const POLL_EVERY: Duration = Duration::from_millis(250);
/// Beyond an engine's own drain time.
const MARGIN_S: u64 = 30;

/// Options of `recipe down`.
#[derive(Debug, Args)]
pub(super) struct Down {
    /// As `recipe ls` lists it.
    name: String,
    /// Wait until its engines are gone.
    #[arg(long)]
    wait: bool,
    /// How long to wait [default: the deployment's drain_timeout_s and 30 s].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout_s: Option<u32>,
}

#[derive(Serialize)]
struct Done {
    recipe: String,
    /// `down`, `stopping` without --wait, `was_not_up`.
    state: &'static str,
    engines_left: usize,
}

/// Takes it down.
pub(super) async fn run(global: &Global, down: &Down) -> Result<(), Failure> {
    let mut control = Control::connect(global).await?;
    let deployments = control.deployments().await?;
    let mut deployed = deployments.iter().filter_map(|one| one.deployment.as_ref());
    let Some(deployment) = deployed.find(|one| one.name == down.name) else {
        return not_up(global, &mut control, down).await;
    };
    let drain_s = deployment.spec.as_ref().map_or(0, |spec| u64::from(spec.drain_timeout_s));
    control.delete(&down.name).await?;
    let limit_s = down.timeout_s.map_or(drain_s + MARGIN_S, u64::from);
    stop(global, &mut control, down, Duration::from_secs(limit_s)).await
}

async fn stop(
    global: &Global,
    control: &mut Control,
    down: &Down,
    limit: Duration,
) -> Result<(), Failure> {
    let mut left = wait::left(&control.nodes().await?, &down.name);
    if down.wait {
        left = until_gone(control, &down.name, left, limit).await?;
        if left > 0 {
            return Err(Failure::Failed(format!(
                "engines of {} still stopping after {} s: {left}; see `cgnctl cluster nodes`",
                down.name,
                limit.as_secs()
            )));
        }
    }
    let state = if left == 0 { "down" } else { "stopping" };
    let done = Done { recipe: down.name.clone(), state, engines_left: left };
    print(global.output, &done, |done| match done.engines_left {
        0 => format!("{} is down", done.recipe),
        left => {
            format!("{} is going down; engines that still finish requests: {left}", done.recipe)
        }
    })
}

async fn until_gone(
    control: &mut Control,
    name: &str,
    total: usize,
    limit: Duration,
) -> Result<usize, Failure> {
    let started = Instant::now();
    let mut progress = Progress::start(u32::try_from(total).unwrap_or(u32::MAX));
    let mut left = total;
    while left > 0 && started.elapsed() < limit {
        let gone = u32::try_from(total.saturating_sub(left)).unwrap_or(u32::MAX);
        progress.show(gone, &format!("stopping; engines left: {left}"));
        tokio::time::sleep(POLL_EVERY).await;
        left = wait::left(&control.nodes().await?, name);
    }
    progress.finish();
    Ok(left)
}

/// Taking down what is not up is fine, if it could be: engines of an earlier `down` may still be
/// stopping. A name that nobody knows is a mistake.
async fn not_up(global: &Global, control: &mut Control, down: &Down) -> Result<(), Failure> {
    let nodes = control.nodes().await?;
    if wait::left(&nodes, &down.name) > 0 {
        let limit_s = down.timeout_s.map_or(MARGIN_S, u64::from);
        return stop(global, control, down, Duration::from_secs(limit_s)).await;
    }
    // Without a readable tree of recipes there is just nothing to suggest.
    let recipes = super::recipe::tree(global).names().unwrap_or_default();
    if !recipes.contains(&down.name) {
        let nearest = nearest(&down.name, recipes.iter().map(String::as_str));
        let message = format!("`{}` is not up and is no recipe{}", down.name, suggest(&nearest));
        return Err(Failure::NotFound(message));
    }
    let done = Done { recipe: down.name.clone(), state: "was_not_up", engines_left: 0 };
    print(global.output, &done, |done| format!("{} was not up", done.recipe))
}
