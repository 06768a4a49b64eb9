//! Stock clients of the KV daemon's RESP door, into the cache folder: redis-py in a virtual environment, and
//! LMCache's own client, an extension inside its wheel. Nothing is run here; the door's tests find them by
//! the variables of [`variables`].
//!
//! The extension is linked with libtorch but calls nothing of it, so empty libraries of the names it asks for
//! stand in for 2 GB of torch. The rest of LMCache is not unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Tally;
use crate::cache::{self, Cache};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::step;

/// What is installed, below the clone.
const REQUIREMENTS: &str = "kvstore/tests/resp/requirements.txt";
const LMCACHE: &str = "lmcache==0.5.5";
/// Begins the name of the extension's file.
const EXTENSION: &str = "lmcache_redis.";
/// The libraries of torch that the extension names.
const TORCH: &[&str] = &["libc10.so", "libtorch.so", "libtorch_cpu.so", "libtorch_python.so"];
/// Written last: what is there. Without it a folder is a leftover.
const STAMP: &str = "requirements.txt";

/// Installs both once.
pub fn run(cache: &Cache) -> Result<Tally, Failure> {
    let _lock = Cache::lock(&cache.root.join("kv-clients.lock"))?;
    let folder = cache.root.join("kv-clients");
    let requirements = cache.repository.join(REQUIREMENTS);
    let redis = fs::read_to_string(&requirements)
        .map_err(|error| Failure::at(&requirements, "read", &error))?;
    let wanted = format!("{redis}{LMCACHE}\n");
    let python = python(&folder);
    let works = step::output(Command::new(&python).args(["-c", "import redis"])).is_some();
    if works && fs::read_to_string(folder.join(STAMP)).is_ok_and(|there| there == wanted) {
        return Ok(Tally::PASSED);
    }
    let mut progress = Progress::start("install redis-py and LMCache's client (18 MB)");
    let log = cache.log("kv-clients")?;
    cache::remove(&folder)?;
    let mut venv = Command::new("python3");
    step::run_quietly(venv.args(["-m", "venv"]).arg(&folder), &log, &mut progress)?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--no-input", "-r"]).arg(&requirements);
    step::run_quietly(&mut pip, &log, &mut progress)?;
    lmcache(&folder, &log, &mut progress)?;
    let stamp = folder.join(STAMP);
    fs::write(&stamp, wanted).map_err(|error| Failure::at(&stamp, "write", &error))?;
    progress.done(&folder.display().to_string());
    Ok(Tally::PASSED)
}

/// What the door's tests look for; nothing where the stage has not run.
pub fn variables(cache: &Cache) -> Vec<(&'static str, PathBuf)> {
    let folder = cache.root.join("kv-clients");
    if !folder.join(STAMP).is_file() {
        return Vec::new();
    }
    let mut found = vec![("CGN_PYTHON", python(&folder))];
    if let Some(extension) = extension(&folder.join("lmcache")) {
        found.push(("CGN_LMCACHE_REDIS", extension));
        found.push(("CGN_LMCACHE_LIBRARIES", folder.join("torch")));
    }
    found
}

fn python(folder: &Path) -> PathBuf {
    folder.join("bin/python3")
}

/// Unpacks the extension. Where PyPI has no wheel for this Python or machine, the test says that it is skipped.
fn lmcache(folder: &Path, log: &Path, progress: &mut Progress) -> Result<(), Failure> {
    let mut pip = Command::new(python(folder));
    pip.args(["-m", "pip", "download", "--no-deps", "--no-input", "--only-binary", ":all:"]);
    pip.arg(LMCACHE).arg("-d").arg(folder.join("wheel"));
    if step::run_quietly(&mut pip, log, progress).is_err() {
        progress.say(&format!("no wheel of {LMCACHE} for this Python; its client is left out"));
        return Ok(());
    }
    let unpack = "import glob, sys, zipfile\n\
         wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + '/wheel/*.whl')[0])\n\
         names = [name for name in wheel.namelist() if name.startswith('lmcache/lmcache_redis.')]\n\
         wheel.extractall(sys.argv[1], names)\n";
    let mut unzip = Command::new(python(folder));
    step::run_quietly(unzip.args(["-c", unpack]).arg(folder), log, progress)?;
    cache::remove(&folder.join("wheel"))?;
    let torch = folder.join("torch");
    cache::make(&torch)?;
    for name in TORCH {
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-x", "c", "/dev/null", "-o"]).arg(torch.join(name));
        step::run_quietly(&mut cc, log, progress)?;
    }
    Ok(())
}

fn extension(folder: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|file| file.path());
    let is_it = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(EXTENSION))
    };
    let mut found: Vec<PathBuf> = files.filter(is_it).collect();
    found.sort();
    found.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_is_told_from_its_neighbours() {
        let folder = std::env::temp_dir().join(format!("cgn-kv-clients-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(extension(&folder), None);
        fs::write(folder.join("lmcache_fs.cpython-311.so"), "").unwrap();
        fs::write(folder.join("lmcache_redis.cpython-311.so"), "").unwrap();
        assert_eq!(extension(&folder), Some(folder.join("lmcache_redis.cpython-311.so")));
        fs::remove_dir_all(&folder).unwrap();
    }
}
