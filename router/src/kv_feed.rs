//! Follows what agents tell of the KV blocks their engines hold, and keeps the index of events by it. And
//! tells them what this router gave their engines, to hear what other routers did; and hands them what
//! requests wish for their workers ([`crate::warm`]).
//!
//! A connection for each agent that a worker names ([`dataplane::wire::Worker::kv_feed`]), all on the
//! house thread; requests only read the index. An agent that is away is dialled again for ever, and
//! what it told stays in force for [`state::STALE_MS`]. Who holds what is decided by
//! [`dataplane::feed::Follower`] and kept by [`dataplane::route::index`]; this does the I/O between.

pub mod line;
pub mod others;
pub mod state;
pub mod tell;
pub mod warmable;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dataplane::route::share::LOAD_INTERVAL_MS;

use crate::cluster::WorkerView;
use crate::shard::Shard;
use crate::socket::read_more;
use tell::Teller;

/// Between two looks at what this router gave the workers of agents it follows.
const LOAD_LOOK: Duration = Duration::from_millis(LOAD_INTERVAL_MS);
/// Of these looks, one at who is to be followed: each 200 ms.
const LOOK_EVERY: u32 = 10;
/// Agents followed at a time: as many nodes as a cluster may have.
const LINES_MAX: usize = 1_024;
/// First pause after an agent went away, and the longest.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// An agent that is followed.
struct Followed {
    is_wanted: Rc<Cell<bool>>,
    teller: Rc<Teller>,
    workers: Vec<Arc<WorkerView>>,
}

/// Those that are followed, by address.
type Lines = BTreeMap<String, Followed>;

/// Follows every agent that the picture in force names, for ever.
pub async fn run(shard: Rc<Shard>) {
    let lines = Rc::new(RefCell::new(Lines::new()));
    monoio::spawn(hand_over(Rc::clone(&shard), Rc::clone(&lines)));
    let mut is_over = false;
    loop {
        let wanted = wanted(&shard, &mut is_over);
        reconcile(&shard, &mut lines.borrow_mut(), wanted);
        if lines.borrow().is_empty() {
            monoio::time::sleep(LOAD_LOOK * LOOK_EVERY).await;
            continue;
        }
        for _ in 0..LOOK_EVERY {
            monoio::time::sleep(LOAD_LOOK).await;
            let now_ms = shard.now_ms();
            for line in lines.borrow().values() {
                line.teller.look(&line.workers, now_ms);
            }
        }
    }
}

/// Hands wishes of requests to the agents they are for, for ever. One that is not there has nothing to
/// give.
async fn hand_over(shard: Rc<Shard>, lines: Rc<RefCell<Lines>>) {
    let warming = &shard.cluster.warming;
    let bell = warming.hire().and_then(monoio::net::UnixStream::from_std);
    let mut bell = match bell {
        Ok(bell) => bell,
        Err(error) => return tracing::warn!(%error, "no worker is warmed before its prompt"),
    };
    let mut rings = Vec::new();
    loop {
        rings.clear();
        match read_more(&mut bell, &mut rings, 64).await {
            Ok(read) if read > 0 => {}
            _ => return,
        }
        for (agent, wish) in warming.take() {
            let ticket = wish.ticket;
            let is_told = lines.borrow().get(&agent).is_some_and(|line| line.teller.warm(wish));
            if !is_told {
                warming.answer(&agent, ticket, 0);
            }
        }
    }
}

/// The agents of the picture in force, with their workers.
fn wanted(shard: &Shard, is_over: &mut bool) -> BTreeMap<String, Vec<Arc<WorkerView>>> {
    let mut wanted: BTreeMap<String, Vec<Arc<WorkerView>>> = BTreeMap::new();
    for view in shard.cluster.view().workers() {
        let Some(address) = &view.worker.kv_feed else { continue };
        match wanted.get_mut(address) {
            Some(workers) => workers.push(Arc::clone(view)),
            None => drop(wanted.insert(address.clone(), vec![Arc::clone(view)])),
        }
    }
    if wanted.len() > LINES_MAX && !std::mem::replace(is_over, true) {
        tracing::warn!(agents = wanted.len(), LINES_MAX, "too many feeds; some are left out");
    }
    while wanted.len() > LINES_MAX {
        wanted.pop_last();
    }
    wanted
}

fn reconcile(
    shard: &Rc<Shard>,
    lines: &mut Lines,
    mut wanted: BTreeMap<String, Vec<Arc<WorkerView>>>,
) {
    lines.retain(|address, line| match wanted.remove(address) {
        Some(workers) => {
            line.workers = workers;
            true
        }
        None => {
            line.is_wanted.set(false);
            false
        }
    });
    for (address, workers) in wanted {
        let (is_wanted, teller) = (Rc::new(Cell::new(true)), Rc::<Teller>::default());
        let line = line::Line::new(shard, &address, Rc::clone(&teller));
        monoio::spawn(keep(line, address.clone(), Rc::clone(&is_wanted)));
        lines.insert(address, Followed { is_wanted, teller, workers });
    }
}

/// One agent, dialled again and again until no worker names it any more.
async fn keep(mut line: line::Line, address: String, is_wanted: Rc<Cell<bool>>) {
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
