//! `cgnctl recipe ls` and `show`: reading the tree of recipes. Control is not asked.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::output::{Table, print};
use super::{Failure, Global};
use crate::recipe::{Recipe, Tree};

const HERE: &str = "recipes";
const INSTALLED: &str = "/usr/share/cognitora/recipes";

#[derive(Serialize)]
struct Listed {
    recipes: Vec<Named>,
}

#[derive(Serialize)]
struct Named {
    name: String,
    #[serde(flatten)]
    recipe: Recipe,
}

/// The folder asked for, or the first usual one that exists.
pub(super) fn tree(global: &Global) -> Tree {
    let given = global.recipes.clone();
    let given = given.or_else(|| std::env::var_os("CGN_RECIPES_DIR").map(PathBuf::from));
    let usual = || match Path::new(HERE) {
        here if here.is_dir() => here.to_owned(),
        _ => PathBuf::from(INSTALLED),
    };
    Tree { path: given.unwrap_or_else(usual) }
}

/// Lists all; a broken recipe fails the command, so that it is noticed before it is needed.
pub(super) fn ls(global: &Global) -> Result<(), Failure> {
    let tree = tree(global);
    let mut recipes = Vec::new();
    for name in tree.names()? {
        let recipe = tree.read(&name)?;
        recipes.push(Named { name, recipe });
    }
    print(global.output, &Listed { recipes }, |listed| {
        let mut table = Table::new(["RECIPE", "MODEL", "ENGINE", "REPLICAS", "DESCRIPTION"]);
        for Named { name, recipe } in &listed.recipes {
            table.row([
                name.clone(),
                recipe.model.name.clone(),
                recipe.engine.kind.as_str().to_owned(),
                recipe.engine.replicas.to_string(),
                recipe.description.clone(),
            ]);
        }
        table.to_string()
    })
}

/// Shows one with all its defaults.
pub(super) fn show(global: &Global, name: &str) -> Result<(), Failure> {
    let recipe = tree(global).read(name)?;
    print(global.output, &Named { name: name.to_owned(), recipe }, |Named { name, recipe }| {
        let (model, engine) = (&recipe.model, &recipe.engine);
        let mut table = Table::new(["KEY", "VALUE"]);
        for (key, value) in [
            ("name", name.clone()),
            ("description", recipe.description.clone()),
            ("model.name", model.name.clone()),
            ("model.file", model.file.clone()),
            ("model.file_bytes", model.file_bytes.to_string()),
            ("engine.kind", engine.kind.as_str().to_owned()),
            ("engine.replicas", engine.replicas.to_string()),
            ("engine.slots", engine.slots.to_string()),
            ("engine.context_length_tokens", engine.context_length_tokens.to_string()),
            ("engine.threads", engine.threads.to_string()),
            ("engine.startup_timeout_s", engine.startup_timeout_s.to_string()),
            ("engine.drain_timeout_s", engine.drain_timeout_s.to_string()),
            ("engine.extra_args", engine.extra_args.join(" ")),
        ] {
            table.row([key.to_owned(), value]);
        }
        table.to_string()
    })
}
