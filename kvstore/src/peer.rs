//! Blocks from and to other daemons (tier G4), over QUIC with mutual TLS.
//!
//! [`Peers`] is the handle of the other threads: *fetch these*, *this came*, *that went*. All else happens
//! on one thread of its own:
//!
//! * deciding, pure: [`wire`] (bytes), [`directory`] (who holds what), [`gossip`] (what peers are to be
//!   told), [`heat`] (what is hot), [`offer`] (who gets a copy of it), [`pace`] (whom to ask, when to ask
//!   another), [`limits`] (what may leave), [`backoff`] (whom to dial);
//! * who is who: [`tls`] (files), [`certificate`] (names);
//! * doing: [`endpoint`], [`socket`] and `burst` (QUIC), [`link`] (the seam for another transport), `conversation`
//!   (one connection), [`ask`] and [`serve`] (one request), [`fetch`] (read-through), `promote` (copies of hot
//!   blocks);
//! * owning: `node` (the thread's state), `thread` (its loop).
//!
//! Only here does kvstore use tokio, because quinn does. It knows the store by [`blocks`] alone.

pub mod ask;
pub mod backoff;
pub mod blocks;
mod burst;
pub mod certificate;
pub mod config;
mod conversation;
pub mod directory;
pub mod endpoint;
pub mod fetch;
pub mod gossip;
pub mod heat;
pub mod limits;
pub mod link;
mod node;
pub mod offer;
pub mod pace;
mod promote;
pub mod serve;
pub mod socket;
pub mod stats;
mod stored;
mod thread;
pub mod tls;
pub mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam::queue::ArrayQueue;
use dataplane::identity::Identity;

use crate::key::Key;
use crate::mesh::{Inbox, reply};
use blocks::Blocks;
use config::PeersConfig;
use endpoint::EndpointError;
use fetch::Fetched;
use stats::PeerStats;
use thread::{Birth, Command, Shared};
use tls::{Credentials, Files, TlsError};

/// Fetches that wait for the thread.
const COMMANDS_MAX: usize = 1_024;
/// Changes that wait for the thread: what a shard of small blocks stores within 50 ms.
const CHANGES_MAX: usize = 65_536;

/// Why the peers' thread did not start.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// A certificate or key is of no use.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address is not to be had.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// No thread.
    #[error("the peers' thread could not begin: {0}")]
    Thread(std::io::Error),
}

/// The peers, from any thread.
#[derive(Clone)]
pub struct Peers {
    shared: Arc<Shared>,
}

/// The running thread.
pub struct PeersThread {
    /// Where it listens.
    pub address: SocketAddr,
    /// Who this node is to the others.
    pub identity: Identity,
    peers: Peers,
    thread: JoinHandle<()>,
}

impl Peers {
    /// Listens on `listen` and starts the thread. `blocks` makes its view of the store, on the thread.
    ///
    /// # Errors
    /// [`PeersError`].
    pub fn start<B: Blocks>(
        listen: SocketAddr,
        config: PeersConfig,
        files: &Files,
        stats: PeerStats,
        blocks: impl FnOnce() -> B + Send + 'static,
    ) -> Result<(Peers, PeersThread), PeersError> {
        let credentials = Credentials::load(files)?;
        let identity = credentials.identity.clone();
        let shared = Arc::new(Shared {
            commands: Inbox::new(COMMANDS_MAX),
            changes: ArrayQueue::new(CHANGES_MAX),
            known: AtomicUsize::new(0),
            stats,
        });
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let birth = Birth { listen, credentials, config, shared: shared.clone(), started };
        let thread = std::thread::Builder::new()
            .name("peers".to_owned())
            .spawn(move || thread::live(birth, blocks()))
            .map_err(PeersError::Thread)?;
        let ended = || PeersError::Thread(std::io::Error::other("it ended"));
        let address = start.recv().map_err(|_| ended())??;
        let peers = Peers { shared };
        Ok((peers.clone(), PeersThread { address, identity, peers, thread }))
    }

    /// Fetches blocks that no tier here has. Those that are `Kept` are in the store when this returns.
    /// Without a deadline, `kv.peers.fetch_ms_max` is one.
    pub async fn fetch(&self, keys: Vec<Key>, deadline: Option<Instant>) -> Vec<Fetched> {
        let count = keys.len();
        // Where no peer holds anything, which is so while none is connected, a miss costs this look.
        if self.shared.known.load(Relaxed) == 0 {
            return vec![Fetched::Missing; count];
        }
        let (reply, waiting) = reply();
        let sent = self.shared.commands.send(Command::Fetch { keys, deadline, reply });
        let answer = match sent {
            Ok(()) => waiting.answer().await,
            Err(_) => None,
        };
        answer.unwrap_or_else(|| vec![Fetched::Busy; count])
    }

    /// A block came into a tier here: peers may ask for it.
    pub fn added(&self, key: &Key) {
        self.change(key, true);
    }

    /// A block is in no tier here any more.
    pub fn removed(&self, key: &Key) {
        self.change(key, false);
    }

    /// The directory may be wrong, so a change too many is counted and left out.
    fn change(&self, key: &Key, is_added: bool) {
        if self.shared.changes.push((key.fingerprint(), is_added)).is_err() {
            self.shared.stats.untold.inc();
        }
    }

    /// What is counted.
    pub fn stats(&self) -> &PeerStats {
        &self.shared.stats
    }
}

impl PeersThread {
    /// Goes on with another configuration and other certificates of the same node.
    pub fn reload(&self, config: PeersConfig, credentials: Credentials) {
        self.tell(Command::Reload(Box::new((config, credentials))));
    }

    /// Tells the peers, closes the connections and ends the thread.
    pub fn stop(self) {
        self.tell(Command::Stop);
        let _ = self.thread.join();
    }

    fn tell(&self, mut command: Command) {
        while let Err(back) = self.peers.shared.commands.send(command) {
            // The thread empties its inbox; this thread has nothing else to do.
            command = back;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests;
