//! One connection from its first byte to its last: who it is, requests answered, gossip both ways.

use std::rc::Rc;
use std::time::{Duration, Instant};

use dataplane::identity::Identity;
use rustls::pki_types::UnixTime;

use super::blocks::Blocks;
use super::certificate::dns_name;
use super::config::is_address;
use super::limits::Bucket;
use super::link::{Close, Gone, Link, Receiving, Sending};
use super::node::{Node, Peer};
use super::promote::take;
use super::serve::{ServeError, Served, serve};
use super::wire::{FRAME_BYTES_MAX, Frame, WireError};
use crate::key::Key;

/// How often a peer is told what changed.
const TOLD_EVERY: Duration = Duration::from_millis(50);
/// Frames sent at once; with [`TOLD_EVERY`], 5 MB/s at most.
const FRAMES_MAX: usize = 4;
/// How often addresses of others are told.
const KNOWN_EVERY: Duration = Duration::from_secs(5);
/// Gossip taken from one peer, bytes a second: more waits in the peer's own memory.
const GOSSIP_BYTES_S: u64 = 8 << 20;

/// Admits a connection and talks until it ends. Whether it ended well: a peer was there and was let in.
pub(super) async fn converse<B: Blocks>(
    node: Rc<Node<B>>,
    link: Link,
    dialled: Option<String>,
) -> Option<Identity> {
    let chain = link.certificates();
    let admitted = node.credentials.borrow().admit(&chain, UnixTime::now());
    let identity = match admitted {
        Ok(identity) => identity,
        Err(refusal) => {
            tracing::warn!(from = %link.address(), %refusal, "a peer is sent away");
            node.stats.refused.with_label_values(&["identity"]).inc();
            link.close(Close::Refused);
            return None;
        }
    };
    let peer = match node.join(identity.clone(), link.clone(), dialled.is_some(), Instant::now()) {
        Ok(peer) => peer,
        Err(why) => {
            if why == Close::Full {
                tracing::warn!(peer = %identity, "there are as many peers as kv.peers.peers_max allows");
                node.stats.refused.with_label_values(&["full"]).inc();
            }
            link.close(why);
            return Some(identity);
        }
    };
    if let Some(address) = &dialled {
        node.addresses.borrow_mut().reached(address, identity.clone(), Instant::now());
    }
    tracing::info!(peer = %identity, at = %link.address(), "a peer is connected");
    let fallback = chain.first().and_then(dns_name).map(|name| (name, link.address().port()));
    let why = tokio::select! {
        why = link.closed() => why,
        why = answer(&node, &peer) => why.to_string(),
        why = tell(&node, &peer) => why.to_string(),
        why = listen(&node, &peer, fallback) => why.to_string(),
    };
    node.leave(&peer);
    tracing::info!(peer = %identity, why, "a peer is gone");
    Some(identity)
}

/// Answers requests, each in a task of its own; the transport bounds how many there are.
async fn answer<B: Blocks>(node: &Rc<Node<B>>, peer: &Rc<Peer>) -> Gone {
    loop {
        let streams = match peer.link.requested().await {
            Ok(streams) => streams,
            Err(gone) => return gone,
        };
        let (node, peer) = (node.clone(), peer.clone());
        tokio::task::spawn_local(async move {
            let answering = &peer.allowance.answering;
            answering.set(answering.get().saturating_add(1));
            let teller = Teller { node: &node };
            let done = serve(&node.blocks, streams, &peer.allowance, &node.egress, &teller).await;
            answering.set(answering.get().saturating_sub(1));
            if let Err(ServeError::Wire(error)) = done {
                tracing::warn!(peer = %peer.identity, %error, "a peer's request cannot be read");
                peer.link.close(Close::Malformed);
            }
        });
    }
}

struct Teller<'a, B> {
    node: &'a Rc<Node<B>>,
}

impl<B: Blocks> Served for Teller<'_, B> {
    fn sent(&self, key: Key, bytes: u64) {
        self.node.stats.sent.inc();
        self.node.stats.sent_bytes.inc_by(bytes);
        self.node.heat.borrow_mut().count(key, bytes, Instant::now());
    }

    fn missed(&self, key: Key) {
        // Whoever asked was told that it is here: the log is put right, and so are the others.
        self.node.log.borrow_mut().note(key.fingerprint(), false);
    }
}

/// Why gossip ended.
#[derive(Debug, thiserror::Error)]
enum GossipError {
    #[error(transparent)]
    Gone(#[from] Gone),
    #[error("gossip broke: {0}")]
    Cut(String),
    #[error("gossip cannot be read: {0}")]
    Wire(#[from] WireError),
}

/// Tells the peer what is here, for ever.
async fn tell<B: Blocks>(node: &Rc<Node<B>>, peer: &Rc<Peer>) -> GossipError {
    let mut sending = match peer.link.tell().await {
        Ok(sending) => sending,
        Err(gone) => return gone.into(),
    };
    let advertised = node.config.borrow().advertise.clone().unwrap_or_default();
    if let Err(error) = send(&mut sending, &Frame::Hello(advertised)).await {
        return error;
    }
    let mut cursor = node.log.borrow().cursor();
    let mut known_next = Instant::now();
    loop {
        for _ in 0..FRAMES_MAX {
            let frame = node.log.borrow().next(&mut cursor);
            let Some(frame) = frame else { break };
            if let Err(error) = send(&mut sending, &frame).await {
                return error;
            }
        }
        let hot = std::mem::take(&mut *peer.hot.borrow_mut());
        if !hot.is_empty()
            && let Err(error) = send(&mut sending, &Frame::Hot(hot)).await
        {
            return error;
        }
        if Instant::now() >= known_next {
            known_next = Instant::now() + KNOWN_EVERY;
            if let Err(error) = send(&mut sending, &Frame::Known(known(node, peer))).await {
                return error;
            }
        }
        tokio::time::sleep(TOLD_EVERY).await;
    }
}

/// Where the others are that this daemon knows; those of the peer's own cluster only.
fn known<B: Blocks>(node: &Rc<Node<B>>, peer: &Rc<Peer>) -> Vec<String> {
    let others = node.peers().into_iter().filter(|other| {
        !Rc::ptr_eq(other, peer) && other.identity.cluster() == peer.identity.cluster()
    });
    others.filter_map(|other| other.address.borrow().clone()).collect()
}

async fn send(sending: &mut Sending, frame: &Frame) -> Result<(), GossipError> {
    sending.write_all(&frame.encode()).await.map_err(|error| GossipError::Cut(error.to_string()))
}

/// Hears what the peer has, for ever.
async fn listen<B: Blocks>(
    node: &Rc<Node<B>>,
    peer: &Rc<Peer>,
    fallback: Option<(String, u16)>,
) -> GossipError {
    match hear_all(node, peer, fallback).await {
        Ok(never) => match never {},
        Err(error) => {
            if matches!(error, GossipError::Wire(_)) {
                tracing::warn!(peer = %peer.identity, %error, "a peer is cut off");
                peer.link.close(Close::Malformed);
            }
            error
        }
    }
}

async fn hear_all<B: Blocks>(
    node: &Rc<Node<B>>,
    peer: &Rc<Peer>,
    fallback: Option<(String, u16)>,
) -> Result<std::convert::Infallible, GossipError> {
    let mut receiving = peer.link.told().await?;
    let Frame::Hello(advertised) = receive(&mut receiving).await? else {
        return Err(WireError::Kind.into());
    };
    let fallback = fallback.map(|(name, port)| format!("{name}:{port}"));
    let address = Some(advertised).filter(|text| is_address(text)).or(fallback);
    let address = address.unwrap_or_else(|| peer.link.address().to_string());
    node.addresses.borrow_mut().learn_of(&address, &peer.identity, Instant::now());
    *peer.address.borrow_mut() = Some(address);
    let mut bucket = Bucket::new(GOSSIP_BYTES_S, Instant::now());
    loop {
        let frame = receive(&mut receiving).await?;
        bucket.spend(weight(&frame));
        let wait = bucket.wait(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        hear(node, peer, frame);
    }
}

/// About its bytes.
fn weight(frame: &Frame) -> u64 {
    match frame {
        Frame::Added(prints) | Frame::Removed(prints) => 64 + 8 * prints.len() as u64,
        _ => FRAME_BYTES_MAX as u64,
    }
}

async fn receive(receiving: &mut Receiving) -> Result<Frame, GossipError> {
    let cut = |error: &dyn std::fmt::Display| GossipError::Cut(error.to_string());
    let mut len = [0; 4];
    receiving.read_exact(&mut len).await.map_err(|error| cut(&error))?;
    let len = u32::from_le_bytes(len) as usize;
    if len > FRAME_BYTES_MAX {
        return Err(WireError::TooLong.into());
    }
    let mut body = vec![0; len];
    receiving.read_exact(&mut body).await.map_err(|error| cut(&error))?;
    Ok(Frame::decode(&body)?)
}

fn hear<B: Blocks>(node: &Rc<Node<B>>, peer: &Rc<Peer>, frame: Frame) {
    match frame {
        // A second one says nothing new.
        Frame::Hello(_) => {}
        Frame::Added(prints) => node.directory.borrow_mut().add(peer.place, &prints),
        Frame::Removed(prints) => node.directory.borrow_mut().remove(peer.place, &prints),
        Frame::Hot(offered) => take(node, peer, &offered),
        Frame::Known(addresses) => {
            let mut known = node.addresses.borrow_mut();
            let config = node.config.borrow();
            let own = config.advertise.as_deref();
            let others = addresses.iter().filter(|text| is_address(text));
            let others = others.filter(|text| Some(text.as_str()) != own);
            others.for_each(|address| known.learn(address, false, Instant::now()));
        }
    }
    node.count_known();
}
