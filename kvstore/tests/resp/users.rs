//! Who comes in, who may what, and what happens when the file of users changes.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::Daemon;

/// `printf %s secret | sha256sum`
const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

fn user(name: &str, may: &str, namespace: &str) -> String {
    format!(
        "[[user]]\nname = \"{name}\"\npassword_sha256 = \"{SECRET}\"\nmay = [{may}]\n\
         namespace = \"{namespace}\"\n"
    )
}

fn write(folder: &Path) {
    let users = [
        user("default", "\"read\", \"write\"", "one"),
        user("reader", "\"read\"", "one"),
        user("other", "\"read\", \"write\", \"admin\"", "two"),
    ];
    std::fs::write(folder.join("users.toml"), users.concat()).unwrap();
}

fn start() -> Daemon {
    Daemon::on(1, "users_file = \"FOLDER/users.toml\"\n", write)
}

#[test]
fn nobody_does_anything_before_a_login() {
    let daemon = start();
    let mut client = daemon.connect();
    for words in ["GET a", "SET a v", "PING", "INFO", "FOO", "SELECT 1", "CLIENT LIST", "SCAN 0"] {
        client.ask(words, "-NOAUTH Authentication required.\r\n");
    }
    client.command(&["HELLO", "3"]);
    assert!(client.line().starts_with("-NOAUTH HELLO must be called"));
    client.ask("AUTH wrong", "-WRONGPASS invalid username-password pair or user is disabled.\r\n");
    client.ask("GET a", "-NOAUTH Authentication required.\r\n");
    client.ask("AUTH secret", "+OK\r\n");
    client.ask("SET a v", "+OK\r\n");
    let mut stranger = daemon.connect();
    stranger.send("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$16385\r\n");
    assert_eq!(stranger.rest(), b"-ERR Protocol error: unauthenticated bulk length\r\n");
}

#[test]
fn users_do_what_they_may_in_their_namespace() {
    let daemon = start();
    let (mut writer, mut reader, mut other) =
        (daemon.connect(), daemon.connect(), daemon.connect());
    writer.ask("AUTH secret", "+OK\r\n");
    reader.ask("AUTH reader secret", "+OK\r\n");
    other.command(&["HELLO", "2", "AUTH", "other", "secret"]);
    assert_eq!(other.line(), "*14");
    while other.line() != "modules" {}
    other.expect("*0\r\n");
    writer.ask("SET a v", "+OK\r\n");
    reader.ask("GET a", "$1\r\nv\r\n");
    for words in ["SET a w", "DEL a", "SETNX b v", "MSET b v"] {
        let name = words.split(' ').next().unwrap().to_lowercase();
        let error =
            format!("-NOPERM User reader has no permissions to run the '{name}' command\r\n");
        reader.ask(words, error);
    }
    writer
        .ask("FLUSHDB", "-NOPERM User default has no permissions to run the 'flushdb' command\r\n");
    other.ask("EXISTS a", ":0\r\n");
    other.ask("FLUSHDB", "+OK\r\n");
    reader.ask("GET a", "$1\r\nv\r\n");
    reader.ask("RESET", "+RESET\r\n");
    reader.ask("GET a", "-NOAUTH Authentication required.\r\n");
}

#[test]
fn who_guesses_is_cut_off() {
    let daemon = start();
    let mut client = daemon.connect();
    for _ in 0..8 {
        client.ask(
            "AUTH reader guess",
            "-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        );
    }
    assert_eq!(client.rest(), b"");
}

#[test]
fn who_does_not_log_in_in_time_is_cut_off() {
    let daemon = Daemon::on(1, "users_file = \"FOLDER/users.toml\"\nlogin_s = 1\n", write);
    let (mut silent, mut client) = (daemon.connect(), daemon.connect());
    client.ask("AUTH secret", "+OK\r\n");
    assert_eq!(silent.rest(), b"");
    client.ask("PING", "+PONG\r\n");
}

#[test]
fn a_user_that_leaves_the_file_is_out_at_once_and_a_bad_file_changes_nothing() {
    let daemon = start();
    let (mut reader, mut writer) = (daemon.connect(), daemon.connect());
    reader.ask("AUTH reader secret", "+OK\r\n");
    writer.ask("AUTH secret", "+OK\r\n");
    let process = Pid::from_raw(daemon.child.id().try_into().unwrap());
    std::fs::write(daemon.file("users.toml"), "[[user]]\nname = 5\n").unwrap();
    kill(process, Signal::SIGHUP).unwrap();
    // No answer tells that the file was refused; the next reload is behind it in any case.
    reader.ask("EXISTS a", ":0\r\n");
    std::fs::write(daemon.file("users.toml"), user("default", "\"read\", \"write\"", "one"))
        .unwrap();
    kill(process, Signal::SIGHUP).unwrap();
    loop {
        reader.command(&["EXISTS", "a"]);
        match reader.line().as_str() {
            ":0" => std::thread::yield_now(),
            line => break assert_eq!(line, "-NOAUTH Authentication required."),
        }
    }
    writer.ask("SET a v", "+OK\r\n");
    reader.ask(
        "AUTH reader secret",
        "-WRONGPASS invalid username-password pair or user is disabled.\r\n",
    );
}
