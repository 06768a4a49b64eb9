//! SIGHUP: the file is read again, whole or not at all.

use crate::daemon::{Daemon, value};

#[test]
fn a_quota_holds_from_the_moment_it_is_read() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    for number in 0..40 {
        client.set(&format!("k{number}"), &value(number, 1 << 20));
    }
    client.ask("DBSIZE", ":40\r\n");
    daemon.rewrite(|text| format!("{text}\n[kv.namespaces.resp]\nquota_gib = 0.01\n"));
    daemon.reload("the configuration is read again");
    client.set("one more", &value(41, 1 << 20));
    client.command(&["DBSIZE"]);
    let held: u64 = client.line()[1..].parse().unwrap();
    assert!(held <= 10, "{held} MiB for a quota of 10.24");
    daemon.rewrite(|text| text.replace("quota_gib = 0.01", "quota_gib = 0.04"));
    daemon.reload("the configuration is read again");
    for number in 0..30 {
        client.set(&format!("k{number}"), &value(number, 1 << 20));
    }
    client.ask("EXISTS k0 k29", ":2\r\n");
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_holds() {
    let daemon = Daemon::with("clients_max = 9\n");
    daemon.rewrite(|text| {
        text.replace("ram_gib = 0.0625", "ram_gib = 0.125")
            .replace("block_mib_max = 32", "block_mib_max = 16")
            .replace("clients_max = 9", "clients_max = 3")
    });
    daemon.reload("keys=\"kv.ram_gib, kv.limits.block_mib_max\"");
    assert!(daemon.log().contains("these keys need a restart"));
    let mut client = daemon.connect();
    client.ask("CONFIG GET maxclients", "*2\r\n$10\r\nmaxclients\r\n$1\r\n3\r\n");
    client.set("large", &value(1, 20 << 20));
    let _two = [daemon.connect(), daemon.connect()].map(|mut other| {
        other.ask("PING", "+PONG\r\n");
        other
    });
    daemon.connect().expect("-ERR max number of clients reached\r\n");
}

#[test]
fn a_bad_file_changes_nothing_and_is_said() {
    let daemon = Daemon::with("clients_max = 9\n");
    let good = std::fs::read_to_string(daemon.file("kv.toml")).unwrap();
    let users = daemon.file("users.toml");
    for (bad, said) in [
        (good.replace("clients_max", "clients_mix"), "nearest known key is `clients_max`"),
        (good.replace("clients_max = 9", "clients_max = 0"), "must be at least 1"),
        (format!("{}users_file = {users:?}\n", good.replace('9', "8")), "users.toml"),
        (good.replace("ram_gib", "write = \"through\"\nram_gib"), "kv.ssd_dir"),
        (
            good.replace(
                "ram_gib",
                "write = \"through\"\nssd_dir = [\"/d\"]\nssd_gib = 9\nram_gib",
            ),
            "needs a restart (kv.ssd_dir, kv.ssd_gib) is left out",
        ),
    ] {
        daemon.rewrite(|_| bad);
        daemon.reload(said);
        daemon.connect().ask("CONFIG GET maxclients", "*2\r\n$10\r\nmaxclients\r\n$1\r\n9\r\n");
    }
    assert_eq!(daemon.log().matches("the configuration stays as it is").count(), 5);
}
