//! The release binaries, by cargo, with a bar that knows how many crates there are.
//!
//! RocksDB is the long part of a first build: one crate, hundreds of C++ files, minutes. It is named
//! while it compiles, with the files done so far.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::Cache;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::step::{self, Source};

/// The binaries a node is made of.
pub const BINARIES: &[&str] =
    &["cgn-router", "cgn-control", "cgn-agent", "cgn-kvcached", "cgnctl", "cgn-sim-engine"];
/// The crate that compiles RocksDB's C++.
const ROCKSDB: &str = "librocksdb-sys";

/// Builds all binaries in release mode.
pub fn binaries(cache: &Cache) -> Result<(), Failure> {
    let mut progress = Progress::start("cargo build --release --bins");
    let crates = crates(cache);
    let mut command = cache.cargo();
    command.args(["build", "--release", "--bins", "--locked"]);
    command.arg("--message-format=json-render-diagnostics");
    let mut seen = Seen { target: cache.target.clone(), ..Seen::default() };
    let log = cache.log("cargo-build")?;
    step::run(&mut command, &log, &mut progress, &mut |progress, line| {
        let keep = seen.watch(line);
        if let Some(total) = crates {
            progress.set(seen.finished.len() as u64, total);
        }
        progress.say(&seen.message());
        keep
    })?;
    for name in BINARIES {
        if !cache.binary(name).is_file() {
            return Err(Failure::new(format!(
                "cargo built no {name}; see {} and the [[bin]] sections",
                log.display()
            )));
        }
    }
    progress.done(&format!("in {}", cache.target.join("release").display()));
    Ok(())
}

/// How many crates this build is made of; cargo downloads what it lacks to tell. `None`: no bar.
fn crates(cache: &Cache) -> Option<u64> {
    let mut tree = cache.cargo();
    tree.args(["tree", "--locked", "--workspace", "--edges", "normal,build"]);
    tree.args(["--prefix", "none", "--no-dedupe", "--format", "{p}"]);
    count_crates(&step::output(&mut tree)?)
}

fn count_crates(tree: &str) -> Option<u64> {
    let names: HashSet<(&str, &str)> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?))
        })
        .collect();
    (!names.is_empty()).then_some(names.len() as u64)
}

/// What cargo has said so far.
#[derive(Debug, Default)]
struct Seen {
    finished: HashSet<String>,
    current: String,
    is_rocksdb_compiling: bool,
    target: PathBuf,
}

impl Seen {
    /// Takes one line in; answers whether it belongs in the log.
    fn watch(&mut self, line: Option<(Source, &str)>) -> bool {
        match line {
            Some((Source::Out, line)) => {
                self.take_json(line);
                false
            }
            Some((Source::Err, line)) => {
                if let Some(unit) = line.trim_start().strip_prefix("Compiling ") {
                    let unit = unit.split(" (").next().unwrap_or(unit);
                    unit.clone_into(&mut self.current);
                    self.is_rocksdb_compiling |= unit.starts_with(ROCKSDB);
                } else if ["Downloaded ", "Blocking "].iter().any(|w| line.contains(w)) {
                    line.trim_start().clone_into(&mut self.current);
                }
                true
            }
            None => false,
        }
    }

    /// Cargo's JSON is one object a line; only two fields of two kinds of message matter.
    fn take_json(&mut self, line: &str) {
        let Some(package) = field(line, "package_id") else { return };
        if line.contains("\"reason\":\"build-script-executed\"") && package.contains(ROCKSDB) {
            self.is_rocksdb_compiling = false;
        }
        if line.contains("\"reason\":\"compiler-artifact\"") {
            self.finished.insert(package.to_owned());
        }
    }

    fn message(&self) -> String {
        if !self.is_rocksdb_compiling {
            return self.current.clone();
        }
        let files = objects(&self.target.join("release/build"));
        format!("RocksDB: {files} C++ files compiled; minutes, once, then cached")
    }
}

fn field<'a>(json: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = json.split_once(&format!("\"{key}\":\""))?;
    rest.split('"').next()
}

/// Object files of the build of RocksDB that wrote last.
fn objects(build: &Path) -> usize {
    let folders = std::fs::read_dir(build).into_iter().flatten().flatten();
    let newest = folders
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(ROCKSDB))
        .map(|entry| entry.path().join("out"))
        .filter_map(|out| Some((std::fs::metadata(&out).ok()?.modified().ok()?, out)))
        .max();
    let files = newest.map(|(_, out)| std::fs::read_dir(out)).into_iter().flatten().flatten();
    files.flatten().filter(|file| file.path().extension().is_some_and(|end| end == "o")).count()
}

/// Runs cargo for a stage of the tests, its output straight to the terminal.
pub fn stage(command: &mut Command) -> Result<(), Failure> {
    let status = command.status().map_err(|error| step::start_failure(command, &error))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("cargo ended with {status}; its output above says why")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_are_counted_once_each() {
        let tree = "router v0.1.0 (/x)\nserde v1.0.0\nserde v1.0.0 (*)\nserde v0.9.0\n\n";
        assert_eq!(count_crates(tree), Some(3));
        assert_eq!(count_crates(""), None);
    }

    #[test]
    fn the_bar_follows_cargo() {
        let mut seen = Seen::default();
        let artifact =
            r#"{"reason":"compiler-artifact","package_id":"registry+x#serde@1.0.0","a":1}"#;
        assert!(!seen.watch(Some((Source::Out, artifact))));
        assert!(!seen.watch(Some((Source::Out, artifact))));
        assert_eq!(seen.finished.len(), 1);
        assert!(seen.watch(Some((Source::Err, "   Compiling router v0.1.0 (/clone/router)"))));
        assert_eq!(seen.message(), "router v0.1.0");
        seen.watch(Some((Source::Err, "   Compiling librocksdb-sys v0.18.0+11.0.0")));
        assert!(seen.message().starts_with("RocksDB: 0 C++ files"));
        let script = r#"{"reason":"build-script-executed","package_id":"r#librocksdb-sys@0.18.0"}"#;
        seen.watch(Some((Source::Out, script)));
        assert!(!seen.is_rocksdb_compiling);
    }
}
