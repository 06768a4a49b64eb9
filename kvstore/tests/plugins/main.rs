//! The plug-ins for vLLM and SGLang, against the real daemon: Python programs that start and kill it themselves.
//!
//! The engines' own classes are stood in for by `standin_vllm.py` and `standin_sglang.py`, written after their
//! documentation; `real_vllm.py` needs a vLLM, named by `CGN_VLLM`, and is ignored where all tests run.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The newest `cdylib` of the package `kvclient`, which cargo builds with the `rlib` these tests link.
fn library() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let library = deps.join("libkvclient.so");
    assert!(library.is_file(), "{} is not built", library.display());
    library
}

/// Runs one of the programs beside this file.
fn succeeds(python: &Path, program: &str) {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(python);
    command
        .arg(package.join("tests/plugins").join(program))
        .env("PYTHONPATH", package.join("client/python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("COGNITORA_KV_LIB", library())
        .env("CGN_KVCACHED", env!("CARGO_BIN_EXE_cgn-kvcached"));
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {} is not installed", python.display());
            return;
        }
        Err(error) => panic!("{command:?}: {error}"),
    };
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{out}\n{err}");
    println!("{err}");
}

#[test]
fn a_link_comes_back_and_a_worker_is_bounded() {
    succeeds(Path::new("python3"), "link.py");
}

#[test]
fn vllm_stores_and_loads_and_goes_on_without_the_daemon() {
    succeeds(Path::new("python3"), "vllm_tier.py");
}

#[test]
fn sglang_stores_and_loads_and_goes_on_without_the_daemon() {
    succeeds(Path::new("python3"), "sglang_hicache.py");
}

#[test]
#[ignore = "needs a vLLM: CGN_VLLM names its program"]
fn a_real_vllm_tiers_through_the_daemon() {
    let program = PathBuf::from(std::env::var_os("CGN_VLLM").unwrap());
    let python = program.parent().unwrap().join("python3");
    assert!(python.is_file(), "{} is not there", python.display());
    succeeds(&python, "vllm_tier.py");
    succeeds(&python, "real_vllm.py");
}
