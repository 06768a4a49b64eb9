//! Other gateways, as users install them, before the same engines and measured in the same run.
//!
//! They lie in `$CGN_PEERS` (default: `peers/` in the cache folder), one virtual environment each, named
//! `<package>-<version>`. What is missing or does not start is left out, with a line that says so.

use std::path::{Path, PathBuf};

use crate::house::KEY;
use crate::proxies::Proxy;
use crate::rounds::{ANSWERS, Plan, STREAMS};
use crate::stage::{PROXY_CORE, Running, Stage, free_port, pinned, start};
use crate::table::{self, Answers, Bar, Streams, of};
use crate::{streams, wrk};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ours(Proxy),
    Sglang(&'static str),
    Vllm(&'static str),
    Litellm,
}

/// It takes 10 ms of CPU a request; more would only wait.
const LITELLM_CONNECTIONS: u32 = 4;

const ROWS: [Kind; 9] = [
    Kind::Ours(Proxy::Direct),
    Kind::Ours(Proxy::Nginx),
    Kind::Ours(Proxy::Everything),
    Kind::Ours(Proxy::KvText),
    Kind::Sglang("cache_aware"),
    Kind::Sglang("round_robin"),
    Kind::Vllm("cache_aware"),
    Kind::Vllm("round_robin"),
    Kind::Litellm,
];

impl Kind {
    fn name(self) -> String {
        match self {
            Kind::Ours(proxy) => proxy.name().to_owned(),
            Kind::Sglang(policy) => format!("sglang-router, {policy}"),
            Kind::Vllm(policy) => format!("vllm-router, {policy}"),
            Kind::Litellm => format!("LiteLLM, {LITELLM_CONNECTIONS} connections at most"),
        }
    }

    fn connections(self, wanted: u32) -> u32 {
        if self == Kind::Litellm { wanted.min(LITELLM_CONNECTIONS) } else { wanted }
    }

    fn start(self, stage: &Stage) -> Result<Running, String> {
        match self {
            Kind::Ours(proxy) => proxy.start(stage),
            Kind::Sglang(policy) => router(stage, "sglang-router", policy),
            Kind::Vllm(policy) => router(stage, "vllm-router", policy),
            Kind::Litellm => litellm(stage),
        }
    }
}

/// Runs it; the tables as Markdown.
pub fn run(stage: &Stage, plan: Plan) -> Result<String, String> {
    let mut rows = Vec::new();
    let mut text = String::new();
    for kind in ROWS {
        match kind.start(stage) {
            Ok(_) => rows.push(kind),
            Err(error) => text.push_str(&format!("\n{}: skipped, {error}\n", kind.name())),
        }
    }
    let mut answers = Vec::new();
    for (case, prompt_bytes, connections) in ANSWERS {
        let measure = |kind: Kind, running: &Running| {
            let (fields, seconds) = (&[], plan.seconds);
            let connections = kind.connections(connections);
            wrk::measure(stage, running, wrk::Load { prompt_bytes, connections, fields, seconds })
        };
        answers.push(Answers { case, rows: each(stage, plan, &rows, case, &mut text, measure) });
    }
    let mut streamed = Vec::new();
    for (case, connections, tokens, pause_ms) in STREAMS {
        let measure = |kind: Kind, running: &Running| {
            let (fields, seconds) = (&[], plan.seconds);
            let connections = kind.connections(connections as u32) as usize;
            let load = streams::Load { connections, tokens, pause_ms, fields, seconds };
            streams::measure(running, load)
        };
        streamed.push(Streams { case, rows: each(stage, plan, &rows, case, &mut text, measure) });
    }
    text.push_str(&table::answers(&answers));
    text.push_str(&table::streams(&streamed));
    text.push_str(&table::bars(&bars(&answers)));
    Ok(text)
}

fn each<T>(
    stage: &Stage,
    plan: Plan,
    kinds: &[Kind],
    case: &str,
    notes: &mut String,
    measure: impl Fn(Kind, &Running) -> Result<T, String>,
) -> Vec<(String, Vec<T>)> {
    let mut rows: Vec<_> = kinds.iter().map(|kind| (kind.name(), Vec::new())).collect();
    for round in 0..plan.rounds {
        for (kind, (name, runs)) in kinds.iter().zip(&mut rows) {
            eprintln!("{case} · {name} · round {}/{}", round + 1, plan.rounds);
            match kind.start(stage).and_then(|running| measure(*kind, &running)) {
                Ok(measured) => runs.push(measured),
                Err(error) => notes.push_str(&format!("\n{case}, {name}: {error}\n")),
            }
        }
    }
    rows.retain(|(_, runs)| !runs.is_empty());
    rows
}

fn bars(answers: &[Answers]) -> Vec<Bar> {
    let peers = [
        (Kind::Sglang("cache_aware"), 0.25),
        (Kind::Vllm("cache_aware"), 0.25),
        (Kind::Litellm, 0.01),
    ];
    let mut bars = Vec::new();
    for ours in [Proxy::Everything, Proxy::KvText] {
        for (kind, ratio_max) in peers {
            for Answers { case, rows } in answers.iter().take(2) {
                let cpu = |name: &str| of(rows, name, |m: &wrk::Measured| m.cpu_us);
                let what = format!("CPU per request, {case}, {} ÷ {}", ours.name(), kind.name());
                let ratio = cpu(ours.name()) / cpu(&kind.name());
                bars.push(Bar { what, ratio, ratio_max });
            }
        }
    }
    bars.retain(|bar| bar.ratio.is_finite());
    bars
}

fn router(stage: &Stage, package: &str, policy: &str) -> Result<Running, String> {
    let program = folder(package)?.join("bin").join(package);
    let port = free_port()?;
    let mut command = pinned(PROXY_CORE, &program.display().to_string());
    // The older of the two has a word for launching.
    if package == "sglang-router" {
        command.arg("launch");
    }
    command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--worker-urls"]);
    command.args(stage.engine_ports().map(|engine| format!("http://127.0.0.1:{engine}")));
    command.args(["--policy", policy, "--prometheus-port", &free_port()?.to_string()]);
    command.args(["--log-level", "error"]);
    quiet(&mut command, stage, package)?;
    settle(start(&mut command, port)?)
}

fn litellm(stage: &Stage) -> Result<Running, String> {
    let program = folder("litellm")?.join("bin/litellm");
    let port = free_port()?;
    let config = format!(
        "model_list:\n{}general_settings:\n  master_key: {KEY}\nlitellm_settings:\n  num_retries: 0\n  telemetry: false\n",
        stage
            .engine_ports()
            .map(|engine| format!(
                "  - model_name: m\n    litellm_params:\n      model: openai/m\n      api_base: http://127.0.0.1:{engine}/v1\n      api_key: none\n"
            ))
            .concat()
    );
    let config = stage.write("litellm.yaml", config)?;
    let mut command = pinned(PROXY_CORE, &program.display().to_string());
    command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--config"]).arg(config);
    command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True").env("LITELLM_LOG", "ERROR");
    quiet(&mut command, stage, "litellm")?;
    settle(start(&mut command, port)?)
}

/// What they say goes to a file; they must not leave the machine for anything.
fn quiet(command: &mut std::process::Command, stage: &Stage, name: &str) -> Result<(), String> {
    let log = std::fs::File::create(stage.path(&format!("{name}.log")));
    command.stderr(log.map_err(|e| e.to_string())?);
    command.env("HF_HUB_OFFLINE", "1").env("DO_NOT_TRACK", "1").env("NO_PROXY", "*");
    Ok(())
}

/// They accept before they know their workers.
fn settle(running: Running) -> Result<Running, String> {
    let settled = crate::client::run(|| async {
        for _ in 0..100 {
            if let Ok(mut connection) = crate::client::Connection::open(running.port).await {
                let body =
                    "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";
                let sent = connection.send(crate::client::request(KEY, &[], body)).await;
                if sent.is_ok() && connection.answer().await.is_ok_and(|status| status == 200) {
                    return true;
                }
            }
            monoio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        false
    })?;
    if settled { Ok(running) } else { Err("it does not answer a chat request".to_owned()) }
}

fn folder(package: &str) -> Result<PathBuf, String> {
    let root = std::env::var_os("CGN_PEERS").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").unwrap_or_default();
        Path::new(&home).join(".cache/cognitora/peers")
    });
    let entries = std::fs::read_dir(&root).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.join("bin").is_dir())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.strip_prefix(package).is_some_and(|rest| rest.starts_with('-'))
        })
        .ok_or_else(|| {
            format!("it is not in {}; `cargo xtask bench -- --peers` installs it", root.display())
        })
}
