//! Commands and their answers, in the words of redis.

use crate::daemon::Daemon;

#[test]
fn each_command_answers_as_redis_does() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    for (words, answer) in [
        ("PING", "+PONG\r\n"),
        ("PING a", "$1\r\na\r\n"),
        ("ECHO a", "$1\r\na\r\n"),
        ("GET a", "$-1\r\n"),
        ("SET a 1", "+OK\r\n"),
        ("SET a 2 NX", "$-1\r\n"),
        ("SET b 2 XX", "$-1\r\n"),
        ("set a 3 xx keepttl", "+OK\r\n"),
        ("SETNX a 4", ":0\r\n"),
        ("SETNX b 4", ":1\r\n"),
        ("MSET c 5 d 6", "+OK\r\n"),
        ("MGET a b c d e", "*5\r\n$1\r\n3\r\n$1\r\n4\r\n$1\r\n5\r\n$1\r\n6\r\n$-1\r\n"),
        ("EXISTS a a e", ":2\r\n"),
        ("STRLEN a", ":1\r\n"),
        ("TYPE a", "+string\r\n"),
        ("TYPE e", "+none\r\n"),
        ("TTL a", ":-1\r\n"),
        ("PTTL e", ":-2\r\n"),
        ("MEMORY USAGE a", ":4096\r\n"),
        ("DBSIZE", ":4\r\n"),
        ("DEL a e", ":1\r\n"),
        ("UNLINK b", ":1\r\n"),
        ("SELECT 1", "+OK\r\n"),
        ("EXISTS c", ":0\r\n"),
        ("SET c other", "+OK\r\n"),
        ("FLUSHDB", "+OK\r\n"),
        ("DBSIZE", ":0\r\n"),
        ("SELECT 0", "+OK\r\n"),
        ("GET c", "$1\r\n5\r\n"),
        ("CLIENT SETNAME me", "+OK\r\n"),
        ("CLIENT GETNAME", "$2\r\nme\r\n"),
        ("CLIENT SETINFO LIB-NAME redis-py", "+OK\r\n"),
        ("COMMAND DOCS", "*0\r\n"),
        (
            "CONFIG GET sav* appendonly",
            "*4\r\n$4\r\nsave\r\n$0\r\n\r\n$10\r\nappendonly\r\n$2\r\nno\r\n",
        ),
        ("RESET", "+RESET\r\n"),
        ("CLIENT GETNAME", "$-1\r\n"),
    ] {
        client.ask(words, answer);
    }
    client.ask("QUIT", "+OK\r\n");
    assert_eq!(client.rest(), b"");
}

#[test]
fn what_cannot_be_done_is_an_error_and_the_connection_goes_on() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    for (words, error) in [
        ("FOO bar baz", "-ERR unknown command 'FOO', with args beginning with: 'bar' 'baz' "),
        ("GET", "-ERR wrong number of arguments for 'get' command"),
        ("SET a", "-ERR wrong number of arguments for 'set' command"),
        ("MSET a 1 b", "-ERR wrong number of arguments for 'mset' command"),
        ("SET a 1 EX 5", "-ERR expiry is not supported"),
        ("SET a 1 NX XX", "-ERR syntax error"),
        ("SET a 1 5", "-ERR syntax error"),
        ("EXPIRE a 5", "-ERR expiry is not supported"),
        ("SETEX a 5 v", "-ERR expiry is not supported"),
        ("KEYS *", "-ERR KEYS is not supported"),
        ("FLUSHALL", "-ERR FLUSHALL is not supported"),
        ("SELECT 16", "-ERR DB index is out of range"),
        ("SELECT x", "-ERR invalid DB index"),
        ("SCAN x", "-ERR invalid cursor"),
        ("SCAN 0 COUNT 0", "-ERR syntax error"),
        ("SCAN 18446744073709551615 COUNT 5", "*2"),
        ("CLIENT KILL x", "-ERR unknown subcommand 'KILL'"),
        ("CONFIG SET save x", "-ERR of CONFIG only CONFIG GET"),
        ("HELLO 4", "-NOPROTO unsupported protocol version"),
        ("AUTH password", "-ERR AUTH <password> called without any password"),
    ] {
        client.command(&words.split(' ').collect::<Vec<_>>());
        let line = client.line();
        assert!(line.starts_with(error), "{words}: {line}");
        if line == "*2" {
            client.expect("$1\r\n0\r\n*0\r\n");
        }
    }
    let long = "k".repeat(1025);
    client.command(&["SET", &long, "v"]);
    assert!(client.line().starts_with("-ERR the key is longer than 1024 bytes"));
    client.command(&["GET", &"k".repeat(20_000)]);
    assert!(client.line().starts_with("-ERR the command's arguments are too long"));
    client.ask("EXISTS a", ":0\r\n");
}

#[test]
fn lines_typed_by_hand_work() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.send("set a \"x y\\n\"\r\n\r\nget a\nPING\r\n");
    client.expect("+OK\r\n$4\r\nx y\n\r\n+PONG\r\n");
}

#[test]
fn hello_changes_the_protocol() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.command(&["HELLO", "3", "SETNAME", "me"]);
    client.expect("%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n");
    client.expect("$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n");
    client.expect("$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:1\r\n$7\r\nmodules\r\n*0\r\n");
    client.ask("GET nothing", "_\r\n");
    client.ask("CONFIG GET save", "%1\r\n$4\r\nsave\r\n$0\r\n\r\n");
    client.ask("RESET", "+RESET\r\n");
    client.ask("GET nothing", "$-1\r\n");
}

#[test]
fn a_scan_finds_every_key_once_on_any_number_of_cores() {
    let daemon = Daemon::on(2, "", |_| ());
    let mut client = daemon.connect();
    for number in 0..300 {
        client.set(&format!("key{number}"), b"v");
    }
    let (mut found, mut cursor) = (Vec::new(), "0".to_owned());
    loop {
        client.command(&["SCAN", &cursor, "MATCH", "key*[02468]", "COUNT", "7"]);
        assert_eq!(client.line(), "*2");
        client.line();
        cursor = client.line();
        let count: usize = client.line()[1..].parse().unwrap();
        for _ in 0..count {
            client.line();
            found.push(client.line());
        }
        if cursor == "0" {
            break;
        }
    }
    found.sort();
    let mut expected: Vec<String> =
        (0..300).step_by(2).map(|number| format!("key{number}")).collect();
    expected.sort();
    assert_eq!(found, expected);
    client.ask("DBSIZE", ":300\r\n");
    client.ask("FLUSHDB", "+OK\r\n");
    client.ask("DBSIZE", ":0\r\n");
}
