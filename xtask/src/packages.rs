//! System packages: which are missing, and apt-get to install them.
//!
//! A thing counts as present when it can be used, whoever installed it: a program on `PATH`, a library
//! in a usual folder, a Python module that imports. Only what is missing is asked of apt.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::Cache;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::step;

/// How to tell that a package is there.
#[derive(Clone, Copy, Debug)]
pub enum Probe {
    /// A program on `PATH` or in the system's own program folders.
    Program(&'static str),
    /// libclang's shared library, which bindgen loads at run time.
    Libclang,
    /// Python modules that import.
    Python(&'static str),
}

/// One Debian package and the proof of its presence.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// Its name in Debian and Ubuntu.
    pub name: &'static str,
    /// How to tell that it is there.
    pub probe: Probe,
    /// What needs it.
    pub reason: &'static str,
}

/// What `up` and `test` need.
pub const NODE: &[Package] = &[
    Package { name: "g++", probe: Probe::Program("c++"), reason: "compiles RocksDB and llama.cpp" },
    Package { name: "make", probe: Probe::Program("make"), reason: "builds llama.cpp" },
    Package { name: "cmake", probe: Probe::Program("cmake"), reason: "builds llama.cpp" },
    Package { name: "libclang-dev", probe: Probe::Libclang, reason: "RocksDB's bindings" },
    Package {
        name: "protobuf-compiler",
        probe: Probe::Program("protoc"),
        reason: "the control port's gRPC types",
    },
    Package {
        name: "python3",
        probe: Probe::Program("python3"),
        reason: "fetches engine and model",
    },
    Package {
        name: "python3-pip",
        probe: Probe::Python("pip"),
        reason: "fetches engine and model",
    },
    Package {
        name: "python3-venv",
        probe: Probe::Python("venv, ensurepip"),
        reason: "the Python SDK's tests",
    },
    Package { name: "curl", probe: Probe::Program("curl"), reason: "asks the node" },
];

/// Debian's package of promtool; it brings a server along.
pub const PROMETHEUS: &str = "prometheus";

/// What `test` needs besides.
pub const TEST: &[Package] = &[
    Package {
        name: PROMETHEUS,
        probe: Probe::Program("promtool"),
        reason: "checks metrics, rules and dashboards",
    },
    Package {
        name: "redis-tools",
        probe: Probe::Program("redis-cli"),
        reason: "a stock client of the KV daemon",
    },
    Package {
        name: "iproute2",
        probe: Probe::Program("ip"),
        reason: "network namespaces between KV daemons",
    },
];

/// What the stage `page` needs besides.
pub const PAGE: &[Package] = &[Package {
    name: "chromium",
    probe: Probe::Program("chromium"),
    reason: "opens the admin page",
}];

/// What `bench` needs besides.
pub const BENCH: &[Package] = &[
    Package {
        name: "nginx",
        probe: Probe::Program("nginx"),
        reason: "the proxy to measure against",
    },
    Package { name: "wrk", probe: Probe::Program("wrk"), reason: "the load" },
    Package {
        name: "nghttp2-client",
        probe: Probe::Program("h2load"),
        reason: "the load over TLS and HTTP/2",
    },
];

/// Makes sure all of `packages` are there. Answers which were installed.
pub fn ensure(cache: &Cache, packages: &[Package]) -> Result<Vec<&'static str>, Failure> {
    let missing: Vec<Package> = packages.iter().copied().filter(|p| !is_present(p.probe)).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<&'static str> = missing.iter().map(|package| package.name).collect();
    for package in &missing {
        eprintln!("missing: {} ({})", package.name, package.reason);
    }
    let root = root_prefix(&names)?;
    let mut progress = Progress::start(&format!("apt-get install {}", names.join(" ")));
    let log = cache.log("packages")?;
    // A failed update is no reason to stop: the lists at hand may do, and install says if not.
    let _ = step::run_quietly(&mut apt(&root, &["update"]), &log, &mut progress);
    let mut words = vec!["install", "-y", "--no-install-recommends"];
    words.extend(&names);
    step::run_quietly(&mut apt(&root, &words), &log, &mut progress)?;
    if let Some(package) = missing.iter().find(|package| !is_present(package.probe)) {
        return Err(Failure::new(format!(
            "apt-get installed {} but it cannot be used; see {}",
            package.name,
            log.display()
        )));
    }
    progress.done("");
    Ok(names)
}

/// Ends the service that a package started by itself and keeps it from coming back: only its tools are
/// wanted, and Prometheus would take the control port. Without systemd nothing was started.
pub fn stop_service(name: &str) {
    if !Path::new("/run/systemd/system").is_dir() {
        return;
    }
    if let Ok(mut command) = as_root(&["systemctl", "disable", "--now", name]) {
        // Nothing to stop is no failure; a port that stays taken is said by whoever needs it.
        let _ = step::output(&mut command);
    }
}

/// A command that runs `words` as root.
pub fn as_root(words: &[&str]) -> Result<Command, Failure> {
    let prefix = root_prefix(&[])?;
    let mut all = prefix.iter().map(String::as_str).chain(words.iter().copied());
    let mut command = Command::new(all.next().unwrap_or("true"));
    command.args(all);
    Ok(command)
}

/// The path of a program, looked for on `PATH` and where the system keeps its own.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn is_present(probe: Probe) -> bool {
    match probe {
        Probe::Program(name) => program(name).is_some(),
        Probe::Libclang => libclang_folders().iter().any(|folder| has_libclang(folder)),
        Probe::Python(modules) => {
            let mut python = Command::new("python3");
            step::output(python.args(["-c", &format!("import {modules}")])).is_some()
        }
    }
}

fn libclang_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("LIBCLANG_PATH").map(PathBuf::from).into_iter().collect();
    folders.extend(["/usr/lib64", "/usr/lib", "/usr/local/lib"].map(PathBuf::from));
    for entry in std::fs::read_dir("/usr/lib").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("llvm") {
            folders.push(entry.path().join("lib"));
        } else if name.ends_with("-linux-gnu") {
            folders.push(entry.path());
        }
    }
    folders
}

fn has_libclang(folder: &Path) -> bool {
    let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.any(|entry| is_libclang(&entry.file_name().to_string_lossy()))
}

/// The C library by the names bindgen looks for. `libclang-cpp`, which a compiler brings along, is
/// another library and no use to it.
fn is_libclang(name: &str) -> bool {
    !name.starts_with("libclang-cpp")
        && (name.starts_with("libclang.so") || name.starts_with("libclang-"))
        && name.contains(".so")
}

/// What to put before a command that needs root: nothing as root, sudo otherwise.
fn root_prefix(names: &[&str]) -> Result<Vec<String>, Failure> {
    if program("apt-get").is_none() {
        return Err(Failure::new(format!(
            "no apt-get here; install by hand what Debian calls: {}; then run this again",
            names.join(" ")
        )));
    }
    if step::output(Command::new("id").arg("-u")).is_some_and(|id| id.trim() == "0") {
        return Ok(Vec::new());
    }
    let by_hand = format!("apt-get install -y {}", names.join(" "));
    if program("sudo").is_none() {
        return Err(Failure::new(format!("not root and no sudo; run as root: {by_hand}")));
    }
    // With the terminal at hand sudo may ask for the password; without one it must not wait for it.
    let mut sudo = Command::new("sudo");
    let allowed = if std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        sudo.arg("-v").status().is_ok_and(|status| status.success())
    } else {
        sudo.args(["-n", "true"]).status().is_ok_and(|status| status.success())
    };
    if !allowed {
        return Err(Failure::new(format!("sudo refused; run as root: {by_hand}")));
    }
    Ok(vec!["sudo".to_owned(), "-n".to_owned()])
}

fn apt(root: &[String], words: &[&str]) -> Command {
    let mut all: Vec<&str> = root.iter().map(String::as_str).collect();
    all.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    all.extend(words);
    let mut command = Command::new(all[0]);
    command.args(&all[1..]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_present_only_if_it_can_be_run() {
        assert!(is_present(Probe::Program("sh")));
        assert!(!is_present(Probe::Program("cgn-no-such-program")));
        assert!(!is_executable(Path::new("/etc/passwd")));
    }

    #[test]
    fn the_cpp_library_is_not_the_c_one() {
        for (name, is_it) in [
            ("libclang.so", true),
            ("libclang.so.1", true),
            ("libclang-14.so.14.0.6", true),
            ("libclang-cpp.so.14", false),
            ("libclang_rt.asan.a", false),
        ] {
            assert_eq!(is_libclang(name), is_it, "{name}");
        }
    }
}
