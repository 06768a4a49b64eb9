//! What no request waits for: probes, control's news, certificates and keys read again, traces on their
//! way, and the look at what changes with time alone. All of it on one thread.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::access::log::LineCounts;
use crate::admit::unix_ms;
use crate::fetch::fetch;
use crate::front::Front;
use crate::shard::Shard;
use crate::stats::Stats;
use crate::trace::delivery::Delivery;
use crate::trace::otlp::{self, Resource};
use crate::watch::TICK;
use crate::{follow, kv_feed, probe};

/// Between two looks at the key file and the issuer's keys; both say themselves when it is time.
const IDENTITY_LOOK: Duration = Duration::from_secs(1);
/// Between two looks for outliers.
const CLUSTER_LOOK_TICKS: u32 = 20;
/// The issuer must answer within this time.
const JWKS_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks whether spans are due.
const TRACE_LOOK: Duration = Duration::from_millis(500);

/// Starts everything.
pub fn start(shard: &Rc<Shard>, clients: Arc<Front>) {
    monoio::spawn(probe::run(Rc::clone(shard)));
    monoio::spawn(kv_feed::run(Rc::clone(shard)));
    monoio::spawn(look_at_cluster(Rc::clone(shard)));
    monoio::spawn(look_at_identity(Rc::clone(shard)));
    if shard.config.tls.is_on() {
        monoio::spawn(reload_certificate(Rc::clone(shard), clients));
    }
    if shard.recorder.exports {
        monoio::spawn(deliver_traces(Rc::clone(shard)));
    }
    if let Some(path) = shard.config.control_socket.clone() {
        let shard = Rc::clone(shard);
        monoio::spawn(async move { follow::run(shard, &path).await });
    }
}

async fn look_at_cluster(shard: Rc<Shard>) {
    let mut ticks: u32 = 0;
    loop {
        monoio::time::sleep(TICK).await;
        ticks = ticks.wrapping_add(1);
        shard.cluster.call_waiting();
        if ticks.is_multiple_of(CLUSTER_LOOK_TICKS) {
            if let Some(lines) = &shard.recorder.lines {
                let dropped = lines.dropped.load(Relaxed) + lines.failed.load(Relaxed);
                shard.stats.lines_dropped.inc_by(dropped - shard.stats.lines_dropped.get());
            }
            if let Some(decisions) = &shard.recorder.decisions {
                count_decision_lines(&shard.stats, decisions.counts());
            }
            shard.cluster.look(|worker, cause| {
                let id = worker.worker.id.as_str();
                shard.stats.ejections.with_label_values(&[id, cause]).inc();
                tracing::warn!(worker = id, cause, "ejected: much worse than its peers");
            });
        }
    }
}

/// Brings the counters up to what the log's writer counted.
fn count_decision_lines(stats: &Stats, counts: &LineCounts) {
    let all =
        [("written", &counts.written), ("dropped", &counts.dropped), ("failed", &counts.failed)];
    for (result, count) in all {
        let counter = stats.decision_lines.with_label_values(&[result]);
        counter.inc_by(count.load(Relaxed).saturating_sub(counter.get()));
    }
}

async fn look_at_identity(shard: Rc<Shard>) {
    loop {
        let now_s = unix_ms() / 1_000;
        match shard.identity.reload(now_s) {
            Ok(true) => tracing::info!("the API keys were read again"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the old API keys stay in force"),
        }
        let url = shard.identity.jwks_url().map(str::to_owned);
        if let Some(url) = url.filter(|_| shard.identity.begin_key_fetch(now_s)) {
            fetch_keys(&shard, &url).await;
        }
        monoio::time::sleep(IDENTITY_LOOK).await;
    }
}

async fn fetch_keys(shard: &Shard, url: &str) {
    let fetched = fetch(url, None, JWKS_TIMEOUT).await;
    let now_s = unix_ms() / 1_000;
    let problem = match fetched {
        Ok(fetched) if fetched.status == 200 => {
            match shard.identity.keys_fetched(now_s, &fetched.body) {
                Ok(keys) => return tracing::debug!(keys, "the token issuer's keys are here"),
                Err(error) => error.to_string(),
            }
        }
        Ok(fetched) => {
            shard.identity.keys_failed(now_s);
            format!("status {}", fetched.status)
        }
        Err(error) => {
            shard.identity.keys_failed(now_s);
            error.to_string()
        }
    };
    shard.stats.jwks_fetch_failures.inc();
    tracing::warn!(url, problem, "the token issuer's keys could not be fetched");
}

/// Looks at the certificate's files for ever, and serves with what they hold once they changed.
async fn reload_certificate(shard: Rc<Shard>, clients: Arc<Front>) {
    let tls = &shard.config.tls;
    let pause = Duration::from_secs(tls.reload_s.max(1));
    let mut stamp = tls.stamp();
    loop {
        monoio::time::sleep(pause).await;
        let now = tls.stamp();
        if now == stamp {
            continue;
        }
        match tls.load() {
            Ok(loaded) => {
                let expiry = loaded.expires_unix_s.try_into().unwrap_or(i64::MAX);
                shard.stats.tls_certificate_expiry.set(expiry);
                clients.serve_with(loaded.config);
                stamp = now;
                tracing::info!("the certificate was read again");
            }
            // Half written, perhaps: the old one stays in force, and the next look tries again.
            Err(error) => tracing::warn!(%error, "the old certificate stays in force"),
        }
    }
}

async fn deliver_traces(shard: Rc<Shard>) {
    let config = &shard.config.trace;
    let Some(url) = &config.otlp_url else { return };
    let resource = Resource {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: format!("{}:{}", shard.recorder.address, shard.recorder.port),
    };
    let mut delivery = Delivery::new(config, resource, shard.next_id());
    let limit = Duration::from_millis(config.timeout_ms);
    let mut dropped_before = 0;
    loop {
        monoio::time::sleep(TRACE_LOOK).await;
        let dropped = shard.recorder.outbox.dropped();
        shard.stats.spans_dropped.inc_by(dropped - dropped_before);
        dropped_before = dropped;
        while let Some(body) = delivery.next_body(Instant::now(), &shard.recorder.outbox) {
            let settled = match fetch(url, Some((otlp::CONTENT_TYPE, &body)), limit).await {
                Ok(answer) => {
                    delivery.sent(Instant::now(), answer.status, answer.retry_after_s, &answer.body)
                }
                Err(error) => {
                    tracing::debug!(url, %error, "the collector does not answer");
                    delivery.failed(Instant::now())
                }
            };
            shard.stats.spans_dropped.inc_by(settled.lost as u64);
            if settled.sent == 0 {
                break;
            }
        }
    }
}
