//! `cgnctl route weights`: the weights of the routing decision for all routers: shown, set, reset.

use clap::Args;
use dataplane::wire::ScoreWeights;
use serde::Serialize;

use super::connect::Control;
use super::output::print;
use super::{Failure, Global};
use crate::weights;

/// Options of `route weights`; without any the weights are shown.
#[derive(Debug, Args)]
pub(super) struct Weights {
    /// Sets them for all routers, before what their files say, until they are reset.
    #[arg(long, value_name = "kv=…,load=…,power=…,capacity=…", conflicts_with = "reset")]
    set: Option<ScoreWeights>,
    /// Each router goes by its own file again.
    #[arg(long)]
    reset: bool,
}

#[derive(Serialize)]
struct Shown {
    /// `control` where they are set here, else `configuration`.
    from: &'static str,
    weights: Option<ScoreWeights>,
}

/// Does one of the three and prints what is set then.
pub(super) async fn run(global: &Global, asked: &Weights) -> Result<(), Failure> {
    let mut control = Control::connect(global).await?;
    let now = match (asked.set, asked.reset) {
        (Some(weights), _) => control.set_weights(Some(weights::to_api(weights))).await?,
        (None, true) => control.set_weights(None).await?,
        (None, false) => control.weights().await?,
    };
    let weights = now.as_ref().and_then(weights::of_api);
    let from = if weights.is_some() { "control" } else { "configuration" };
    print(global.output, &Shown { from, weights }, |shown| match shown.weights {
        Some(weights) => format!("all routers: {weights}"),
        None => {
            "none are set: each router goes by [router.score_weights] of its own file".to_owned()
        }
    })
}

/// A temperature as typed.
pub(super) fn temperature(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| "must be a number, 0 or more".to_owned())
}
