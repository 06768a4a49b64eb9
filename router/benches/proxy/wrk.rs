//! Answers in one piece: `wrk` for some seconds, and the proxy's CPU time meanwhile.

use crate::house::KEY;
use crate::stage::{LOAD_CORE, Running, Stage, pinned};

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Bytes of a prompt.
    pub prompt_bytes: usize,
    /// Kept connections, one request at a time on each.
    pub connections: u32,
    /// Header fields besides content type and key.
    pub fields: &'a [(&'a str, &'a str)],
    /// How long.
    pub seconds: u32,
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

/// Loads `proxy`, after a second of warm-up.
pub fn measure(stage: &Stage, proxy: &Running, load: Load<'_>) -> Result<Measured, String> {
    let script = stage.write("load.lua", lua(load))?;
    let wrk = |seconds: u32| -> Result<String, String> {
        let output = pinned(LOAD_CORE, "wrk")
            .args(["-t1", "--latency", "--timeout=60s", &format!("-c{}", load.connections)])
            .args([&format!("-d{seconds}s"), "-s"])
            .arg(&script)
            .arg(format!("http://127.0.0.1:{}", proxy.port))
            .stdout(std::process::Stdio::piped())
            .output()
            .map_err(|e| e.to_string())?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    wrk(1)?;
    let before = proxy.cpu_ns()?;
    let text = wrk(load.seconds)?;
    let after = proxy.cpu_ns()?;
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

fn lua(load: Load<'_>) -> String {
    let more: String =
        load.fields.iter().map(|(name, value)| format!(", [\"{name}\"] = \"{value}\"")).collect();
    format!(
        r#"local requests, at = {{}}, 0
init = function(args)
  for i = 1, {PROMPTS} do
    local text = string.rep("conversation " .. i .. " has its own words; ", math.floor({bytes} / 36))
    local body = "{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"" .. text .. "\"}}]}}"
    requests[i] = wrk.format("POST", "/v1/chat/completions", {{["content-type"] = "application/json", ["authorization"] = "Bearer {KEY}"{more}}}, body)
  end
end
request = function()
  at = at % {PROMPTS} + 1
  return requests[at]
end
"#,
        bytes = load.prompt_bytes,
    )
}
