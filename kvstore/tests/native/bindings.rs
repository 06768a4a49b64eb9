//! The C and the Python client, against the real daemon.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon::Daemon;

/// The `cdylib` of the package `kvclient`, which cargo builds with the `rlib` these tests link: the newest
/// beside this test.
fn library() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let library = deps.join("libkvclient.so");
    assert!(library.is_file(), "{} is not built", library.display());
    library
}

fn client_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("client")
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{out}\n{err}");
}

#[test]
fn a_c_program_uses_every_call() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/native/program.c");
    succeeds(
        Command::new("cc")
            .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-o"])
            .arg(&program)
            .arg(source)
            .arg("-I")
            .arg(client_folder().join("include"))
            .arg(library()),
    );
    succeeds(Command::new(program).arg(daemon.uds()));
}

#[test]
fn a_python_program_uses_every_call() {
    let daemon = Daemon::start();
    succeeds(
        Command::new("python3")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/native/program.py"))
            .arg(daemon.uds())
            .env("PYTHONPATH", client_folder().join("python"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("COGNITORA_KV_LIB", library()),
    );
}
