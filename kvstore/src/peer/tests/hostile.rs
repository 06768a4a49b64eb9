//! Who may not be a peer gets nothing; who is one and misbehaves harms nobody.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, Daemon, eventually, key, run};
use super::rogue::{Rogue, Script};
use crate::peer::config::PeersConfig;
use crate::peer::endpoint::Endpoint;
use crate::peer::fetch::Fetched;
use crate::peer::tls::{Credentials, Files, TlsError};

/// A daemon, and a rogue connected to it that claims to hold block 1.
fn attacked(cluster: &Cluster, script: Script) -> (Daemon, Rogue) {
    let daemon = Daemon::start(cluster, "victim", &[], |_| {});
    let rogue = Rogue::start(&cluster.node("rogue"), daemon.address, 1, script);
    eventually(|| daemon.peers.stats().directory.get() == 1);
    (daemon, rogue)
}

fn fetch(daemon: &Daemon, within: Duration) -> Fetched {
    run(daemon.peers.fetch(vec![key(1)], Some(Instant::now() + within)))[0]
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn wrong_bytes_are_never_kept_and_not_asked_for_again() {
    let cluster = Cluster::new("rack");
    for script in [Script::WrongHash, Script::WrongNamespace] {
        let (daemon, rogue) = attacked(&cluster, script);
        assert_eq!(fetch(&daemon, LONG), Fetched::Missing, "{script:?}");
        assert_eq!(fetch(&daemon, LONG), Fetched::Missing);
        assert!(daemon.held(1).is_none());
        assert_eq!(daemon.peers.stats().corrupt.get(), 1);
        assert_eq!(rogue.asked.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_cut_in_the_middle_leaves_nothing_behind() {
    let cluster = Cluster::new("rack");
    for script in [Script::CutStream, Script::CutConnection] {
        let (daemon, _rogue) = attacked(&cluster, script);
        assert_eq!(fetch(&daemon, LONG), Fetched::Missing, "{script:?}");
        assert!(daemon.held(1).is_none());
    }
}

#[test]
fn what_cannot_be_read_ends_the_connection() {
    let cluster = Cluster::new("rack");
    let (daemon, rogue) = attacked(&cluster, Script::Garbage);
    assert_eq!(fetch(&daemon, LONG), Fetched::Missing);
    eventually(|| rogue.closed.load(Ordering::SeqCst) == 1);
    assert_eq!(fetch(&daemon, LONG), Fetched::Missing);

    let daemon = Daemon::start(&cluster, "other", &[], |_| {});
    let rogue = Rogue::start(&cluster.node("rogue"), daemon.address, 1, Script::GarbageGossip);
    eventually(|| rogue.closed.load(Ordering::SeqCst) == 1);
    eventually(|| daemon.peers.stats().connected.get() == 0);
}

#[test]
fn a_silent_peer_costs_the_deadline_and_no_more() {
    let cluster = Cluster::new("rack");
    let (daemon, rogue) = attacked(&cluster, Script::Silent);
    assert_eq!(fetch(&daemon, Duration::from_millis(300)), Fetched::Late);
    assert!(rogue.asked.load(Ordering::SeqCst) >= 1);
}

#[test]
fn where_one_is_silent_another_is_asked_too() {
    let cluster = Cluster::new("rack");
    let (daemon, rogue) = attacked(&cluster, Script::Silent);
    let good = Daemon::start(&cluster, "good", &[&daemon], |_| {});
    good.hold(1, 10_000);
    good.hold(2, 10_000);
    eventually(|| daemon.peers.stats().directory.get() == 2);
    // The rogue came first, and of two that are unknown the first is asked.
    assert_eq!(fetch(&daemon, LONG), Fetched::Kept);
    assert_eq!(daemon.held(1), good.held(1));
    assert_eq!(rogue.asked.load(Ordering::SeqCst), 1);
    assert_eq!(daemon.peers.stats().hedged.get(), 1);
}

#[test]
fn an_offered_block_that_is_larger_than_was_said_is_not_taken() {
    let cluster = Cluster::new("rack");
    let (daemon, rogue) = attacked(&cluster, Script::SmallOffer);
    eventually(|| daemon.peers.stats().copies.with_label_values(&["lost"]).get() == 1);
    assert_eq!(rogue.asked.load(Ordering::SeqCst), 1);
    assert!(daemon.held(1).is_none());
    // Who asks for it gets it, whatever was said when it was offered.
    assert_eq!(fetch(&daemon, LONG), Fetched::Kept);
}

#[test]
fn a_flood_of_offers_costs_one_request_at_a_time() {
    let cluster = Cluster::new("rack");
    let daemon = Daemon::start(&cluster, "victim", &[], |_| {});
    let rogue = Rogue::start(&cluster.node("rogue"), daemon.address, 1, Script::ManyOffers);
    let declined = |why: &str| daemon.peers.stats().copies.with_label_values(&[why]).get();
    // 6,400 blocks of 1 MiB were offered: of the first 64 those that the rate and what may be on its way
    // allow are asked for, and while that rogue is silent no others are.
    eventually(|| declined("busy") + declined("lost") >= 6_400 - 64);
    assert!(rogue.asked.load(Ordering::SeqCst) <= 2);
    assert_eq!(declined("kept"), 0);
}

/// Dials with the files given, asks for block 1 if that can be, and says how many bytes came.
fn bytes_got(files: &Files, target: SocketAddr) -> usize {
    let credentials = Credentials::load(files).unwrap();
    bytes_got_as(&credentials, target)
}

fn bytes_got_as(credentials: &Credentials, target: SocketAddr) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint = Endpoint::bind(SocketAddr::from(([127, 0, 0, 1], 0)), credentials).unwrap();
        // A client of TLS 1.3 learns only after its own last word that it was refused.
        let Ok(link) = endpoint.dial(&target.to_string()).await else { return 0 };
        let Ok((mut sending, mut receiving)) = link.request().await else { return 0 };
        let request = crate::peer::wire::Request { deadline_ms: 60_000, keys: vec![key(1)] };
        if sending.write_all(&request.encode()).await.is_err() {
            return 0;
        }
        let _ = sending.finish();
        let mut got = 0;
        let mut piece = vec![0; 4_096];
        while let Ok(Some(bytes)) = receiving.read(&mut piece).await {
            got += bytes;
        }
        got
    })
}

#[derive(Debug)]
struct ShowsNothing;

impl rustls::client::ResolvesClientCert for ShowsNothing {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<std::sync::Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn only_nodes_of_the_cluster_get_anything() {
    let cluster = Cluster::new("rack");
    let daemon = Daemon::start(&cluster, "a", &[], |_| {});
    daemon.hold(1, 100_000);
    let target = daemon.address;
    assert!(bytes_got(&cluster.node("b"), target) > 100_000, "a node gets the block");

    // A foreign authority, even with this cluster's name; believing this cluster's, to get in.
    let foreign = Cluster::new("rack");
    let mut thief = foreign.node("b");
    let credentials = Credentials::load(&thief).unwrap();
    assert_eq!(bytes_got_as(&credentials, target), 0);
    thief.foreign_ca = Some(cluster.path().join("ca.pem"));
    assert_eq!(bytes_got(&thief, target), 0);

    // Nobody at all.
    let mut nobody = Credentials::load(&cluster.node("c")).unwrap();
    let mut client = (*nobody.client).clone();
    client.client_auth_cert_resolver = std::sync::Arc::new(ShowsNothing);
    nobody.client = std::sync::Arc::new(client);
    assert_eq!(bytes_got_as(&nobody, target), 0);

    let refused = &daemon.peers.stats().refused;
    eventually(|| refused.with_label_values(&["handshake"]).get() >= 2);
    // The good one went without a word; it is missed after a while.
    eventually(|| daemon.peers.stats().connected.get() == 0);
}

#[test]
fn a_member_that_is_no_node_is_sent_away() {
    let cluster = Cluster::new("rack");
    let daemon = Daemon::start(&cluster, "a", &[], |_| {});
    daemon.hold(1, 100_000);
    let router = cluster.member("r", "cognitora://rack/router/r");
    assert!(matches!(Credentials::load(&router), Err(TlsError::Role { .. })));
    // So a stranger that shows it must come by other means.
    let mut stranger = Credentials::load(&cluster.node("b")).unwrap();
    stranger.client = with_certificate(&stranger, &router);
    assert_eq!(bytes_got_as(&stranger, daemon.address), 0);
    // A foreign cluster's name, signed by this cluster's authority.
    let other = cluster.member("o", "cognitora://other/node/o");
    stranger.client = with_certificate(&stranger, &other);
    assert_eq!(bytes_got_as(&stranger, daemon.address), 0);
    let refused = &daemon.peers.stats().refused;
    eventually(|| refused.with_label_values(&["identity"]).get() == 2);
}

fn with_certificate(base: &Credentials, files: &Files) -> std::sync::Arc<rustls::ClientConfig> {
    use rustls::pki_types::pem::PemObject;
    let chain = rustls::pki_types::CertificateDer::pem_file_iter(&files.cert).unwrap();
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let provider = base.client.crypto_provider();
    let signed = rustls::sign::CertifiedKey::from_der(chain, key, provider).unwrap();
    let mut client = (*base.client).clone();
    client.client_auth_cert_resolver =
        std::sync::Arc::new(rustls::sign::SingleCertAndKey::from(signed));
    std::sync::Arc::new(client)
}

#[test]
fn a_foreign_cluster_that_is_believed_gets_blocks_within_its_limit() {
    let (home, away) = (Cluster::new("home"), Cluster::new("away"));
    let mut files = home.node("a");
    files.foreign_ca = Some(away.path().join("ca.pem"));
    let slow = PeersConfig { foreign_egress_mib_s_max: 1, ..PeersConfig::default() };
    let daemon = Daemon::with(slow, &files);
    daemon.hold(1, 2_000);
    daemon.hold(2, 2 << 20);
    let mut guest = away.node("g");
    guest.foreign_ca = Some(home.path().join("ca.pem"));
    let connect = vec![daemon.address.to_string()];
    let guest = Daemon::with(PeersConfig { connect, ..PeersConfig::default() }, &guest);
    eventually(|| run(guest.peers.fetch(vec![key(1)], None)) == [Fetched::Kept]);
    eventually(|| guest.peers.stats().directory.get() == 2);
    let soon = Some(Instant::now() + Duration::from_millis(500));
    assert_eq!(run(guest.peers.fetch(vec![key(2)], soon)), [Fetched::Late]);
}

#[test]
fn certificates_that_cannot_be_used_are_said_at_start() {
    let cluster = Cluster::new("rack");
    let good = cluster.node("a");
    let fault = |files: Files| Credentials::load(&files).err().unwrap();
    let missing = Files { cert: "/nowhere/cert.pem".into(), ..good.clone() };
    assert!(fault(missing).to_string().contains("/nowhere/cert.pem"));
    let nameless = cluster.member("n", "https://example.com/");
    assert!(matches!(fault(nameless), TlsError::Holder { .. }));
    let other = Cluster::new("rack");
    let mixed = Files { ca: other.path().join("ca.pem"), ..good.clone() };
    assert!(matches!(fault(mixed), TlsError::Unfit { .. }));
    let stolen = Files { key: cluster.node("b").key, ..good };
    assert!(matches!(fault(stolen), TlsError::Unfit { .. }));
}
