//! Phase *admit*: the caller may, the model is known, somebody serves it, and there is a place, now or
//! soon enough. 401 to 404, 429 or 503 here, or never.
//!
//! [`enter`] checks what needs no waiting and takes one request from the tenant's limits; [`place`]
//! waits for a place once the prompt is known. A [`Ticket`] holds what was taken until it is dropped.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;

use dataplane::route::pick::Exclusion;
use prometheus::IntGauge;

use crate::candidates::{self, Tried};
use crate::cluster::{Cluster, ModelView, View};
use crate::error::RequestError;
use crate::forecast::{Load, Verdict};
use crate::hall::{Called, ModelLife};
use crate::identity::Caller;
use crate::openai::Endpoint;
use crate::parse::Call;
use crate::queue::{Full, Waiting};
use crate::shard::Shard;
use crate::tokenize::Prefix;
use crate::watch::{self, Watch};

/// What a request says of its own urgency.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wishes {
    /// `x-cgn-deadline-ms`: the first token is worth nothing after so many milliseconds.
    pub deadline_ms: Option<u64>,
    /// `x-cgn-priority`: served sooner than others of its tenant; 0 is usual.
    pub priority: f64,
}

/// Leave to go on, with the view the whole request is decided on.
pub struct Ticket {
    view: Arc<View>,
    model: String,
    life: Arc<ModelLife>,
    running: IntGauge,
    cluster: Arc<Cluster>,
    caller: Arc<Caller>,
    /// Since when it holds a place at the model's workers.
    placed: Option<Instant>,
    /// Tokens to count against the tenant at the end.
    pub tokens: Cell<u64>,
}

impl Ticket {
    /// The model asked for.
    pub fn model(&self) -> &ModelView {
        // Checked by `enter`, and a view never changes.
        &self.view.models[&self.model]
    }

    /// The picture the request is decided on.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The same, to keep beyond the request.
    pub fn shared_view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }

    /// Whose request it is.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// What is known of the model beyond one view.
    pub fn life(&self) -> &Arc<ModelLife> {
        &self.life
    }

    /// When the request got its place at the workers.
    pub fn placed(&self) -> Option<Instant> {
        self.placed
    }

    /// Looks again: a retry should see a worker that came back meanwhile.
    pub fn refresh(&mut self) {
        let view = self.cluster.view();
        if view.version != self.view.version && view.models.contains_key(&self.model) {
            self.view = Arc::clone(&view);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cluster.inflight.fetch_sub(1, Relaxed);
        self.running.dec();
        self.caller.tenant.meter.finish(unix_ms(), self.tokens.get());
        if let Some(placed) = self.placed {
            self.life.forecast.observe_service(placed.elapsed().as_secs_f64() * 1_000.0);
            self.life.leave(&self.cluster.bells, self.cluster.now_ms());
        }
    }
}

/// Unix time: what windows of limits are numbered by.
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Counts one request in.
///
/// # Errors
/// [`RequestError::Denied`], [`RequestError::ModelNotFound`], [`RequestError::NotSupported`],
/// [`RequestError::NoneReady`], [`RequestError::Limited`], [`RequestError::Busy`].
pub fn enter(shard: &Shard, call: &Call, caller: Arc<Caller>) -> Result<Ticket, RequestError> {
    let view = shard.cluster.view();
    // A model that a tenant may not use does not exist for it.
    caller.may(call.endpoint.as_str(), &call.model).map_err(|denied| match denied {
        crate::identity::Denied::Model => RequestError::ModelNotFound(call.model.clone()),
        other => RequestError::Denied(other),
    })?;
    let model = view
        .models
        .get(&call.model)
        .ok_or_else(|| RequestError::ModelNotFound(call.model.clone()))?;
    serves(model, call.endpoint, shard.now_ms())?;
    caller.tenant.meter.begin(unix_ms()).map_err(|limit| {
        let labels = [caller.tenant.name.as_str(), limit.kind.as_str()];
        shard.stats.limited.with_label_values(&labels).inc();
        RequestError::Limited(limit)
    })?;
    if !take_place(&shard.cluster.inflight, shard.config.limits.requests_inflight_max) {
        caller.tenant.meter.release();
        return Err(RequestError::Busy("too many requests are in flight", 1));
    }
    shard.stats.requests_running.inc();
    shard.counters.tenant(&shard.stats, &caller.tenant.name).requests.inc();
    Ok(Ticket {
        model: call.model.clone(),
        life: Arc::clone(&model.life),
        view: Arc::clone(&view),
        running: shard.stats.requests_running.clone(),
        cluster: Arc::clone(&shard.cluster),
        caller,
        placed: None,
        tokens: Cell::new(0),
    })
}

/// Takes a place at the model's workers, or waits for one.
///
/// # Errors
/// [`RequestError::Busy`], [`RequestError::DeadlineMissed`], [`RequestError::ClientGone`].
pub async fn place(
    shard: &Shard,
    ticket: &mut Ticket,
    call: &Call,
    prefix: &Prefix,
    wishes: Wishes,
    watch: &Watch,
) -> Result<(), RequestError> {
    let slo_ms = ticket.caller.tenant.ttft_slo_ms;
    let within_ms = wishes.deadline_ms.or((slo_ms > 0).then_some(slo_ms));
    let now_ms = shard.now_ms();
    let places = ticket.model().places(shard.config.limits.requests_per_slot_max, now_ms);
    if within_ms.is_none() && ticket.life.try_enter(places) {
        ticket.placed = Some(Instant::now());
        return Ok(());
    }
    ticket.life.note_places(places);
    let uncached_tokens = uncached_tokens(shard, ticket, call, prefix);
    // Nobody waits: what is known of the model is all there is to ask.
    if let (Some(within_ms), 0) = (within_ms, ticket.life.waiting()) {
        judge(ticket, ticket.life.load(), uncached_tokens, within_ms, now_ms)?;
        if ticket.life.try_enter(places) {
            ticket.placed = Some(Instant::now());
            return Ok(());
        }
    }
    let entry = Waiting {
        id: shard.next_id(),
        tenant: ticket.caller.tenant.name.as_str().into(),
        weight: ticket.caller.tenant.weight,
        // What a request asks for, as far as its tenant may.
        priority: wishes.priority.min(ticket.caller.tenant.priority),
        deadline_ms: within_ms.map(|within_ms| now_ms.saturating_add(within_ms)),
        uncached_tokens,
        arrived_ms: now_ms,
        core: shard.waiters.core(),
    };
    if let Some(within_ms) = within_ms {
        let load = ticket.life.load_ahead_of(&entry);
        judge(ticket, load, uncached_tokens, within_ms, now_ms)?;
    }
    wait(shard, ticket, entry, watch).await
}

/// Refuses a request whose first token would come too late.
fn judge(
    ticket: &Ticket,
    load: Load,
    uncached_tokens: u64,
    within_ms: u64,
    now_ms: u64,
) -> Result<(), RequestError> {
    match ticket.life.forecast.judge(load, uncached_tokens, within_ms, now_ms) {
        Verdict::Admit => Ok(()),
        Verdict::Late { ttft_ms, retry_after_s } => Err(RequestError::DeadlineMissed {
            predicted_ms: ttft_ms as u64,
            within_ms,
            retry_after_s,
        }),
    }
}

async fn wait(
    shard: &Shard,
    ticket: &mut Ticket,
    entry: Waiting,
    watch: &Watch,
) -> Result<(), RequestError> {
    let begun = Instant::now();
    let life = Arc::clone(&ticket.life);
    let retry_after = |load: Load| life.forecast.retry_after_s(load, 0.0, shard.now_ms());
    let called = shard.waiters.wait(&ticket.life, entry.clone(), watch).await;
    let ended = Instant::now();
    shard.strike(ended);
    shard.stats.queue_wait.observe((ended - begun).as_secs_f64());
    match called {
        Ok(Some(Called::Granted)) => {
            ticket.placed = Some(ended);
            Ok(())
        }
        Ok(Some(Called::Expired)) => {
            let within_ms = entry.deadline_ms.unwrap_or(0).saturating_sub(entry.arrived_ms);
            Err(RequestError::DeadlineMissed {
                predicted_ms: within_ms,
                within_ms,
                retry_after_s: retry_after(life.load_ahead_of(&entry)),
            })
        }
        Ok(None) => Err(given_up(shard, ticket, watch)),
        Err(Full::Room | Full::Duplicate) => Err(RequestError::Busy(
            "the queue of this model is full",
            retry_after(life.load_of_all()),
        )),
        Err(Full::Tenant) => Err(RequestError::Busy(
            "you hold your share of this model's queue",
            retry_after(life.load_ahead_of(&entry)),
        )),
    }
}

/// Why the watchdog ended a wait. Only a client that is gone hears nothing.
fn given_up(shard: &Shard, ticket: &Ticket, watch: &Watch) -> RequestError {
    match watch.verdict() {
        Some(watch::Verdict::TooLong) => {
            RequestError::EngineSilent(shard.config.limits.request_s_max)
        }
        Some(watch::Verdict::Drained) => RequestError::NoneReady(ticket.model.clone()),
        _ => {
            shard.stats.clients_gone.inc();
            RequestError::ClientGone
        }
    }
}

/// Prompt tokens that the best worker would have to compute, as far as anybody can tell.
pub fn uncached_tokens(shard: &Shard, ticket: &Ticket, call: &Call, prefix: &Prefix) -> u64 {
    let tokens = prefix.tokens_estimated(shard.cluster.tokens_per_byte());
    if prefix.digests.is_empty() {
        return tokens;
    }
    let tried = Tried::default();
    let (all, _) = candidates::gather(shard, ticket.model(), call.endpoint, prefix, &tried);
    let best = all.iter().map(|candidate| candidate.held.total()).max();
    tokens.saturating_sub(best.unwrap_or(0))
}

/// Whether some worker of the model could take this now.
fn serves(model: &ModelView, endpoint: Endpoint, now_ms: u64) -> Result<(), RequestError> {
    let mut capable = false;
    for worker in &model.workers {
        match worker.exclusion(endpoint, now_ms) {
            None => return Ok(()),
            Some(Exclusion::NotCapable) => {}
            Some(_) => capable = true,
        }
    }
    if capable {
        return Err(RequestError::NoneReady(model.name.clone()));
    }
    Err(RequestError::NotSupported {
        model: model.name.clone(),
        endpoint: endpoint.as_str(),
        path: match endpoint {
            Endpoint::Chat => "chat/completions",
            Endpoint::Completions => "completions",
            Endpoint::Embeddings => "embeddings",
            Endpoint::Other => "that",
        },
    })
}

fn take_place(places: &AtomicU32, max: u32) -> bool {
    let taken = places.fetch_add(1, Relaxed) < max;
    if !taken {
        places.fetch_sub(1, Relaxed);
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_up_to_the_limit_and_a_refusal_takes_none() {
        let places = AtomicU32::new(0);
        assert!(take_place(&places, 2) && take_place(&places, 2));
        assert!(!take_place(&places, 2));
        assert_eq!(places.load(Relaxed), 2);
    }
}
