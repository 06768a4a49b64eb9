//! SIGHUP while peers are connected: other certificates, other authorities, other limits.

use std::time::Duration;

use crate::certificates::Authority;
use crate::namespaces::{ADDRESSES, Wire};
use crate::node::{Node, block, bytes};
use crate::{LOOK, eventually};

#[test]
fn limits_peers_and_certificates_change_while_the_daemons_run() {
    let wire = match Wire::lay() {
        Ok(wire) => wire,
        Err(reason) => return eprintln!("left out: {reason} (it needs root and ip)"),
    };
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("rack");
    let left = Node::start(&wire, 0, "left", &authority, folder.path(), &[]);
    let right = Node::start(&wire, 1, "right", &authority, folder.path(), &[]);
    let at_right = right.client();
    left.put(1, 300_000);

    // They are told of each other.
    right.change("connect = []", &format!("connect = [{:?}]", left.quic));
    eventually("right reads what left has", || block(&at_right, 1, LOOK).is_some());

    // 3 MiB at 1 MiB/s do not come within half a second, however fast the machine.
    left.change("egress_mib_s_max = 0", "egress_mib_s_max = 1");
    left.put(2, 3 << 20);
    let soon = Duration::from_millis(500);
    eventually("right knows of it", || right.stat("cgn_kvcached_peer_directory_entries") == 2);
    assert_eq!(block(&at_right, 2, soon), None);
    left.change("egress_mib_s_max = 1", "egress_mib_s_max = 0");
    eventually("it comes", || block(&at_right, 2, LOOK).is_some());

    // Another authority takes over at left: right is not believed any more.
    let next = Authority::new("rack");
    left.become_member(&next, ADDRESSES[0]);
    eventually("right is sent away", || left.stat("cgn_kvcached_peer_connections") == 0);
    left.put(3, 100_000);
    assert_eq!(block(&at_right, 3, LOOK), None);

    // What cannot be used changes nothing: left still is who it became.
    std::fs::write(left.file("key"), "no key").unwrap();
    left.reload("the configuration stays as it is");
    right.become_member(&next, ADDRESSES[1]);
    eventually("they are peers again", || block(&at_right, 3, LOOK).is_some());
    assert_eq!(block(&at_right, 3, LOOK).unwrap(), bytes(3, 100_000));
}
