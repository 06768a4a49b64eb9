//! Blocks on disk come by the native door like those in memory.

use std::time::Duration;

use kvclient::{Block, Client, Tier};

use crate::daemon::{Daemon, block, bytes, name, options};

const BLOCKS: u32 = 12;
const LEN: usize = 1_000_003;

#[test]
fn what_was_durable_is_there_after_a_kill_and_is_leased_from_disk() {
    let daemon = Daemon::with_disk();
    let client = daemon.client();
    let all: Vec<Vec<u8>> = (0..BLOCKS).map(|number| bytes(number, LEN)).collect();
    let blocks: Vec<Block<'_>> =
        (0..).zip(&all).map(|(number, bytes)| block(number, bytes)).collect();
    assert_eq!(client.put(&blocks, true).unwrap(), [Ok(()); BLOCKS as usize]);
    drop(client);

    let daemon = daemon.killed_and_started_again();
    let client = Client::connect_to_poll(&daemon.uds(), "model/fp8/0", &options()).unwrap();
    let mut polling = client.polling().unwrap();
    let names: Vec<_> = (0..BLOCKS).map(name).collect();
    assert_eq!(client.lookup(&names).unwrap(), [Tier::Disk; BLOCKS as usize]);
    assert_eq!(polling.lookup(&names[0]).unwrap(), Some(Tier::Disk));
    // By a prefetch, by the ring and by the socket.
    assert_eq!(client.prefetch(&names[..4], Duration::from_secs(60)).unwrap(), 4);
    assert_eq!(client.lookup(&names[..4]).unwrap(), [Tier::Ram; 4]);
    for (name, bytes) in names.iter().zip(&all).take(8) {
        assert_eq!(&*polling.get(name).unwrap().lease().unwrap(), &bytes[..]);
    }
    let found = client.get(&names, Some(Duration::from_secs(60))).unwrap();
    for (found, bytes) in found.into_iter().zip(&all) {
        assert_eq!(&*found.lease().unwrap(), &bytes[..]);
    }
    assert_eq!(client.remove(&names).unwrap(), [Ok(true); BLOCKS as usize]);
    assert_eq!(client.lookup(&names).unwrap(), []);
}
