//! Bad configuration and bad surroundings: one line, the right exit code, nothing left running.

use super::engine::Engine;
use super::process::{Router, free_address, run, worker};

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn an_unknown_key_names_file_line_and_nearest_key() {
    let output = run("[router]\nlisten_htp = \"127.0.0.1:0\"\n");
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("router.toml:2: unknown key `listen_htp`"), "{said}");
    assert!(said.contains("nearest known key is `listen_http`"), "{said}");
    assert_eq!(said.lines().count(), 1);
}

#[test]
fn a_taken_port_is_one_line_that_names_it() {
    let holder = Router::spawn("", &worker(&Engine::ok(), 1));
    let text = format!(
        "[router]\nlisten_http = \"{}\"\nlisten_admin = \"{}\"\n{}",
        holder.http,
        free_address(),
        worker(&Engine::ok(), 1)
    );
    let output = run(&text);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains(&format!("{} is taken", holder.http)), "{said}");
    assert!(said.contains("listen_http"), "{said}");
}

#[test]
fn a_listener_beyond_loopback_is_refused() {
    let output =
        run(&format!("[router]\nlisten_http = \"0.0.0.0:0\"\n{}", worker(&Engine::ok(), 1)));
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("loopback"));
}

#[test]
fn a_missing_file_is_refused() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_cgn-router"))
        .args(["--config", "/nonexistent/router.toml"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("cannot read the configuration"));
}

#[test]
fn sigterm_lets_a_stream_finish_and_exits_with_zero() {
    use super::client::{chat, post};
    use super::engine::{STREAM_HEAD, chunk};
    use std::io::Write;

    let engine = Engine::start(|_, stream| {
        let mut say = |text: &str| stream.write_all(text.as_bytes()).unwrap();
        say(&format!("{STREAM_HEAD}{}", chunk("data: 1\n\n")));
        std::thread::sleep(std::time::Duration::from_millis(600));
        say(&format!("{}0\r\n\r\n", chunk("data: [DONE]\n\n")));
        true
    });
    let mut router = Router::start("", &worker(&engine, 1));
    let mut client = router.client();
    client.send(post("/v1/chat/completions", "", &chat("x")));
    client.until("data: 1");
    router.terminate();
    let rest = client.until("data: [DONE]");
    assert!(!rest.contains("error"), "{rest}");
    assert_eq!(router.wait(), Some(0));
}
