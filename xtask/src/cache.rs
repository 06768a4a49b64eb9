//! Where things are kept: the folders outside the clone, and those inside when there is no other.
//!
//! Engines, models and build output survive a fresh clone because they lie in the cache folder. The
//! names are keyed by version; nothing here deletes what another version may still use.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::Failure;

/// All folders in use.
#[derive(Clone, Debug)]
pub struct Cache {
    /// The clone.
    pub repository: PathBuf,
    /// The cache folder, writable.
    pub root: PathBuf,
    /// Cargo's target directory for everything but xtask itself.
    pub target: PathBuf,
    /// The folder of the running node.
    pub run: PathBuf,
}

impl Cache {
    /// Finds the folders and makes them. Falls back to `target/cache` in the clone when the usual
    /// place cannot be written.
    pub fn open() -> Result<Cache, Failure> {
        let repository = repository()?;
        let root = root(&repository)?;
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(path) if !path.is_empty() => std::path::absolute(&path)
                .map_err(|error| Failure::at(Path::new(&path), "resolve", &error))?,
            // A cache that fell back into ./target would nest build output in itself.
            _ if root.starts_with(&repository) => repository.join("target"),
            _ => root.join("target"),
        };
        let run = match std::env::var_os("CGN_RUN_DIR") {
            Some(path) if !path.is_empty() => std::path::absolute(&path)
                .map_err(|error| Failure::at(Path::new(&path), "resolve", &error))?,
            _ => root.join("run"),
        };
        Ok(Cache { repository, root, target, run })
    }

    /// The same folders with another run folder, so that a test node and the user's do not meet.
    pub fn with_run(&self, run: PathBuf) -> Cache {
        Cache { run, ..self.clone() }
    }

    /// A folder below the cache folder, made if need be.
    pub fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.root.join(name);
        make(&path)?;
        Ok(path)
    }

    /// The log of one step: `build/<name>.log`.
    pub fn log(&self, name: &str) -> Result<PathBuf, Failure> {
        Ok(self.folder("build")?.join(format!("{name}.log")))
    }

    /// A release binary of ours.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// A cargo command in the clone that builds into our target directory. Everything below it sees
    /// the same cache folder.
    pub fn cargo(&self) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .current_dir(&self.repository)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CGN_CACHE", &self.root);
        command
    }

    /// Holds the lock file at `path` until the returned file is dropped; waits for another holder.
    pub fn lock(path: &Path) -> Result<File, Failure> {
        let file = File::create(path).map_err(|error| Failure::at(path, "create", &error))?;
        if file.try_lock().is_err() {
            eprintln!("waiting for another cargo xtask ({}) …", path.display());
            file.lock().map_err(|error| Failure::at(path, "lock", &error))?;
        }
        Ok(file)
    }
}

/// Makes a folder and its parents.
pub fn make(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(|error| Failure::at(path, "create", &error))
}

/// Removes a file or a folder with all it holds; it may be absent.
pub fn remove(path: &Path) -> Result<(), Failure> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    result.map_err(|error| Failure::at(path, "remove", &error))
}

/// The clone this xtask was compiled in, unless cargo says another.
fn repository() -> Result<PathBuf, Failure> {
    let manifest = std::env::var("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    match Path::new(&manifest).parent() {
        Some(root) if root.join("Cargo.toml").is_file() => Ok(root.to_owned()),
        _ => Err(Failure::new(format!(
            "{manifest} is not in a clone any more; run `cargo xtask` inside one"
        ))),
    }
}

fn root(repository: &Path) -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = set("CGN_CACHE") {
        let path = std::path::absolute(&path)
            .map_err(|error| Failure::at(Path::new(&path), "resolve", &error))?;
        if is_writable(&path) {
            return Ok(path);
        }
        return Err(Failure::new(format!(
            "CGN_CACHE={} cannot be written; set it to a folder you own or unset it",
            path.display()
        )));
    }
    let usual = set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .filter(|path| path.is_absolute());
    if let Some(path) = usual.map(|path| path.join("cognitora"))
        && is_writable(&path)
    {
        return Ok(path);
    }
    let inside = repository.join("target/cache");
    if is_writable(&inside) {
        return Ok(inside);
    }
    Err(Failure::new("no folder for the cache can be written; set CGN_CACHE to one you own"))
}

fn is_writable(path: &Path) -> bool {
    let probe = path.join(format!(".writable-{}", std::process::id()));
    let written = fs::create_dir_all(path).is_ok() && fs::write(&probe, b"").is_ok();
    // Left behind only if the folder vanished in between; then there is nothing to clean.
    let _ = fs::remove_file(&probe);
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_cannot_be_made_is_not_writable() {
        let file = std::env::temp_dir().join(format!("xtask-cache-{}", std::process::id()));
        fs::write(&file, b"").unwrap();
        assert!(!is_writable(&file.join("below-a-file")));
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn removing_what_is_not_there_is_fine() {
        remove(Path::new("/nonexistent/cognitora/xtask")).unwrap();
    }
}
