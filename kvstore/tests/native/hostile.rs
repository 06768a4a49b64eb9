//! Clients that lie, flood or hang: bounded, an error to them, and nobody else is disturbed.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use dataplane::kv::{self, Answer, BATCH_MAX, Decoder, Fault, Got, Request, Staged, VERSION};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::daemon::{Daemon, block, name};

/// A connection without a client's manners.
pub struct Raw {
    pub socket: UnixStream,
    decoder: Decoder,
}

impl Raw {
    fn dial(daemon: &Daemon) -> Raw {
        Raw::dial_as(daemon, None)
    }

    /// As another user, where this one may become one.
    fn dial_as(daemon: &Daemon, uid: Option<u32>) -> Raw {
        let path = daemon.uds();
        // The kernel notes the user of the thread that connects.
        let connect = move || {
            if let Some(uid) = uid.map(rustix::thread::Uid::from_raw) {
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            }
            UnixStream::connect(path).unwrap()
        };
        let socket = std::thread::spawn(connect).join().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Raw { socket, decoder: Decoder::default() }
    }

    pub fn greeted(daemon: &Daemon) -> Raw {
        Raw::dial(daemon).greet()
    }

    fn greet(self) -> Raw {
        let mut raw = self;
        raw.say(1, &hello(0));
        assert!(matches!(raw.hear(), Some((1, Answer::Hello { .. }))));
        raw
    }

    pub fn say(&mut self, id: u64, request: &Request) {
        let mut frame = Vec::new();
        kv::encode(id, request, &mut frame);
        self.socket.write_all(&frame).unwrap();
    }

    fn say_with(&mut self, request: &Request, fd: &OwnedFd) {
        let mut frame = Vec::new();
        kv::encode(1, request, &mut frame);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let head = [IoSlice::new(&frame)];
        rustix::net::sendmsg(&self.socket, &head, &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    /// The next answer; none when the daemon hung up.
    pub fn hear(&mut self) -> Option<(u64, Answer)> {
        loop {
            if let Some((id, payload)) = self.decoder.poll_frame().unwrap() {
                return Some((id, kv::decode(payload).unwrap()));
            }
            let mut bytes = [0; 65_536];
            match self.socket.read(&mut bytes) {
                Ok(0) => return None,
                Ok(read) => self.decoder.push(&bytes[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn refusal(&mut self) -> Fault {
        match self.hear() {
            Some((_, Answer::Refused { fault, .. })) => fault,
            other => panic!("{other:?}"),
        }
    }
}

fn hello(staging_bytes: u64) -> Request {
    Request::Hello {
        version: VERSION,
        namespace: "model/fp8/0".to_owned(),
        client: "hostile".to_owned(),
        staging_bytes,
        ring: false,
    }
}

fn memfd(bytes: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = rustix::fs::memfd_create("hostile", flags).unwrap();
    rustix::fs::ftruncate(&memfd, bytes).unwrap();
    rustix::fs::fcntl_add_seals(&memfd, seals).unwrap();
    memfd
}

#[test]
fn what_is_not_the_wire_ends_the_connection_and_only_that() {
    let daemon = Daemon::start();
    let good = daemon.client();
    good.put(&[block(1, b"bytes")], false).unwrap();
    let mut largest = b"CGK1\xff\xff\xff\xff".to_vec();
    largest.extend([0; 8]);
    for nonsense in [&b"*1\r\n$4\r\nPING\r\n"[..], &[0; 300], &largest] {
        let mut raw = Raw::dial(&daemon);
        let _ = raw.socket.write_all(nonsense);
        assert!(raw.hear().is_none());
        let mut raw = Raw::greeted(&daemon);
        let _ = raw.socket.write_all(nonsense);
        assert_eq!(raw.refusal(), Fault::BadRequest);
        assert!(raw.hear().is_none());
    }
    let mut raw = Raw::dial(&daemon);
    raw.say(1, &Request::Stats);
    assert_eq!(raw.refusal(), Fault::BadRequest);
    let mut raw = Raw::dial(&daemon);
    let Request::Hello { namespace, client, .. } = hello(0) else { unreachable!() };
    raw.say(1, &Request::Hello { version: 9, namespace, client, staging_bytes: 0, ring: false });
    assert_eq!(raw.refusal(), Fault::Version);
    // Half a frame, and nothing more.
    let mut half = Raw::greeted(&daemon);
    half.socket.write_all(b"CGK1\x10\0\0").unwrap();
    assert_eq!(good.lookup(&[name(1)]).unwrap().len(), 1);
}

#[test]
fn only_sealed_memory_is_staging_and_only_within_its_bounds() {
    let daemon = Daemon::start();
    let mut raw = Raw::dial(&daemon);
    raw.say(1, &hello(4096));
    assert_eq!(raw.refusal(), Fault::BadStaging);
    let mut raw = Raw::dial(&daemon);
    raw.say_with(&hello(4096), &memfd(4096, SealFlags::GROW));
    assert_eq!(raw.refusal(), Fault::BadStaging);
    let mut raw = Raw::dial(&daemon);
    raw.say_with(&hello(8192), &memfd(4096, SealFlags::SHRINK));
    assert_eq!(raw.refusal(), Fault::BadStaging);

    let mut raw = Raw::dial(&daemon);
    raw.say_with(&hello(4096), &memfd(4096, SealFlags::SHRINK));
    assert!(matches!(raw.hear(), Some((1, Answer::Hello { .. }))));
    let staged = |offset, len| Staged { name: name(1), parent: None, offset, len, label: vec![] };
    let blocks = vec![
        staged(1, 4096),
        staged(u64::MAX, 2),
        staged(0, u64::MAX),
        staged(0, 0),
        staged(0, 4096),
    ];
    raw.say(2, &Request::Put { durable: false, blocks });
    let outside = Err(Fault::OutsideStaging);
    let results = vec![outside, outside, outside, outside, Ok(true)];
    assert_eq!(raw.hear(), Some((2, Answer::Blocks { results })));

    let mut raw = Raw::greeted(&daemon);
    raw.say(2, &Request::Put { durable: false, blocks: vec![staged(0, 1)] });
    assert_eq!(raw.hear(), Some((2, Answer::Blocks { results: vec![Err(Fault::NoStaging)] })));
}

#[test]
fn a_million_leases_are_asked_for_and_few_are_given() {
    let daemon = Daemon::with("leases_per_client_max = 1000\n");
    let good = daemon.client();
    good.put(&[block(1, b"bytes")], false).unwrap();
    let mut raw = Raw::greeted(&daemon);
    let get = Request::Get { names: vec![name(1); BATCH_MAX], deadline_ms: 0 };
    let mut granted = Vec::new();
    for id in 2..=250 {
        raw.say(id, &get);
        let Some((_, Answer::Get { blocks })) = raw.hear() else { panic!("no answer") };
        granted.extend(blocks.into_iter().filter_map(|got| match got {
            Got::Leased { lease, .. } => Some(lease),
            Got::Failed(fault) => {
                assert_eq!(fault, Fault::TooManyLeases);
                None
            }
            Got::Missing => panic!("the block is there"),
        }));
    }
    assert_eq!(granted.len(), 1000);
    // Ids of others, of nobody, and one's own twice: none of it does harm.
    raw.say(0, &Request::Release { leases: vec![0, 1, u64::MAX, granted[0], granted[0]] });
    raw.say(300, &get);
    let Some((300, Answer::Get { blocks })) = raw.hear() else { panic!("no answer") };
    assert_eq!(blocks.iter().filter(|got| matches!(got, Got::Leased { .. })).count(), 1);
    let lease = good.get(&[name(1)], None).unwrap().pop().unwrap().lease().unwrap();
    assert_eq!(&*lease, b"bytes");
}

#[test]
fn who_asks_without_reading_is_stopped_and_others_go_on() {
    let daemon = Daemon::start();
    let good = daemon.client();
    good.put(&[block(1, b"bytes")], false).unwrap();
    let mut raw = Raw::greeted(&daemon);
    raw.socket.set_nonblocking(true).unwrap();
    let mut frames = Vec::new();
    for id in 0..64 {
        kv::encode(id, &Request::Lookup { names: vec![name(1); BATCH_MAX] }, &mut frames);
    }
    // 8 MiB a turn, answers of 256 KiB: the daemon stops reading.
    let mut sent = 0usize;
    let mut refused = 0;
    while refused < 200 && sent < 4 << 30 {
        match raw.socket.write(&frames[sent % frames.len()..]) {
            Ok(written) => {
                sent += written;
                refused = 0;
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                refused += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if sent.is_multiple_of(64) {
            assert_eq!(good.lookup(&[name(1)]).unwrap().len(), 1);
        }
    }
    assert!(sent < 4 << 30, "the daemon read all of it");
    assert_eq!(good.lookup(&[name(1)]).unwrap().len(), 1);
}

#[test]
fn other_users_store_and_read_but_do_not_rule() {
    if !rustix::process::geteuid().is_root() {
        // Only root can become another user to try.
        return;
    }
    let daemon = Daemon::open_to_all();
    let own = daemon.client();
    own.put(&[block(1, b"bytes")], false).unwrap();
    let mut other = Raw::dial_as(&daemon, Some(65_534)).greet();
    other.say(2, &Request::Lookup { names: vec![name(1)] });
    assert!(matches!(other.hear(), Some((2, Answer::Lookup { tiers })) if tiers.len() == 1));
    other.say(3, &Request::List { everywhere: false, cursor: 0, blocks_max: 9 });
    assert!(matches!(other.hear(), Some((3, Answer::List { .. }))));
    for forbidden in [
        Request::List { everywhere: true, cursor: 0, blocks_max: 9 },
        Request::Verify { everywhere: false, cursor: 0, blocks_max: 9 },
        Request::Evict { everywhere: false, cursor: 0, blocks_max: 9 },
        Request::Drain,
    ] {
        other.say(4, &forbidden);
        assert_eq!(other.refusal(), Fault::NotAllowed);
    }
    assert_eq!(own.lookup(&[name(1)]).unwrap().len(), 1);
}

#[test]
fn there_are_only_so_many_clients() {
    let daemon = Daemon::with("clients_max = 3\n");
    let _held = [daemon.client(), daemon.client()];
    let third = Raw::dial(&daemon);
    // The daemon counts the third when it accepts it, before any that dials later.
    let refused = kvclient::Client::connect(&daemon.uds(), "a", &crate::daemon::options());
    match refused {
        Err(kvclient::Error::Refused { fault, .. }) => assert_eq!(fault, Fault::TooManyClients),
        other => panic!("{other:?}"),
    }
    drop(third);
    // When the daemon has seen it go, there is room again.
    while kvclient::Client::connect(&daemon.uds(), "a", &crate::daemon::options()).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
}
