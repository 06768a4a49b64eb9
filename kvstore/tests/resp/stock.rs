//! Clients that are not ours: redis-cli, redis-py and LMCache's own. Where one is not installed the test
//! says so and checks nothing.
//!
//! redis-py is looked for in the `python3` that `CGN_PYTHON` names; LMCache's client is the extension
//! `lmcache_redis` of its wheel, which `CGN_LMCACHE_REDIS` names (it needs no GPU and no model), with the
//! libraries it is linked with in `CGN_LMCACHE_LIBRARIES`. `cargo xtask test` installs both.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::daemon::{Daemon, value};

fn redis_cli(daemon: &Daemon, words: &[&str], input: &[u8]) -> Option<String> {
    let mut command = Command::new("redis-cli");
    command.arg("-p").arg(daemon.address.port().to_string()).args(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: redis-cli is not installed (Debian: redis-tools)");
            return None;
        }
        Err(error) => panic!("redis-cli: {error}"),
    };
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn redis_cli_stores_scans_and_shows_errors() {
    let daemon = Daemon::start();
    let large = value(1, 20 << 20);
    let Some(said) = redis_cli(&daemon, &["-x", "SET", "large"], &large) else { return };
    assert_eq!(said, "OK\n");
    let said =
        redis_cli(&daemon, &[], b"STRLEN large\nSET a \"x y\"\nGET a\nFOO\nDEL a\n").unwrap();
    assert!(said.starts_with("20971520\nOK\nx y\nERR unknown command 'FOO'"), "{said}");
    assert!(said.ends_with("\n1\n"), "{said}");
    assert_eq!(redis_cli(&daemon, &["--scan", "--pattern", "l*"], b"").unwrap(), "large\n");
    assert!(redis_cli(&daemon, &["-3", "INFO"], b"").unwrap().contains("redis_version:7"));
}

fn python(daemon: &Daemon, script: &str, more: &[(&str, &str)]) {
    let python = std::env::var("CGN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = format!("{}/tests/resp/{script}", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(python)
        .arg(script)
        .arg(daemon.address.port().to_string())
        .envs(more.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}{error}");
    assert!(said.ends_with("ok\n") || said.starts_with("skipped: "), "{said}");
    print!("{said}");
}

#[test]
fn redis_py_stores_and_fetches_by_both_protocols() {
    python(&Daemon::start(), "redis_py.py", &[]);
}

#[test]
fn lmcache_s_own_client_stores_and_fetches() {
    let Ok(extension) = std::env::var("CGN_LMCACHE_REDIS") else {
        println!("skipped: CGN_LMCACHE_REDIS does not name LMCache's lmcache_redis extension");
        return;
    };
    let libraries = std::env::var("CGN_LMCACHE_LIBRARIES").unwrap_or_default();
    let names = [("CGN_LMCACHE_REDIS", &*extension), ("LD_LIBRARY_PATH", &*libraries)];
    python(&Daemon::on(2, "", |_| ()), "lmcache_client.py", &names);
}
