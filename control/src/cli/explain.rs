//! `cgnctl route explain`: why a request would go where it would go. The router that is attached to
//! control decides, exactly as for a client, but sends nothing.

use std::path::PathBuf;

use clap::Args;
use dataplane::wire::{Candidate, Explanation, ScoreWeights};
use serde_json::{Map, Value, json};

use super::connect::Control;
use super::output::{Table, print};
use super::{Failure, Global};
use crate::api::ExplainRouteRequest;
use crate::weights;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Options of `route explain`.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The model asked for; not needed when --body names one.
    #[arg(long, required_unless_present = "body")]
    model: Option<String>,
    #[command(flatten)]
    ask: Ask,
    /// Decide by these weights instead of those in force.
    #[arg(long, value_name = "kv=…,load=…,power=…,capacity=…")]
    weights: Option<ScoreWeights>,
    /// Decide by this temperature.
    #[arg(long, value_name = "T", value_parser = super::weights::temperature)]
    temperature: Option<f64>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Ask {
    /// The prompt of a /v1/completions request.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A JSON file with the messages of a /v1/chat/completions request.
    #[arg(long, value_name = "FILE")]
    messages: Option<PathBuf>,
    /// A JSON file with a whole request; it is a chat request if it has `messages`.
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
}

/// Asks and prints the table.
pub(super) async fn run(global: &Global, explain: &Explain) -> Result<(), Failure> {
    let (path, body) = request(explain)?;
    let call = ExplainRouteRequest {
        path: path.to_owned(),
        body: body.to_string(),
        weights: explain.weights.map(weights::to_api),
        temperature: explain.temperature,
    };
    let answer = Control::connect(global).await?.explain(call).await?;
    let explanation: Explanation = serde_json::from_str(&answer).map_err(|error| {
        Failure::Failed(format!("control's answer is of another version than cgnctl: {error}"))
    })?;
    print(global.output, &explanation, render)
}

fn request(explain: &Explain) -> Result<(&'static str, Value), Failure> {
    let Ask { prompt, messages, body } = &explain.ask;
    let model = &explain.model;
    if let Some(prompt) = prompt {
        return Ok((COMPLETIONS, json!({ "model": model, "prompt": prompt })));
    }
    if let Some(file) = messages {
        let messages = match read(file)? {
            Value::Object(mut whole) if whole.contains_key("messages") => whole.remove("messages"),
            other => Some(other),
        };
        return Ok((CHAT, json!({ "model": model, "messages": messages })));
    }
    let Some(file) = body else {
        return Err(Failure::Usage("give one of --prompt, --messages and --body".to_owned()));
    };
    let mut body: Map<String, Value> = match read(file)? {
        Value::Object(body) => body,
        _ => return Err(Failure::Usage(format!("{}: not a JSON object", file.display()))),
    };
    if let Some(model) = model {
        body.insert("model".to_owned(), json!(model));
    }
    let path = if body.contains_key("messages") { CHAT } else { COMPLETIONS };
    Ok((path, Value::Object(body)))
}

fn read(file: &PathBuf) -> Result<Value, Failure> {
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::Usage(format!("{}: {error}; give a readable JSON file", file.display()))
    };
    let text = std::fs::read_to_string(file).map_err(|error| wrong(&error))?;
    serde_json::from_str(&text).map_err(|error| wrong(&error))
}

fn render(explanation: &Explanation) -> String {
    let weights = &explanation.weights;
    let mut table = Table::new([
        "",
        "WORKER",
        "PREFIX",
        "SOURCE",
        "FETCH",
        "QUEUE",
        "IN FLIGHT",
        "KV",
        "LOAD",
        "POWER",
        "CAPACITY",
        "COST",
        "NOTE",
    ]);
    for candidate in &explanation.candidates {
        table.row(candidate_row(candidate, &explanation.picked));
    }
    let unit = match explanation.unit.as_str() {
        "tokens" => "exact tokens",
        "text" => "text, tokens estimated",
        _ => "prefix unknown",
    };
    let tokenizer = match explanation.tokenizer.as_str() {
        "distrusted" => "; the model's files are distrusted: an engine makes other tokens of them",
        "files" => "; by the model's files",
        "engine" => "; by an engine",
        _ => "",
    };
    let picked = match explanation.picked.as_str() {
        "" => "nobody",
        picked => picked,
    };
    let temperature = match explanation.temperature {
        0.0 => String::new(),
        temperature => format!(", temperature {temperature}"),
    };
    format!(
        "model    {}\nprompt   {} tokens, {} whole blocks ({unit}{tokenizer})\n\
         weights  kv {:.2}, load {:.2}, power {:.2}, capacity {:.2}{temperature}; costs and queues in ms, the least is picked\n\
         picked   {picked}\nreason   {}\n\n{table}",
        explanation.model,
        explanation.prompt_tokens,
        explanation.prompt_blocks,
        weights.kv,
        weights.load,
        weights.power,
        weights.capacity,
        explanation.reason,
    )
}

fn candidate_row(candidate: &Candidate, picked: &str) -> [String; 13] {
    let term = |value: f64| format!("{value:.2}");
    [
        if candidate.worker == picked { "*" } else { "" }.to_owned(),
        candidate.worker.clone(),
        candidate.prefix_tokens.to_string(),
        // One word, so that columns stay columns.
        candidate.source.replace(' ', "-"),
        candidate.fetch_tokens.to_string(),
        term(candidate.queued_ms),
        in_flight(candidate),
        term(candidate.kv),
        term(candidate.load),
        term(candidate.power),
        term(candidate.capacity),
        term(candidate.cost),
        candidate.excluded_because.clone(),
    ]
}

/// Of its slots; what other routers gave stands behind a plus.
fn in_flight(candidate: &Candidate) -> String {
    let Candidate { inflight, inflight_others, slots, .. } = candidate;
    match inflight_others {
        0 => format!("{inflight}/{slots}"),
        others => format!("{}+{others}/{slots}", inflight.saturating_sub(*others)),
    }
}
