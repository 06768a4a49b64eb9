//! One measurement: `wrk` for some seconds, and the proxy's CPU time meanwhile.

use std::fs;

use crate::cpu;
use crate::engine::STREAM_TOKENS;
use crate::proxies::{LOAD_CORE, Running, Stage, pinned};

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// 1 KB prompt, 64 connections, not streamed.
    Small,
    /// 32 KB prompt, 64 connections, not streamed.
    Large,
    /// 64 connections, 64 paced tokens each.
    Stream,
    /// 1 KB prompt, one connection: latency.
    Latency,
}

impl Case {
    /// In the order of the table.
    pub const ALL: [Case; 4] = [Case::Small, Case::Large, Case::Stream, Case::Latency];

    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Case::Small => "1 KB, 64 connections",
            Case::Large => "32 KB, 64 connections",
            Case::Stream => "64-token stream, 64 connections",
            Case::Latency => "1 KB, 1 connection",
        }
    }

    fn prompt_bytes(self) -> usize {
        match self {
            Case::Large => 32 << 10,
            _ => 1 << 10,
        }
    }

    fn connections(self) -> u32 {
        match self {
            Case::Latency => 1,
            _ => 64,
        }
    }
}

/// What one run gave.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// CPU time of the proxy per request; 0 without one.
    pub cpu_us: f64,
    /// Latency as `wrk` saw it.
    pub p50_us: f64,
    /// Latency as `wrk` saw it.
    pub p99_us: f64,
    /// Requests completed per second.
    pub per_second: f64,
}

/// Different prompts in rotation, so that nothing is answered from a cache of one.
const PROMPTS: usize = 64;

/// Loads `proxy` for `seconds`, after a second of warm-up.
pub fn measure(
    stage: &Stage,
    proxy: &Running,
    case: Case,
    seconds: u32,
) -> Result<Measured, String> {
    let script = stage.path("load.lua");
    fs::write(&script, lua(case)).map_err(|e| e.to_string())?;
    let wrk = |seconds: u32| -> Result<String, String> {
        let output = pinned(LOAD_CORE, "wrk")
            .args(["-t1", "--latency", &format!("-c{}", case.connections())])
            .args([&format!("-d{seconds}s"), "-s"])
            .arg(&script)
            .arg(format!("http://127.0.0.1:{}", proxy.port))
            .stdout(std::process::Stdio::piped())
            .output()
            .map_err(|e| e.to_string())?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    wrk(1)?;
    let used = || proxy.pid.map_or(Ok(0), cpu::used_ns);
    let before = used()?;
    let text = wrk(seconds)?;
    let after = used()?;
    read(&text, after - before)
}

fn read(text: &str, cpu_ns: u64) -> Result<Measured, String> {
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(format!("the run had errors:\n{text}"));
    }
    let word = |line_start: &str, at: usize| {
        text.lines()
            .map(str::trim)
            .find(|line| line.starts_with(line_start))
            .and_then(|line| line.split_whitespace().nth(at))
            .ok_or_else(|| format!("wrk did not say `{line_start}`:\n{text}"))
    };
    let requests: f64 = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ").map(|(count, _)| count))
        .and_then(|count| count.parse().ok())
        .ok_or_else(|| format!("wrk did not count requests:\n{text}"))?;
    Ok(Measured {
        cpu_us: cpu_ns as f64 / 1_000.0 / requests.max(1.0),
        p50_us: time_us(word("50%", 1)?)?,
        p99_us: time_us(word("99%", 1)?)?,
        per_second: word("Requests/sec:", 1)?.parse().map_err(|e| format!("{e}"))?,
    })
}

fn time_us(text: &str) -> Result<f64, String> {
    let (number, scale) = if let Some(number) = text.strip_suffix("us") {
        (number, 1.0)
    } else if let Some(number) = text.strip_suffix("ms") {
        (number, 1_000.0)
    } else {
        (text.trim_end_matches('s'), 1_000_000.0)
    };
    number.parse::<f64>().map(|n| n * scale).map_err(|e| format!("{text}: {e}"))
}

fn lua(case: Case) -> String {
    let stream = if case == Case::Stream {
        format!(",\\\"stream\\\":true,\\\"max_tokens\\\":{STREAM_TOKENS}")
    } else {
        String::new()
    };
    format!(
        r#"local requests, at = {{}}, 0
init = function(args)
  for i = 1, {PROMPTS} do
    local text = string.rep("conversation " .. i .. " has its own words; ", math.floor({bytes} / 36))
    local body = "{{\"model\":\"m\"{stream},\"messages\":[{{\"role\":\"user\",\"content\":\"" .. text .. "\"}}]}}"
    requests[i] = wrk.format("POST", "/v1/chat/completions", {{["content-type"] = "application/json"}}, body)
  end
end
request = function()
  at = at % {PROMPTS} + 1
  return requests[at]
end
"#,
        bytes = case.prompt_bytes(),
    )
}
