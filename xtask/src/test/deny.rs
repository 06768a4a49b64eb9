//! Licences, banned crates and sources, by cargo-deny: on `PATH` or built once into the cache.

use std::path::PathBuf;
use std::process::Command;

use super::Tally;
use crate::cache::{self, Cache};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{build, packages, step};

const VERSION: &str = "0.20.2";

/// Checks `Cargo.lock` against `deny.toml`.
pub fn run(cache: &Cache) -> Result<Tally, Failure> {
    let mut command = Command::new(ensure(cache)?);
    command.current_dir(&cache.repository).arg("--locked");
    build::stage(command.args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))?;
    Ok(Tally::PASSED)
}

fn ensure(cache: &Cache) -> Result<PathBuf, Failure> {
    if let Some(path) = packages::program("cargo-deny") {
        return Ok(path);
    }
    let tools = cache.folder(&format!("tools/cargo-deny-{VERSION}"))?;
    let binary = tools.join("bin/cargo-deny");
    if binary.is_file() {
        return Ok(binary);
    }
    let mut progress = Progress::start(&format!("build cargo-deny {VERSION} (once)"));
    let objects = cache.folder("build")?.join("cargo-deny");
    let mut command = cache.cargo();
    command.args(["install", "--locked", "--debug", &format!("cargo-deny@{VERSION}"), "--root"]);
    command.arg(&tools).arg("--target-dir").arg(&objects).env("CARGO_PROFILE_DEV_DEBUG", "0");
    step::run_quietly(&mut command, &cache.log("cargo-deny")?, &mut progress)?;
    cache::remove(&objects)?;
    progress.done("");
    Ok(binary)
}
