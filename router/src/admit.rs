//! Phase *admit*: the model is known, somebody serves it, and there is room. 404, 400, 503 or 429
//! here, or never.
//!
//! A [`Ticket`] holds one place of the router's and of the model's until it is dropped. Tenants,
//! deadlines and fair queues: pending.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use prometheus::IntGauge;

use crate::cluster::{ModelView, View};
use crate::error::RequestError;
use crate::openai::Endpoint;
use crate::parse::Call;
use crate::pick::Exclusion;
use crate::shard::Shard;

/// Leave to go on, with the view the whole request is decided on.
pub struct Ticket {
    view: Arc<View>,
    model: String,
    running: IntGauge,
    cluster: Arc<crate::cluster::Cluster>,
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
    }
}

/// Counts one request in.
///
/// # Errors
/// [`RequestError::ModelNotFound`], [`RequestError::NotSupported`], [`RequestError::NoneReady`],
/// [`RequestError::Busy`].
pub fn enter(shard: &Shard, call: &Call) -> Result<Ticket, RequestError> {
    let view = shard.cluster.view();
    let model = view
        .models
        .get(&call.model)
        .ok_or_else(|| RequestError::ModelNotFound(call.model.clone()))?;
    serves(model, call.endpoint)?;
    let limits = &shard.config.limits;
    let in_model: u64 =
        model.workers.iter().map(|worker| u64::from(worker.life.inflight.load(Relaxed))).sum();
    if in_model >= u64::from(model.slots) * u64::from(limits.requests_per_slot_max) {
        return Err(RequestError::Busy("the queue of this model is full"));
    }
    if !take_place(&shard.cluster.inflight, limits.requests_inflight_max) {
        return Err(RequestError::Busy("too many requests are in flight"));
    }
    shard.stats.requests_running.inc();
    Ok(Ticket {
        model: call.model.clone(),
        view: Arc::clone(&view),
        running: shard.stats.requests_running.clone(),
        cluster: Arc::clone(&shard.cluster),
    })
}

/// Whether some worker of the model could take this now.
fn serves(model: &ModelView, endpoint: Endpoint) -> Result<(), RequestError> {
    let capability = endpoint.capability();
    let mut capable = false;
    for worker in &model.workers {
        match worker.exclusion(capability) {
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
