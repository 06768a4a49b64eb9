//! The other gateways that `bench --peers` measures against, from PyPI: one virtual environment each,
//! named by version, in `peers/` of the cache folder. Nothing else installs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{self, Cache};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::step;

/// Package, what pip is asked for, version.
const PEERS: [(&str, &str, &str); 3] = [
    ("sglang-router", "sglang-router", "0.3.2"),
    ("vllm-router", "vllm-router", "0.1.17"),
    ("litellm", "litellm[proxy]", "1.106.2"),
];
/// Written when pip has succeeded: an environment without it is half made.
const DONE: &str = "installed";

/// Installs what is missing; answers the folder they lie in. One that cannot be installed is said and
/// left out: the others can still be measured.
pub fn ensure(cache: &Cache) -> Result<PathBuf, Failure> {
    let root = cache.folder("peers")?;
    let _lock = Cache::lock(&root.join("lock"))?;
    for (name, wanted, version) in PEERS {
        let folder = root.join(format!("{name}-{version}"));
        if folder.join(DONE).is_file() {
            continue;
        }
        if let Err(failure) = install(cache, &folder, &format!("{wanted}=={version}")) {
            eprintln!("{name} {version} cannot be installed and is left out: {failure}");
            cache::remove(&folder)?;
        }
    }
    Ok(root)
}

fn install(cache: &Cache, folder: &Path, wanted: &str) -> Result<(), Failure> {
    cache::remove(folder)?;
    let mut progress = Progress::start(&format!("pip install {wanted}"));
    let log = cache.log("peers")?;
    let mut environment = Command::new("python3");
    environment.args(["-m", "venv"]).arg(folder);
    step::run_quietly(&mut environment, &log, &mut progress)?;
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", wanted]);
    step::run_quietly(&mut pip, &log, &mut progress)?;
    let done = folder.join(DONE);
    std::fs::write(&done, b"").map_err(|error| Failure::at(&done, "write", &error))?;
    progress.done("");
    Ok(())
}
