//! Follows what agents tell of the KV blocks their engines hold, and keeps the index of events by it.
//!
//! A connection for each agent that a worker names ([`dataplane::wire::Worker::kv_feed`]), all on the
//! house thread; requests only read the index. An agent that is away is dialled again for ever, and
//! what it told stays in force for [`state::STALE_MS`]. Who holds what is decided by
//! [`dataplane::feed::Follower`] and kept by [`dataplane::route::index`]; this does the I/O between.

pub mod line;
pub mod state;

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use crate::shard::Shard;

/// Between two looks at who is to be followed.
const LOOK: Duration = Duration::from_millis(200);
/// Agents followed at a time: as many nodes as a cluster may have.
const LINES_MAX: usize = 1_024;
/// First pause after an agent went away, and the longest.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Follows every agent that the picture in force names, for ever.
pub async fn run(shard: Rc<Shard>) {
    let mut lines: HashMap<String, Rc<Cell<bool>>> = HashMap::new();
    let mut is_over = false;
    loop {
        let mut wanted: BTreeSet<String> =
            shard.cluster.view().workers().filter_map(|view| view.worker.kv_feed.clone()).collect();
        if wanted.len() > LINES_MAX {
            if !std::mem::replace(&mut is_over, true) {
                tracing::warn!(
                    agents = wanted.len(),
                    LINES_MAX,
                    "too many feeds; some are left out"
                );
            }
            while wanted.len() > LINES_MAX {
                wanted.pop_last();
            }
        }
        lines.retain(|address, is_wanted| {
            is_wanted.set(wanted.contains(address));
            is_wanted.get()
        });
        for address in wanted {
            lines.entry(address).or_insert_with_key(|address| {
                let is_wanted = Rc::new(Cell::new(true));
                let (shard, address) = (Rc::clone(&shard), address.clone());
                monoio::spawn(keep(shard, address, Rc::clone(&is_wanted)));
                is_wanted
            });
        }
        monoio::time::sleep(LOOK).await;
    }
}

/// One agent, dialled again and again until no worker names it any more.
async fn keep(shard: Rc<Shard>, address: String, is_wanted: Rc<Cell<bool>>) {
    let mut line = line::Line::new(&shard, &address);
    let mut pause = RETRY_MIN;
    let mut was_there = true;
    while is_wanted.get() {
        let ended = line.follow(&is_wanted).await;
        if line.was_heard() {
            (pause, was_there) = (RETRY_MIN, true);
        }
        if is_wanted.get() {
            if std::mem::replace(&mut was_there, false) {
                tracing::warn!(agent = address, reason = %ended, "its KV events are not heard");
            }
            monoio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }
}
