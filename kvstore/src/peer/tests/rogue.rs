//! A peer with a good certificate that claims to hold blocks and answers as its script says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::cluster::{NAMESPACE, content, key};
use crate::peer::endpoint::Endpoint;
use crate::peer::link::{Link, Sending};
use crate::peer::tls::{Credentials, Files};
use crate::peer::wire::{BlockHead, Frame, HOT_BLOCKS_MAX, Offered, encode_block_head};

/// What it does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// Sends other bytes than the hash says.
    WrongHash,
    /// Sends another namespace's block.
    WrongNamespace,
    /// Sends half of the bytes, then cuts the stream.
    CutStream,
    /// Sends half of the bytes, then ends the connection.
    CutConnection,
    /// Never answers.
    Silent,
    /// Sends what is no answer.
    Garbage,
    /// Sends gossip that cannot be read, and nothing else.
    GarbageGossip,
    /// Offers its block as one of ten bytes, then sends all of it.
    SmallOffer,
    /// Offers thousands of blocks, and never answers.
    ManyOffers,
}

/// The running rogue; it ends with the process's test.
pub struct Rogue {
    pub asked: Arc<AtomicUsize>,
    pub closed: Arc<AtomicUsize>,
}

const SIZE: usize = 400_000;

impl Rogue {
    /// Dials `target` and claims to hold block `number`.
    pub fn start(files: &Files, target: SocketAddr, number: usize, script: Script) -> Rogue {
        let credentials = Credentials::load(files).unwrap();
        let rogue = Rogue { asked: Arc::default(), closed: Arc::default() };
        let (asked, closed) = (rogue.asked.clone(), rogue.closed.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listen = SocketAddr::from(([127, 0, 0, 1], 0));
                let endpoint = Endpoint::bind(listen, &credentials).unwrap();
                let link = endpoint.dial(&target.to_string()).await.unwrap();
                let mut gossip = link.tell().await.unwrap();
                gossip.write_all(&Frame::Hello(String::new()).encode()).await.unwrap();
                let frame = match script {
                    Script::GarbageGossip => vec![4, 0, 0, 0, 99, 1, 2, 3],
                    _ => Frame::Added(vec![key(number).fingerprint()]).encode(),
                };
                gossip.write_all(&frame).await.unwrap();
                for frame in offers(number, script) {
                    gossip.write_all(&frame.encode()).await.unwrap();
                }
                while let Ok(streams) = link.requested().await {
                    asked.fetch_add(1, Ordering::SeqCst);
                    answer(&link, streams.0, number, script).await;
                }
                closed.fetch_add(1, Ordering::SeqCst);
            });
        });
        rogue
    }
}

/// Blocks it offers as hot.
fn offers(number: usize, script: Script) -> Vec<Frame> {
    let offered = |number, bytes| Offered { key: key(number), bytes };
    match script {
        Script::SmallOffer => vec![Frame::Hot(vec![offered(number, 10)])],
        Script::ManyOffers => (0..100)
            .map(|frame| {
                let numbers = frame * HOT_BLOCKS_MAX..(frame + 1) * HOT_BLOCKS_MAX;
                Frame::Hot(numbers.map(|number| offered(number, 1 << 20)).collect())
            })
            .collect(),
        _ => Vec::new(),
    }
}

async fn answer(link: &Link, mut sending: Sending, number: usize, script: Script) {
    let mut bytes = content(number, SIZE);
    let namespace = if script == Script::WrongNamespace { "other" } else { NAMESPACE };
    let head = BlockHead {
        len: SIZE as u64,
        hash: *blake3::hash(&bytes).as_bytes(),
        parent: None,
        namespace: namespace.to_owned(),
        label: [].into(),
    };
    let head = encode_block_head(&head, 0);
    match script {
        Script::WrongHash => bytes[SIZE / 2] ^= 1,
        Script::CutStream | Script::CutConnection => bytes.truncate(SIZE / 2),
        Script::WrongNamespace | Script::GarbageGossip | Script::SmallOffer => {}
        Script::Garbage => {
            let _ = sending.write_all(&[77; 64]).await;
            return;
        }
        Script::Silent | Script::ManyOffers => {
            // Holding the stream open without a word is the point.
            std::mem::forget(sending);
            return;
        }
    }
    let _ = sending.write_all(&head).await;
    let _ = sending.write_all(&bytes).await;
    match script {
        Script::CutStream => drop(sending.reset(quinn::VarInt::from_u32(9))),
        Script::CutConnection => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let Link::Quic(connection) = link;
            connection.close(quinn::VarInt::from_u32(9), b"");
        }
        _ => drop(sending.finish()),
    }
    let _ = sending.stopped().await;
}
