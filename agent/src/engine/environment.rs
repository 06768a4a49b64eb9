//! The environment variables of an engine: the agent's own and the recipe's.

use control::api::EngineSpec;

use super::SpecError;

/// `NAME=value`.
pub(super) fn is_variable(word: &str) -> bool {
    let Some((name, value)) = word.split_once('=') else { return false };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.is_empty() && name.bytes().all(is_plain) && !value.contains('\0')
}

/// What is set for the engine: `own`, then what the recipe says.
pub(super) fn environment(
    spec: &EngineSpec,
    own: &[(&'static str, String)],
) -> Result<Vec<(String, String)>, SpecError> {
    let mut all: Vec<(String, String)> =
        own.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    for word in &spec.env {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        if own.iter().any(|(known, _)| *known == name) {
            return Err(SpecError::OwnedVariable { name: name.to_owned() });
        }
        all.push((name.to_owned(), value.to_owned()));
    }
    Ok(all)
}
