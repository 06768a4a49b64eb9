//! A client that polls gets the same as one that sleeps.

use std::time::Duration;

use kvclient::{Client, Error, Found, Tier};

use crate::daemon::{Daemon, block, bytes, name, options};

#[test]
fn what_is_asked_in_the_ring_is_what_is_asked_on_the_socket() {
    for cores in [1, 2] {
        let daemon = Daemon::on(cores, "leases_per_client_max = 500\n");
        let client = Client::connect_to_poll(&daemon.uds(), "model/fp8/0", &options()).unwrap();
        let mut polling = client.polling().unwrap();
        assert!(matches!(client.polling(), Err(Error::Invalid(_))));
        for number in 0..20 {
            client.put(&[block(number, &bytes(number, 10_000))], false).unwrap();
        }
        // More than the ring has entries, and than there may be leases.
        for turn in 0..1200u32 {
            let number = turn % 25;
            assert_eq!(
                polling.lookup(&name(number)).unwrap(),
                (number < 20).then_some(Tier::Ram),
                "{number}"
            );
            match polling.get(&name(number)).unwrap() {
                Found::Lease(lease) => {
                    assert_eq!(&*lease, bytes(number, 10_000));
                    // One way or the other.
                    if turn % 2 == 0 {
                        polling.release(lease).unwrap();
                    }
                }
                Found::Missing => assert!(number >= 20),
                Found::Failed(fault) => panic!("{fault}"),
            }
            if turn % 300 == 0 {
                // Long enough for the daemon to sleep: it is woken.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        // The socket of the same connection works beside it.
        assert_eq!(client.lookup(&[name(1)]).unwrap(), [Tier::Ram]);
    }
}

#[test]
fn a_polling_client_notices_that_the_daemon_died() {
    let mut daemon = Daemon::start();
    let client = Client::connect_to_poll(&daemon.uds(), "model/fp8/0", &options()).unwrap();
    let mut polling = client.polling().unwrap();
    client.put(&[block(1, b"bytes")], false).unwrap();
    let lease = polling.get(&name(1)).unwrap().lease().unwrap();
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(matches!(polling.get(&name(1)), Err(Error::Lost(_))));
    assert!(matches!(client.lookup(&[name(1)]), Err(Error::Lost(_))));
    assert_eq!(&*lease, b"bytes");
}

#[test]
fn a_client_without_a_ring_does_not_poll() {
    let daemon = Daemon::start();
    assert!(matches!(daemon.client().polling(), Err(Error::Invalid(_))));
}
