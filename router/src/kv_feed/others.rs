//! What the other routers gave one worker, as its agent told it and all cores read it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use dataplane::feed::Load;
use dataplane::route::share::Others;

/// The last word of it. Each part is exact, all together may be a moment apart.
#[derive(Debug, Default)]
pub struct SharedOthers {
    inflight: AtomicU32,
    waiting: AtomicU32,
    queued_us: AtomicU64,
    routers: AtomicU32,
    /// On the cluster's clock; 0: never.
    told_ms: AtomicU64,
}

impl SharedOthers {
    /// Notes what the agent said at `now_ms`.
    pub fn hear(&self, load: Load, routers: u32, now_ms: u64) {
        self.inflight.store(load.inflight, Relaxed);
        self.waiting.store(load.waiting, Relaxed);
        self.queued_us.store(load.queued_us, Relaxed);
        self.routers.store(routers, Relaxed);
        self.told_ms.store(now_ms, Relaxed);
    }

    /// What of it is to be believed now: nothing once the agent was silent for too long.
    pub fn at(&self, now_ms: u64) -> Others {
        let told_ms = self.told_ms.load(Relaxed);
        if told_ms == 0 {
            return Others::default();
        }
        let load = Load {
            inflight: self.inflight.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            queued_us: self.queued_us.load(Relaxed),
        };
        let routers = self.routers.load(Relaxed);
        Others { load, routers, told_ms: told_ms as f64 }.at(now_ms as f64)
    }
}

#[cfg(test)]
mod tests {
    use dataplane::route::share::LOAD_STALE_MS;

    use super::*;

    #[test]
    fn the_last_word_counts_until_it_is_old() {
        let others = SharedOthers::default();
        assert_eq!(others.at(1), Others::default());
        let load = Load { inflight: 3, waiting: 1, queued_us: 5_000 };
        others.hear(load, 2, 100);
        let told = others.at(100 + LOAD_STALE_MS);
        assert_eq!((told.load, told.routers, told.told_ms), (load, 2, 100.0));
        assert_eq!(others.at(101 + LOAD_STALE_MS), Others::default());
    }
}
