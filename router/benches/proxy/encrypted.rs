//! TLS 1.3 and HTTP/2 towards the client, for orientation: `h2load`, the same requests as elsewhere.

use std::process::Stdio;

use crate::house::{House, KEY};
use crate::nginx;
use crate::stage::{LOAD_CORE, Running, Stage, pinned};
use crate::table::median_of;

/// Kept connections.
const CONNECTIONS: u32 = 64;

#[derive(Clone, Copy)]
enum Talk {
    Http1,
    Http2,
}

/// Runs it; the table as Markdown.
pub fn run(stage: &Stage, seconds: u32, rounds: usize) -> Result<String, String> {
    let (certificate, key) = certificate(stage)?;
    let body = format!(
        "{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"{}\"}}]}}",
        "conversation 1 has its own words; ".repeat(30)
    );
    stage.write("body.json", body)?;
    let mut text = String::from(
        "\n| 1 KB, 64 connections, TLS 1.3 | proxy | CPU µs/request | × nginx | requests/s |\n|---|---|--:|--:|--:|\n",
    );
    for (name, talk) in [("HTTP/1.1", Talk::Http1), ("HTTP/2, 1 stream each", Talk::Http2)] {
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let proxy = nginx::encrypted(stage, &certificate, &key)?;
            theirs.push(measure(stage, &proxy, talk, seconds)?);
            drop(proxy);
            let mut house = House::everything(stage);
            house.tls = Some((certificate.clone().into(), key.clone().into()));
            ours.push(measure(stage, &house.start(stage)?, talk, seconds)?);
        }
        let nginx_us = median_of(&theirs, |run| run.0);
        for (proxy, runs) in [("nginx", theirs), ("cgn-router, all on", ours)] {
            let cpu_us = median_of(&runs, |run| run.0);
            text.push_str(&format!(
                "| {name} | {proxy} | {cpu_us:.1} | {:.2} | {:.0} |\n",
                cpu_us / nginx_us,
                median_of(&runs, |run| run.1)
            ));
        }
    }
    Ok(text)
}

fn certificate(stage: &Stage) -> Result<(String, String), String> {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).map_err(|e| e.to_string())?;
    let certificate = stage.write("cert.pem", made.cert.pem())?;
    let key = stage.write("key.pem", made.signing_key.serialize_pem())?;
    Ok((certificate.display().to_string(), key.display().to_string()))
}

/// CPU per request in µs, and requests per second.
fn measure(stage: &Stage, proxy: &Running, talk: Talk, seconds: u32) -> Result<(f64, f64), String> {
    let load = |seconds: u32| -> Result<f64, String> {
        let mut command = pinned(LOAD_CORE, "h2load");
        if matches!(talk, Talk::Http1) {
            command.arg("--h1");
        }
        let output = command
            .args([&format!("-c{CONNECTIONS}"), "-m1", "-t1", &format!("-D{seconds}")])
            .arg("-d")
            .arg(stage.path("body.json"))
            .args(["-H", "content-type: application/json"])
            .args(["-H", &format!("authorization: Bearer {KEY}")])
            .arg(format!("https://127.0.0.1:{}/v1/chat/completions", proxy.port))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .map_err(|e| e.to_string())?;
        succeeded(&String::from_utf8_lossy(&output.stdout))
    };
    load(1)?;
    let before = proxy.cpu_ns()?;
    let requests = load(seconds)?;
    let used = proxy.cpu_ns()? - before;
    Ok((used as f64 / 1_000.0 / requests.max(1.0), requests / f64::from(seconds)))
}

/// `status codes: N 2xx, 0 3xx, 0 4xx, 0 5xx`
fn succeeded(text: &str) -> Result<f64, String> {
    let line = text.lines().find_map(|line| line.strip_prefix("status codes: "));
    let counts: Vec<f64> = line
        .unwrap_or_default()
        .split(", ")
        .filter_map(|part| part.split(' ').next()?.parse().ok())
        .collect();
    match counts.as_slice() {
        [good, 0.0, 0.0, 0.0] if *good > 0.0 => Ok(*good),
        _ => Err(format!("the run had errors:\n{text}")),
    }
}
