//! `cgnctl model ls`: what is served.

use serde::Serialize;

use super::connect::Control;
use super::output::{Table, print};
use super::{Failure, Global};
use crate::api;

#[derive(Serialize)]
struct Listed {
    models: Vec<Model>,
}

#[derive(Serialize)]
struct Model {
    name: String,
    kinds: Vec<String>,
    workers: u32,
    workers_ready: u32,
    slots: u32,
    context_length_tokens: u32,
    capabilities: Vec<String>,
}

impl From<api::Model> for Model {
    fn from(model: api::Model) -> Model {
        Model {
            name: model.name,
            kinds: model.kinds,
            workers: model.workers,
            workers_ready: model.workers_ready,
            slots: model.slots,
            context_length_tokens: model.context_length_tokens,
            capabilities: model.capabilities,
        }
    }
}

/// Lists all models desired or observed.
pub(super) async fn ls(global: &Global) -> Result<(), Failure> {
    let models = Control::connect(global).await?.models().await?;
    let listed = Listed { models: models.into_iter().map(Model::from).collect() };
    print(global.output, &listed, |listed| {
        let mut table = Table::new(["MODEL", "KIND", "READY", "SLOTS", "CONTEXT", "CAPABILITIES"]);
        for model in &listed.models {
            table.row([
                model.name.clone(),
                model.kinds.join(","),
                format!("{}/{}", model.workers_ready, model.workers),
                model.slots.to_string(),
                model.context_length_tokens.to_string(),
                model.capabilities.join(","),
            ]);
        }
        if table.is_empty() {
            return "no model is served; start one with `cgnctl recipe up NAME`".to_owned();
        }
        table.to_string()
    })
}
