//! `route explain`: the table behind one decision, from the same functions that make it.

use dataplane::wire::{Candidate as Row, Explanation};

use crate::candidates::{Tried, gather};
use crate::error::RequestError;
use crate::openai::Endpoint;
use crate::parse;
use crate::pick::{self, Candidate};
use crate::shard::Shard;
use crate::tokenize;

/// Decides for `body` as for a client's request, but sends nothing and learns nothing.
///
/// # Errors
/// One line, the same a client would read.
pub async fn explain(shard: &Shard, path: &str, body: &str) -> Result<Explanation, String> {
    let endpoint =
        Endpoint::at(path).ok_or_else(|| format!("{path} is not an endpoint that is routed"))?;
    let call = parse::json_call(endpoint, body.as_bytes()).map_err(|error| error.to_string())?;
    let view = shard.cluster.view().clone();
    let unknown = || RequestError::ModelNotFound(call.model.clone()).to_string();
    let model = view.models.get(&call.model).ok_or_else(unknown)?;
    let prefix = tokenize::prefix(shard, model, &call, body.as_bytes()).await;
    let weights = view.weights;
    let gathered = gather(shard, model, endpoint, &prefix, &Tried::default());
    let candidates: Vec<Candidate> = gathered.iter().map(|(candidate, _)| *candidate).collect();
    let watts_max = pick::watts_max(&candidates);
    // The seed only breaks exact ties; the next request will have another.
    let picked = pick::worker(&candidates, prefix.prompt_tokens, &weights, 0);
    let mut rows: Vec<Row> = model
        .workers
        .iter()
        .zip(&candidates)
        .map(|(view, candidate)| {
            let terms = pick::terms(candidate, prefix.prompt_tokens, watts_max, &weights);
            Row {
                worker: view.worker.id.clone(),
                eligible: candidate.excluded.is_none(),
                excluded_because: candidate.excluded.map_or("", |e| e.as_str()).to_owned(),
                prefix_tokens: candidate.prefix_tokens,
                inflight: candidate.inflight,
                slots: candidate.slots,
                kv: terms.kv,
                load: terms.load,
                power: terms.power,
                capacity: terms.capacity,
                score: terms.score(),
            }
        })
        .collect();
    let chosen = picked.map(|at| rows[at].clone());
    rows.sort_by(|a, b| b.eligible.cmp(&a.eligible).then(b.score.total_cmp(&a.score)));
    Ok(Explanation {
        model: call.model.clone(),
        unit: prefix.cut.as_str().to_owned(),
        prompt_tokens: prefix.prompt_tokens,
        prompt_blocks: prefix.digests.len() as u64,
        weights,
        reason: reason(chosen.as_ref(), &rows),
        picked: chosen.map(|row| row.worker).unwrap_or_default(),
        candidates: rows,
    })
}

/// One sentence for a person.
fn reason(chosen: Option<&Row>, rows: &[Row]) -> String {
    let Some(chosen) = chosen else {
        return "no worker can take it now".to_owned();
    };
    let others = || rows.iter().filter(|row| row.eligible && row.worker != chosen.worker);
    if others().next().is_none() {
        return "the only worker that can take it".to_owned();
    }
    let tied = others().filter(|row| (row.score - chosen.score).abs() <= pick::TIE_MARGIN).count();
    if tied > 0 {
        return format!(
            "tied with {tied} other(s) within {}: the least loaded, then the least recently chosen",
            pick::TIE_MARGIN
        );
    }
    if chosen.kv > 0.0 {
        return format!("it holds {} tokens of the prompt", chosen.prefix_tokens);
    }
    "the least loaded".to_owned()
}
