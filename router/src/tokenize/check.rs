//! The self-check: some prompts are tokenized by an engine as well, beside the request. One difference and
//! the model's own tokenizer is not used any more: a wrong digest finds nothing, for ever.

use std::sync::Arc;

use super::engine;
use crate::cluster::ModelView;
use crate::parse::Call;
use crate::shard::Shard;
use crate::tokenizer::{Exact, ModelTokenizer};

/// Checks under way, per core; the next prompt that is due goes unchecked.
const CHECKS_MAX: usize = 4;
/// A longer body is not checked: its engine has better things to do.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Checks `exact` if it is due and an engine of `model` can tell.
pub fn maybe(
    shard: &Shard,
    model: &ModelView,
    tokenizer: &Arc<ModelTokenizer>,
    call: &Call,
    body: &[u8],
    exact: &Exact,
) {
    if !tokenizer.is_check_due(shard.config.kv.tokenize_check_share)
        || shard.checks.get() >= CHECKS_MAX
        || body.len() > BODY_BYTES_MAX
    {
        return;
    }
    let worker = engine::that_tokenizes(model, call.endpoint, None, shard.now_ms());
    let (Some(worker), Some(shard)) = (worker, shard.me.upgrade()) else { return };
    shard.checks.set(shard.checks.get() + 1);
    let (tokenizer, call, body) = (Arc::clone(tokenizer), call.clone(), body.to_vec());
    let ours: Vec<u32> = exact.tokens().collect();
    monoio::spawn(async move {
        let theirs = engine::ask(&shard, &worker, &call, &body).await.ok().flatten();
        shard.checks.set(shard.checks.get() - 1);
        let result = match &theirs {
            None => "unanswered",
            Some(theirs) if *theirs == ours => "equal",
            Some(_) => "different",
        };
        shard.stats.tokenizer_checks.with_label_values(&[result]).inc();
        let Some(theirs) = theirs.filter(|_| result == "different") else { return };
        if tokenizer.distrust() {
            let at = first_difference(&ours, &theirs);
            tracing::error!(
                model = call.model,
                worker = worker.worker.id,
                at,
                ours = ?ours.get(at),
                theirs = ?theirs.get(at),
                ours_tokens = ours.len(),
                theirs_tokens = theirs.len(),
                "the model's files give other tokens than its engine; from now on the engine is asked: \
                 compare tokenizer and chat template with the engine's"
            );
        }
    });
}

fn first_difference(ours: &[u32], theirs: &[u32]) -> usize {
    ours.iter().zip(theirs).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(first_difference(&[1, 2, 3], &[1, 9, 3]), 1);
        assert_eq!(first_difference(&[1, 2], &[1, 2, 3]), 2);
        assert_eq!(first_difference(&[], &[1]), 0);
    }
}
