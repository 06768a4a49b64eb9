//! The peers' thread: a tokio runtime of its own, because quinn needs one, and the loop that runs on it.
//!
//! It takes requests of the shards from a bounded inbox and hears from a bounded ring which blocks came and
//! went. Nothing here runs on a shard's thread and no shard waits for anything here but its own
//! requests.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;

use super::blocks::Blocks;
use super::config::PeersConfig;
use super::conversation::converse;
use super::endpoint::{Endpoint, EndpointError};
use super::fetch::{Fetched, fetch};
use super::node::Node;
use super::promote::offer;
use super::stats::PeerStats;
use super::tls::Credentials;
use crate::key::Key;
use crate::mesh::{Inbox, Reply};
use crate::store::Claim;

/// How often the loop looks at what changed and whom to dial.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A connection that ends sooner counts as a failure to connect.
const SHORT: Duration = Duration::from_secs(1);

/// What other threads ask.
pub(super) enum Command {
    Fetch { keys: Vec<Key>, deadline: Option<Instant>, reply: Reply<Vec<Fetched>> },
    Reload(Box<(PeersConfig, Credentials)>),
    Stop,
}

/// What the thread shares with the others.
pub(super) struct Shared {
    pub(super) commands: Inbox<Command>,
    /// Fingerprints of blocks that came (true) or went.
    pub(super) changes: ArrayQueue<(u64, bool)>,
    /// Blocks of peers in the directory. A miss costs no hand-over while there are none.
    pub(super) known: AtomicUsize,
    pub(super) stats: PeerStats,
}

/// What the thread begins with.
pub(super) struct Birth {
    pub(super) listen: SocketAddr,
    pub(super) credentials: Credentials,
    pub(super) config: PeersConfig,
    pub(super) shared: Arc<Shared>,
    /// Told where it listens, or why it does not.
    pub(super) started: SyncSender<Result<SocketAddr, EndpointError>>,
}

/// The thread's life.
pub(super) fn live<B: Blocks>(birth: Birth, blocks: B) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(source) => {
            let failed = EndpointError::Listen { listen: birth.listen, source };
            let _ = birth.started.send(Err(failed));
            return;
        }
    };
    tokio::task::LocalSet::new().block_on(&runtime, run(birth, blocks));
}

async fn run<B: Blocks>(birth: Birth, blocks: B) {
    let Birth { listen, credentials, config, shared, started } = birth;
    let bound = Endpoint::bind(listen, &credentials).and_then(|endpoint| {
        let busy = |source| EndpointError::Listen { listen, source };
        let address = endpoint.address().map_err(busy)?;
        Ok((endpoint, address))
    });
    let endpoint = match bound {
        Ok((endpoint, address)) => {
            let _ = started.send(Ok(address));
            endpoint
        }
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let node = Node::new(blocks, endpoint, credentials, config, shared.clone(), Instant::now());
    tokio::task::spawn_local(accept(node.clone()));
    tokio::task::spawn_local(look(node.clone(), shared.clone()));
    loop {
        match shared.commands.receive().await {
            Command::Stop => break,
            Command::Reload(changed) => node.change(changed.0, changed.1, Instant::now()),
            Command::Fetch { keys, deadline, reply } => {
                let node = node.clone();
                tokio::task::spawn_local(async move {
                    let longest = Duration::from_millis(node.config.borrow().fetch_ms_max);
                    let deadline = deadline.unwrap_or_else(|| Instant::now() + longest);
                    let blocks: Vec<_> = keys.into_iter().map(|key| (key, u64::MAX)).collect();
                    let fetched = fetch(&node, &blocks, Claim::Asked, deadline.into()).await;
                    for result in &fetched {
                        node.stats.fetched.with_label_values(&[result.as_str()]).inc();
                    }
                    reply.send(fetched);
                });
            }
        }
    }
    node.endpoint.close().await;
}

/// Takes in who dials us.
async fn accept<B: Blocks>(node: Rc<Node<B>>) {
    while let Some(dialled) = node.endpoint.dialled().await {
        let node = node.clone();
        tokio::task::spawn_local(async move {
            let from = dialled.from();
            match dialled.accept().await {
                Ok(link) => {
                    converse(node, link, None).await;
                }
                Err(reason) => {
                    node.stats.refused.with_label_values(&["handshake"]).inc();
                    tracing::debug!(%from, reason, "a connection came to nothing");
                }
            }
        });
    }
}

/// Looks at what changed, offers what is hot, dials whom it is time to dial.
async fn look<B: Blocks>(node: Rc<Node<B>>, shared: Arc<Shared>) {
    loop {
        {
            let mut log = node.log.borrow_mut();
            for _ in 0..shared.changes.capacity() {
                let Some((print, is_added)) = shared.changes.pop() else { break };
                log.note(print, is_added);
            }
        }
        offer(&node, Instant::now());
        let due = node.addresses.borrow_mut().due(Instant::now(), |peer| node.is_there(peer));
        for address in due {
            tokio::task::spawn_local(dial(node.clone(), address));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Dials one address and talks until the connection ends.
async fn dial<B: Blocks>(node: Rc<Node<B>>, address: String) {
    let began = Instant::now();
    let ended_well = match node.endpoint.dial(&address).await {
        Ok(link) => {
            let peer = converse(node.clone(), link, Some(address.clone())).await;
            peer.filter(|_| began.elapsed() >= SHORT)
        }
        Err(error) => {
            tracing::debug!(%error, "a peer was not reached");
            None
        }
    };
    let chance = node.chance();
    let mut addresses = node.addresses.borrow_mut();
    match ended_well {
        Some(peer) => addresses.reached(&address, peer, Instant::now()),
        None => addresses.failed(&address, Instant::now(), chance),
    }
}
