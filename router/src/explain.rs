//! `route explain`: the table behind one decision, from the same functions that make it.

use dataplane::route::pick::{self, Because, Picked, Scale};
use dataplane::wire::{Candidate as Row, Explanation, WeightsError};

use crate::candidates::{self, Tried, gather};
use crate::cluster::ModelView;
use crate::error::RequestError;
use crate::openai::Endpoint;
use crate::parse;
use crate::shard::Shard;
use crate::steering::{Steering, rules};
use crate::tokenize::{self, Cut, Prefix};

/// Decides for `body` as for a client's request, but sends nothing and learns nothing.
///
/// # Errors
/// One line, the same a client would read.
pub async fn explain(
    shard: &Shard,
    path: &str,
    body: &str,
    steering: &Steering,
) -> Result<Explanation, String> {
    if steering.weights.is_some_and(|weights| !weights.is_valid()) {
        return Err(WeightsError.to_string());
    }
    let endpoint =
        Endpoint::at(path).ok_or_else(|| format!("{path} is not an endpoint that is routed"))?;
    let call = parse::json_call(endpoint, body.as_bytes()).map_err(|error| error.to_string())?;
    let view = shard.cluster.view().clone();
    let unknown = || RequestError::ModelNotFound(call.model.clone()).to_string();
    let model = view.models.get(&call.model).ok_or_else(unknown)?;
    let prefix = tokenize::prefix(shard, model, &call, body.as_bytes()).await;
    let (candidates, overlaps) = gather(shard, model, endpoint, &prefix, &Tried::default());
    let request = candidates::request(shard, model, &prefix, steering);
    let (rules, _) = rules(&shard.cluster, &view, steering);
    let scale = Scale::of(&candidates, &request, &rules);
    // The seed only breaks exact ties; the next request will have another.
    let picked = pick::worker(&candidates, &request, &rules, 0);
    let now_ms = shard.now_ms();
    let mut rows: Vec<Row> = model
        .workers
        .iter()
        .zip(candidates.iter().zip(&overlaps))
        .map(|(view, (candidate, overlap))| {
            let terms = scale.terms(candidate);
            let others = view.life.others.at(now_ms);
            Row {
                worker: view.worker.id.clone(),
                eligible: candidate.excluded.is_none(),
                excluded_because: candidate.excluded.map_or("", |e| e.as_str()).to_owned(),
                source: overlap.source.as_str().to_owned(),
                prefix_tokens: candidate.held.total(),
                fetch_tokens: candidate.held.total() - candidate.held.gpu_tokens,
                queued_ms: candidate.queued_ms,
                queued_others_ms: others.left_ms(now_ms as f64).min(candidate.queued_ms),
                inflight: candidate.inflight,
                inflight_others: others.load.inflight.min(candidate.inflight),
                slots: candidate.slots,
                kv: terms.kv,
                load: terms.load,
                power: terms.power,
                capacity: terms.capacity,
                cost: terms.cost(),
            }
        })
        .collect();
    let reason = picked.map_or_else(|| NOBODY.to_owned(), |picked| reason(picked, &rows));
    let picked = picked.map(|picked| rows[picked.at].worker.clone()).unwrap_or_default();
    rows.sort_by(|a, b| b.eligible.cmp(&a.eligible).then(a.cost.total_cmp(&b.cost)));
    Ok(Explanation {
        model: call.model.clone(),
        unit: prefix.cut.as_str().to_owned(),
        prompt_tokens: prefix.prompt_tokens,
        prompt_blocks: prefix.digests.len() as u64,
        weights: rules.weights,
        temperature: rules.temperature,
        tokenizer: tokenizer(shard, model, &prefix).to_owned(),
        reason,
        picked,
        candidates: rows,
    })
}

/// What made the prompt's tokens, and whether the model's own files are out of use.
fn tokenizer(shard: &Shard, model: &ModelView, prefix: &Prefix) -> &'static str {
    let folders = model.workers.iter().filter_map(|view| view.worker.model_files.as_deref());
    match shard.shelf.of(&model.name, folders) {
        Some(tokenizer) if tokenizer.is_distrusted() => "distrusted",
        Some(_) if prefix.cut == Cut::Tokens => "files",
        None if prefix.cut == Cut::Tokens => "engine",
        _ => "none",
    }
}

const NOBODY: &str = "no worker can take it now";

/// One sentence for a person.
fn reason(picked: Picked, rows: &[Row]) -> String {
    let chosen = &rows[picked.at];
    let others = || rows.iter().filter(|row| row.eligible && row.worker != chosen.worker);
    match picked.because {
        Because::Only => "the only worker that can take it".to_owned(),
        Because::Tie => {
            let tied =
                others().filter(|row| (row.cost - chosen.cost).abs() <= pick::TIE_MS).count();
            format!(
                "tied with {tied} other(s) within {} ms: the least loaded, then the least recently chosen",
                pick::TIE_MS
            )
        }
        Because::Session => "its session was there before".to_owned(),
        Because::Drawn => "drawn at random, as the temperature asks".to_owned(),
        Because::Cheapest => match others().map(|row| row.prefix_tokens).max() {
            Some(most) if chosen.prefix_tokens > most => {
                format!("it holds {} tokens of the prompt", chosen.prefix_tokens)
            }
            Some(most) if chosen.prefix_tokens < most => format!(
                "its queue is shorter by more than computing {} tokens again",
                most - chosen.prefix_tokens
            ),
            _ => "the least loaded".to_owned(),
        },
    }
}
