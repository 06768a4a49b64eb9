//! Recipes: what to serve and how, as files `<model>/<engine>/<variant>.toml` in a tree.
//!
//! A recipe's name is its path without `.toml`. Reading is strict: an unknown key, a wrong type or
//! a value out of range names the file and the key before anything is started.

use std::path::{Path, PathBuf};

use dataplane::config::{self, ConfigError};
use serde::{Deserialize, Serialize};

use crate::api::{Deployment, EngineSpec};
use crate::deployment;

/// Folders of a recipe's name.
const DEPTH: usize = 3;
/// Recipes of one tree, so that a wrong `--recipes /` ends.
pub const RECIPES_MAX: usize = 4096;
/// Names suggested for one that does not exist.
const SUGGESTIONS_MAX: usize = 3;
/// Similarity (Jaro-Winkler) from which on a name is worth suggesting.
const SUGGESTION_SIMILARITY_MIN: f64 = 0.6;

/// One recipe. `recipes/README.md` explains each key.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// One line for `cgnctl recipe ls`.
    pub description: String,
    /// What is served.
    pub model: Model,
    /// By what, and how.
    pub engine: Engine,
}

/// `[model]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The name clients ask for.
    pub name: String,
    /// File or folder, below the agent's `model_dir` or absolute; none for a simulated engine.
    #[serde(default)]
    pub file: String,
    /// The file's exact length; 0 is not checked.
    #[serde(default)]
    pub file_bytes: u64,
}

/// `[engine]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Which engine.
    pub kind: Kind,
    /// How many of it.
    #[serde(default = "defaults::replicas")]
    pub replicas: u32,
    /// Requests one replica works on at once.
    #[serde(default = "defaults::slots")]
    pub slots: u32,
    /// Tokens one request may span.
    #[serde(default = "defaults::context_length_tokens")]
    pub context_length_tokens: u32,
    /// Threads of one replica; 0 is the engine's own default.
    #[serde(default)]
    pub threads: u32,
    /// Not ready after so long is a failure.
    #[serde(default = "defaults::startup_timeout_s")]
    pub startup_timeout_s: u32,
    /// How long running requests may take to finish before the engine is ended.
    #[serde(default = "defaults::drain_timeout_s")]
    pub drain_timeout_s: u32,
    /// Passed to the engine as they are, last.
    #[serde(default)]
    pub extra_args: Vec<String>,
    /// Set for the engine: `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
}

/// Engines a recipe can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `llama-server`.
    LlamaCpp,
    /// `vllm serve`.
    Vllm,
    /// `sglang serve`.
    Sglang,
    /// `cgn-sim-engine`.
    Sim,
}

impl Kind {
    /// As recipes spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::LlamaCpp => "llama_cpp",
            Kind::Vllm => "vllm",
            Kind::Sglang => "sglang",
            Kind::Sim => "sim",
        }
    }
}

mod defaults {
    pub(super) fn replicas() -> u32 {
        1
    }
    pub(super) fn slots() -> u32 {
        4
    }
    pub(super) fn context_length_tokens() -> u32 {
        2048
    }
    pub(super) fn startup_timeout_s() -> u32 {
        120
    }
    pub(super) fn drain_timeout_s() -> u32 {
        600
    }
}

/// Why there is no recipe.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file is there but wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No folder of recipes.
    #[error("{}: cannot read the recipes: {source}; name their folder with --recipes", path.display())]
    Tree {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Far too many files to be a tree of recipes.
    #[error("{}: more than {RECIPES_MAX} recipes; name the right folder with --recipes", .0.display())]
    TooMany(PathBuf),
    /// No recipe of that name.
    #[error("there is no recipe `{name}` in {}{}", path.display(), suggest(nearest))]
    NotFound {
        /// The name asked for.
        name: String,
        /// The folder searched.
        path: PathBuf,
        /// Names like it, nearest first.
        nearest: Vec<String>,
    },
}

impl Recipe {
    /// Parses and checks `text`; `path` is for the message only.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(path: &Path, name: &str, text: &str) -> Result<Recipe, ConfigError> {
        let recipe: Recipe = config::parse(path, text)?;
        deployment::check(&recipe.deployment(name, None)).map_err(|fault| ConfigError::Value {
            path: path.to_owned(),
            key: fault.key.to_owned(),
            message: fault.message,
        })?;
        Ok(recipe)
    }

    /// What to ask control for; `replicas` overrides the recipe's own.
    pub fn deployment(&self, name: &str, replicas: Option<u32>) -> Deployment {
        let (model, engine) = (self.model.clone(), self.engine.clone());
        let spec = EngineSpec {
            model: model.name,
            kind: engine.kind.as_str().to_owned(),
            model_file: model.file,
            model_file_bytes: model.file_bytes,
            slots: engine.slots,
            context_length_tokens: engine.context_length_tokens,
            threads: engine.threads,
            extra_args: engine.extra_args,
            env: engine.env,
            startup_timeout_s: engine.startup_timeout_s,
            drain_timeout_s: engine.drain_timeout_s,
        };
        let replicas = replicas.unwrap_or(engine.replicas);
        Deployment { name: name.to_owned(), replicas, spec: Some(spec) }
    }
}

/// A folder of recipes.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The folder.
    pub path: PathBuf,
}

impl Tree {
    /// Names of all recipes, sorted.
    ///
    /// # Errors
    /// [`RecipeError::Tree`], [`RecipeError::TooMany`].
    pub fn names(&self) -> Result<Vec<String>, RecipeError> {
        let mut names = Vec::new();
        self.walk(&self.path, "", DEPTH, &mut names)?;
        names.sort();
        Ok(names)
    }

    /// Reads one recipe.
    ///
    /// # Errors
    /// Any [`RecipeError`].
    pub fn read(&self, name: &str) -> Result<Recipe, RecipeError> {
        let names = self.names()?;
        if !names.iter().any(|known| known == name) {
            let nearest = nearest(name, names.iter().map(String::as_str));
            let (name, path) = (name.to_owned(), self.path.clone());
            return Err(RecipeError::NotFound { name, path, nearest });
        }
        let path = self.path.join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        Ok(Recipe::parse(&path, name, &text)?)
    }

    fn walk(
        &self,
        folder: &Path,
        prefix: &str,
        depth: usize,
        names: &mut Vec<String>,
    ) -> Result<(), RecipeError> {
        let unreadable = |source| RecipeError::Tree { path: folder.to_owned(), source };
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let file_name = entry.file_name();
            let Some(file_name) = file_name.to_str() else { continue };
            let path = entry.path();
            if depth > 1 && path.is_dir() {
                self.walk(&path, &format!("{prefix}{file_name}/"), depth - 1, names)?;
            } else if depth == 1
                && let Some(stem) = file_name.strip_suffix(".toml")
            {
                let name = format!("{prefix}{stem}");
                if deployment::is_name(&name) {
                    names.push(name);
                }
            }
            if names.len() > RECIPES_MAX {
                return Err(RecipeError::TooMany(self.path.clone()));
            }
        }
        Ok(())
    }
}

/// The names most like `name`, nearest first.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Vec<String> {
    let likeness = |one: &str| strsim::jaro_winkler(name, one);
    let mut rated: Vec<(f64, &str)> = known.map(|one| (likeness(one), one)).collect();
    rated.retain(|(rate, _)| *rate >= SUGGESTION_SIMILARITY_MIN);
    rated.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    rated.into_iter().take(SUGGESTIONS_MAX).map(|(_, one)| one.to_owned()).collect()
}

/// The tail of a "not found" message.
pub fn suggest(nearest: &[String]) -> String {
    match nearest {
        [] => "; see `cgnctl recipe ls`".to_owned(),
        names => format!("; did you mean {}?", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "description = \"d\"\n[model]\nname = \"m\"\n[engine]\nkind = \"sim\"\n";

    fn parse(text: &str) -> Result<Recipe, String> {
        Recipe::parse(Path::new("r.toml"), "a/b/c", text).map_err(|error| error.to_string())
    }

    #[test]
    fn every_shipped_recipe_parses() {
        let tree = Tree { path: Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes") };
        let names = tree.names().unwrap();
        for known in ["smollm2-135m/llama-cpp/cpu", "sim/sim/cpu"] {
            assert!(names.iter().any(|name| name == known), "{known} is missing");
        }
        for name in names {
            tree.read(&name).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn the_readme_explains_every_key() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/README.md");
        let readme = std::fs::read_to_string(path).unwrap();
        let recipe = serde_json::to_value(parse(GOOD).unwrap()).unwrap();
        let sections = recipe.as_object().unwrap();
        let keys = sections.iter().flat_map(|(name, section)| match section.as_object() {
            Some(inner) => inner.keys().map(|key| format!("{name}.{key}")).collect(),
            None => vec![name.clone()],
        });
        for key in keys {
            assert!(readme.contains(&format!("| `{key}` |")), "{key} is not in recipes/README.md");
        }
    }

    #[test]
    fn faults_name_file_line_and_key() {
        let said = |text: &str| parse(text).unwrap_err();
        let misspelt = said(&GOOD.replace("kind", "kidn"));
        assert_eq!(misspelt, "r.toml:5: unknown key `kidn`; the nearest known key is `kind`");
        assert!(said(&GOOD.replace("\"sim\"", "\"vlm\"")).starts_with("r.toml:5: "));
        assert!(said(&format!("{GOOD}slots = 0\n")).starts_with("r.toml: engine.slots: "));
        assert!(said(&GOOD.replace("\"sim\"", "\"llama_cpp\"")).contains("model.file"));
    }

    #[test]
    fn a_missing_recipe_comes_with_names_like_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("sim/sim");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("cpu.toml"), GOOD).unwrap();
        std::fs::write(folder.join("notes.md"), "").unwrap();
        let tree = Tree { path: dir.path().to_owned() };
        assert_eq!(tree.names().unwrap(), ["sim/sim/cpu"]);
        assert_eq!(tree.read("sim/sim/cpu").unwrap().engine.replicas, 1);
        let error = tree.read("sim/sim/cpuu").unwrap_err().to_string();
        assert!(error.ends_with("did you mean sim/sim/cpu?"), "{error}");
        assert!(tree.read("../sim/sim/cpu").is_err());
    }
}
