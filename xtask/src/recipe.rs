//! The little that `up` must know of a recipe: that it exists, its model, its engine.
//!
//! `cgnctl` reads recipes in earnest and refuses bad ones; this only looks three keys up, so that the
//! right things are fetched before anything starts.

use std::fs;
use std::path::Path;

use crate::failure::Failure;

/// What is looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// `model.name`: what clients ask for.
    pub model: String,
    /// `model.file`, if any.
    pub file: String,
    /// `engine.kind`.
    pub engine: String,
}

/// Looks `name` up below `<repository>/recipes`.
pub fn find(repository: &Path, name: &str) -> Result<Recipe, Failure> {
    let folder = repository.join("recipes");
    let is_plain = name.split('/').all(|part| !part.is_empty() && !part.starts_with('.'));
    match fs::read_to_string(folder.join(format!("{name}.toml"))) {
        Ok(text) if is_plain => Ok(read(&text)),
        _ => {
            let mut names = Vec::new();
            list(&folder, "", &mut names);
            names.sort();
            Err(Failure::new(format!(
                "no recipe `{name}`; pass one of these to --recipe: {}",
                names.join(", ")
            )))
        }
    }
}

fn list(folder: &Path, prefix: &str, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            list(&entry.path(), &format!("{prefix}{name}/"), names);
        } else if let Some(stem) = name.strip_suffix(".toml") {
            names.push(format!("{prefix}{stem}"));
        }
    }
}

fn read(text: &str) -> Recipe {
    let mut section = "";
    let mut recipe = Recipe { model: String::new(), file: String::new(), engine: String::new() };
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        } else if let Some((key, value)) = line.split_once('=') {
            let value = value.trim().trim_start_matches('"').split('"').next().unwrap_or_default();
            match (section, key.trim()) {
                ("model", "name") => value.clone_into(&mut recipe.model),
                ("model", "file") => value.clone_into(&mut recipe.file),
                ("engine", "kind") => value.clone_into(&mut recipe.engine),
                _ => {}
            }
        }
    }
    recipe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_and_engine_are_read() {
        let text = "description = \"d\"\n[model]\nname = \"m\" # what clients say\nfile = \"f.gguf\"\n\n\
                    [engine]\nkind = \"llama_cpp\"\nname = \"no\"\n";
        let wanted =
            Recipe { model: "m".into(), file: "f.gguf".into(), engine: "llama_cpp".into() };
        assert_eq!(read(text), wanted);
    }

    #[test]
    fn an_unknown_recipe_names_the_known_ones() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let said = find(repository, "smollm2-135m/llama-cpp/gpu").unwrap_err().to_string();
        assert!(said.contains("smollm2-135m/llama-cpp/cpu"), "{said}");
        assert!(find(repository, "../recipes/smollm2-135m/llama-cpp/cpu").is_err());
        assert!(find(repository, "smollm2-135m/llama-cpp/cpu").is_ok());
    }
}
