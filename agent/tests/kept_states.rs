//! States of slots in a real KV daemon, without an engine: what is stored is found by whatever begins like it,
//! and nothing else is.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent::slots::daemon::{Fetched, Line, Naming, Stored, Wish, fetch, store};
use agent::slots::value::{Manifest, Part, Pointer, Value};
use dataplane::digest::{self, Digest, Unit};
use kvclient::{Block, Client, Options};
use tempfile::TempDir;

#[expect(dead_code, reason = "shared with node.rs, which uses all of it")]
#[path = "node/process.rs"]
mod process;

use process::{Process, eventually};

const BLOCK_TOKENS: u32 = 16;
const NAMESPACE: &str = "llama.cpp/test";
/// Three parts of the daemon's largest block.
const STATE_BYTES: usize = (5 << 20) / 2;
const BYTES_MAX: u64 = 8 << 20;

struct House {
    daemon: Process,
    folder: TempDir,
    to_store: Line,
    to_fetch: Line,
    naming: Naming,
}

impl House {
    fn start() -> House {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("kv.sock");
        let text = format!(
            "[kv]\nram_gib = 0.05\nhuge_pages = \"never\"\nuds = {socket:?}\n\
             metrics_listen = \"127.0.0.1:0\"\nresp_listen = \"127.0.0.1:0\"\n\
             [kv.limits]\nblock_mib_max = 1\n",
        );
        std::fs::write(folder.path().join("kvcached.toml"), text).unwrap();
        House {
            daemon: daemon(&folder),
            to_store: Line::to_store(&socket, NAMESPACE),
            to_fetch: Line::to_fetch(&socket, NAMESPACE),
            naming: Naming { model: "m".into(), block_tokens: BLOCK_TOKENS },
            folder,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Stores a state of these tokens, whose bytes all are `fill`.
    fn store(&self, tokens: &[u32], fill: u8) -> Result<Stored, &'static str> {
        let path = self.path("saved");
        std::fs::write(&path, slot_file(tokens, fill)).unwrap();
        let stored = store(&self.to_store, &self.naming, &path, BYTES_MAX);
        stored.inspect_err(|error| println!("not stored: {error}")).map_err(|error| error.reason())
    }

    /// What a prompt of these tokens is given, and which state it is of.
    fn fetch(&self, tokens: &[u32], blocks_min: usize) -> Result<(Fetched, u8), &'static str> {
        self.fetch_with(Wish { blocks_min, ..self.wish(tokens) })
    }

    fn fetch_with(&self, wish: Wish) -> Result<(Fetched, u8), &'static str> {
        let path = self.path("fetched");
        let fetched = fetch(&self.to_fetch, &self.naming, &wish, &path);
        let fetched = fetched.map_err(|error| error.reason())?;
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, fetched.bytes);
        let fill = *bytes.last().unwrap();
        assert!(bytes.ends_with(&vec![fill; STATE_BYTES]), "parts were mixed");
        Ok((fetched, fill))
    }

    fn wish(&self, tokens: &[u32]) -> Wish {
        Wish {
            names: names(tokens),
            blocks_min: 1,
            deadline: Instant::now() + Duration::from_secs(60),
            context_tokens: 4_096,
            bytes_max: BYTES_MAX,
        }
    }

    fn client(&self) -> Client {
        let options = Options { staging_bytes: 4 << 20, ..Options::default() };
        Client::connect(&self.path("kv.sock"), NAMESPACE, &options).unwrap()
    }

    /// Blocks in the daemon with that label.
    fn blocks(&self, label: &str) -> usize {
        let (client, mut cursor, mut count) = (self.client(), 0, 0);
        loop {
            let (listed, next) = client.list(false, cursor, 900).unwrap();
            count += listed.iter().filter(|block| block.label == label.as_bytes()).count();
            cursor = next;
            if cursor == 0 {
                return count;
            }
        }
    }
}

fn daemon(folder: &TempDir) -> Process {
    let config = folder.path().join("kvcached.toml");
    let mut daemon = Process::start("cgn-kvcached", &config, folder.path());
    let socket = folder.path().join("kv.sock");
    let listens = || std::os::unix::net::UnixStream::connect(&socket).is_ok();
    eventually("the daemon listens", || daemon.is_alive() && listens());
    daemon
}

fn slot_file(tokens: &[u32], fill: u8) -> Vec<u8> {
    let count = u32::try_from(tokens.len()).unwrap();
    let words = [0x6767_7371, 3, count].into_iter().chain(tokens.iter().copied());
    words.flat_map(u32::to_le_bytes).chain(vec![fill; STATE_BYTES]).collect()
}

fn names(tokens: &[u32]) -> Vec<Digest> {
    let seed = digest::seed(Unit::Tokens, "m", "", "");
    digest::of_tokens(&seed, tokens, BLOCK_TOKENS as usize)
}

/// So many tokens, of which the first `common` are those of every other one.
fn tokens(common: u32, count: u32, own: u32) -> Vec<u32> {
    (0..count).map(|at| if at < common { at } else { at + own * 10_000 }).collect()
}

#[test]
fn a_state_is_found_by_what_begins_like_it_and_by_nothing_else() {
    let house = House::start();
    let state = tokens(400, 400, 0);
    assert_eq!(house.fetch(&state, 1), Err("nothing"));
    let stored = house.store(&state, 7).unwrap();
    assert_eq!((stored.tokens, stored.bytes), (400, (12 + 1_600 + STATE_BYTES) as u64));
    assert_eq!((house.blocks("slot prefix"), house.blocks("slot part")), (24, 3));

    // The same prompt, one that goes on, one that left off earlier, one that goes another way.
    let matched =
        |tokens: &[u32]| house.fetch(tokens, 1).map(|(fetched, _)| fetched.matched_tokens);
    assert_eq!(matched(&state), Ok(400));
    assert_eq!(matched(&tokens(400, 2_000, 1)), Ok(400));
    assert_eq!(matched(&state[..330]), Ok(320));
    assert_eq!(matched(&tokens(250, 600, 2)), Ok(240));
    assert_eq!(matched(&tokens(190, 600, 2)), Err("foreign"), "llama.cpp would begin anew");
    assert_eq!(matched(&tokens(0, 600, 2)), Err("nothing"));
    assert_eq!(house.fetch(&state, 26).map(drop), Err("nothing"), "too little to be worth it");
    assert!(house.fetch(&state, 25).is_ok());

    let late = Wish { deadline: Instant::now(), ..house.wish(&state) };
    assert_eq!(house.fetch_with(late).map(drop), Err("late"));
    let short = Wish { context_tokens: 399, ..house.wish(&state) };
    assert_eq!(house.fetch_with(short).map(drop), Err("does_not_fit"));
    let small = Wish { bytes_max: 1 << 20, ..house.wish(&state) };
    assert_eq!(house.fetch_with(small).map(drop), Err("too_large"));
}

#[test]
fn a_conversation_takes_the_place_of_its_beginning_and_branches_stay_apart() {
    let house = House::start();
    house.store(&tokens(400, 200, 0), 1).unwrap();
    house.store(&tokens(400, 300, 0), 2).unwrap();
    assert_eq!(house.blocks("slot part"), 3, "the shorter one's parts are gone");
    let of = |tokens: &[u32]| house.fetch(tokens, 1).map(|(_, fill)| fill);
    assert_eq!(of(&tokens(400, 200, 0)), Ok(2));
    // Another way on from the middle: both ends are found, and what they share leads to the newer one.
    house.store(&tokens(160, 300, 5), 3).unwrap();
    assert_eq!(of(&tokens(400, 300, 0)), Ok(2));
    assert_eq!(of(&tokens(160, 300, 5)), Ok(3));
    assert_eq!(of(&tokens(400, 160, 0)), Ok(3));
    // One that ends within the others leads nobody astray either.
    house.store(&tokens(400, 96, 0), 4).unwrap();
    assert_eq!(of(&tokens(400, 96, 0)), Ok(4));
    assert_eq!(of(&tokens(400, 300, 0)), Ok(2));
    // The same tokens again, computed anew.
    house.store(&tokens(400, 300, 0), 9).unwrap();
    assert_eq!(of(&tokens(400, 300, 0)), Ok(9));
    assert_eq!(house.blocks("slot part"), 6, "of the two that are left");
}

#[test]
fn states_that_cannot_be_kept_are_refused_by_their_reason() {
    let house = House::start();
    assert_eq!(house.store(&tokens(0, 15, 0), 1).map(drop), Err("short"));
    let path = house.path("saved");
    std::fs::write(&path, b"no slot file").unwrap();
    let refused = |max| store(&house.to_store, &house.naming, &path, max).unwrap_err().reason();
    assert_eq!(refused(BYTES_MAX), "file");
    assert_eq!(refused(1), "too_large");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(refused(BYTES_MAX), "file");
}

/// Whoever may open the socket may write anything.
#[test]
fn what_others_wrote_under_our_names_is_never_given_to_an_engine() {
    let house = House::start();
    let (ours, foreign) = (tokens(0, 320, 1), tokens(0, 320, 2));
    house.store(&foreign, 8).unwrap();
    let (name, last) = (names(&ours)[19].0, names(&foreign)[19].0);
    let client = house.client();
    let put = |bytes: &[u8]| {
        let block = Block { name, parent: None, bytes, label: b"" };
        client.put(&[block], false).unwrap()[0].unwrap();
    };
    // What leads to it is not needed: it is the last block, and the daemon's peers might have had it.
    let part = Part { name: [9; 32], len: 5 };
    for lie in [
        b"something else".to_vec(),
        Value::Pointer(Pointer { state: last, tokens: 320 }).encode(),
        Value::Pointer(Pointer { state: [9; 32], tokens: 320 }).encode(),
        Value::Manifest(Manifest { tokens: 320, parts: vec![part] }).encode(),
    ] {
        put(&lie);
        assert_eq!(house.fetch(&ours, 1).map(drop), Err("gone"), "{lie:02x?}");
    }
}

#[test]
fn a_daemon_that_died_is_found_again_and_one_that_is_full_forgets_whole_states() {
    let mut house = House::start();
    house.store(&tokens(0, 320, 1), 1).unwrap();
    house.daemon.crash();
    assert_eq!(house.store(&tokens(0, 320, 1), 1).map(drop), Err("daemon"));
    assert_eq!(house.fetch(&tokens(0, 320, 1), 1).map(drop), Err("daemon"));
    house.daemon = daemon(&house.folder);
    assert_eq!(house.fetch(&tokens(0, 320, 1), 1).map(drop), Err("nothing"));
    // 51 MiB of RAM hold some twenty states. Which ones is the daemon's to say; none is found in part.
    let mut refused = 0;
    for number in 1..=40 {
        match house.store(&tokens(0, 320, number), number as u8) {
            Ok(_) => drop(house.fetch(&tokens(0, 320, number), 1)),
            Err(reason) => {
                assert_eq!(reason, "full");
                refused += 1;
            }
        }
    }
    let mut found = 0;
    for number in 1..=40 {
        match house.fetch(&tokens(0, 320, number), 1) {
            Ok((fetched, fill)) => {
                assert_eq!((fetched.matched_tokens, fill), (320, number as u8));
                found += 1;
            }
            Err(reason) => assert!(["nothing", "gone"].contains(&reason), "{reason}"),
        }
    }
    println!("{found} of 40 states found, {refused} not taken");
    assert!((5..30).contains(&found), "{found}");
}
