//! What the engines that serve a model folder (vLLM, SGLang) share: the folder, and that nothing is
//! fetched or reported over the network.

use super::{Model, SpecError};

/// With these the libraries below the engine read the folder and ask no hub. Nothing is told to anybody.
pub(super) fn offline() -> Vec<(&'static str, String)> {
    let names = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK"];
    names.into_iter().map(|name| (name, "1".to_owned())).collect()
}

/// The folder to serve.
pub(super) fn folder(model: Option<&Model>) -> Result<String, SpecError> {
    match model {
        Some(model) => Ok(model.path.display().to_string()),
        None => Err(SpecError::Value {
            key: "model.file",
            value: "empty".to_owned(),
            cure: "name the model's folder".to_owned(),
        }),
    }
}
