//! A disk that is encrypted: nothing of a block is on it in clear, and only its key opens it. A key that is
//! missing, wrong or one too many stops the start, and the disk is as it was.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use futures_lite::future::block_on;
use kvstore::disk::start::{StartError, start};

use crate::daemon::{Daemon, Settings, bytes};
use crate::shelf::{FIRST_SEGMENT, SEGMENT_BYTES, Shelf, device, key, key_of, value};

const ALL: usize = FIRST_SEGMENT + 8 * SEGMENT_BYTES as usize;

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// Whether any file below a folder holds these bytes.
fn any_file_holds(folder: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => any_file_holds(&path, needle),
            false => std::fs::read(&path).is_ok_and(|bytes| holds(&bytes, needle)),
        }
    })
}

#[test]
fn nothing_of_a_block_is_on_an_encrypted_disk_or_in_its_index() {
    for mode in [None, Some(1)] {
        let folder = tempfile::tempdir().unwrap();
        let devices = [device(8, 1)];
        let shelf = block_on(Shelf::start(&devices, folder.path(), key_of(mode)));
        let text = value(9);
        block_on(shelf.put(key(3), &text)).unwrap();
        shelf.stop();
        let (disk, is_shown) = (devices[0].bytes_at(0, ALL), mode.is_none());
        // The value, its label, its namespace, its name, its parent's name and its hash.
        let hash = *blake3::hash(&text).as_bytes();
        for shown in [&text[..64], b"label", b"model", &[3; 32], &[255; 32], &hash] {
            assert_eq!(holds(&disk, shown), is_shown, "{}", shown.escape_ascii());
        }
        for shown in [&b"label"[..], b"model", &[3; 32], &hash] {
            assert_eq!(any_file_holds(folder.path(), shown), is_shown);
        }
    }
}

#[test]
fn a_start_with_another_key_or_none_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (own, other) in [(Some(1), Some(2)), (Some(1), None), (None, Some(1))] {
        let devices = [device(8, 1)];
        let index = folder.path().join(format!("{own:?}{other:?}"));
        let shelf = block_on(Shelf::start(&devices, &index, key_of(own)));
        block_on(shelf.put(key(3), &value(9))).unwrap();
        shelf.stop();
        let before = devices[0].bytes_at(0, ALL);
        // Another size of segments would empty a disk that is ours to empty.
        for segment_bytes in [SEGMENT_BYTES, 2 * SEGMENT_BYTES] {
            let other_key = key_of(other);
            let key = other_key.as_ref();
            let error = block_on(start(&devices, &index, segment_bytes, key, || [9; 32]));
            let error = error.unwrap_err();
            let is_said = match (own, other) {
                (Some(_), Some(_)) => matches!(error, StartError::KeyWrong(0)),
                (Some(_), None) => matches!(error, StartError::KeyMissing(0)),
                (None, _) => matches!(error, StartError::NotEncrypted(0)),
            };
            assert!(is_said, "{error}");
        }
        assert!(devices[0].bytes_at(0, ALL) == before);
        let shelf = block_on(Shelf::start(&devices, &index, key_of(own)));
        assert_eq!(block_on(shelf.get(key(3))), Some(value(9)));
        shelf.stop();
    }
}

#[test]
fn an_index_of_another_key_is_built_again() {
    let folder = tempfile::tempdir().unwrap();
    for mode in [None, Some(1), Some(2), None] {
        // Another disk each time, and the index that the one before left.
        let devices = [device(8, 1)];
        let shelf = block_on(Shelf::start(&devices, folder.path(), key_of(mode)));
        assert_eq!(shelf.report.indexed, 0);
        block_on(shelf.put(key(3), &value(9))).unwrap();
        shelf.stop();
        let shelf = block_on(Shelf::start(&devices, folder.path(), key_of(mode)));
        assert_eq!((shelf.report.indexed, shelf.report.is_index_lost), (1, false));
        assert_eq!(block_on(shelf.get(key(3))), Some(value(9)));
        shelf.stop();
    }
}

#[test]
fn the_daemon_takes_its_key_from_a_file_of_its_own_and_says_what_is_wrong() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (disk, file) = (folder.path().join("ssd"), folder.path().join("key"));
    std::fs::create_dir(&disk).unwrap();
    let lines = format!("ssd_dir = [{disk:?}]\nssd_gib = 0.25\nssd_segment_mib = 16\n");
    let settings = |lines: String| Settings {
        folder: folder.path(),
        ram_gib: 0.0625,
        block_mib_max: 8,
        lines,
        enters: None,
    };
    let with_key = settings(format!("{lines}disk_key_file = {file:?}\n"));
    let write_key = |digits: &str, mode| {
        std::fs::write(&file, digits.repeat(32)).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
    };
    let fails = |settings: &Settings<'_>, words: &str| {
        let said = Daemon::start(settings).err().unwrap();
        assert!(said.contains(words), "{said}");
    };
    fails(&with_key, "cannot read kv.disk_key_file");
    write_key("5c", 0o644);
    fails(&with_key, "chmod 600");
    write_key("5c", 0o600);
    let daemon = Daemon::start(&with_key).unwrap();
    let mut client = daemon.connect();
    // Of every kind of length: none, less than a page, and several parts of several MiB.
    let lens = [0, 1, 4095, 4096, 4097, 262_144, 262_145, 5_000_000, 8 << 20];
    for (number, len) in (0..).zip(lens) {
        client.set(&format!("k{number}"), &bytes(number, len)).unwrap();
    }
    daemon.kill();
    write_key("5d", 0o600);
    fails(&with_key, "encrypted with another key");
    fails(&settings(lines), "is encrypted; name its key");
    write_key("5c", 0o600);
    let daemon = Daemon::start(&with_key).unwrap();
    let mut client = daemon.connect();
    for (number, len) in (0..).zip(lens) {
        assert!(client.get(&format!("k{number}")) == Some(bytes(number, len)), "{len}");
    }
    assert_eq!(daemon.metric("cgn_kvcached_disk_corruptions_total"), 0.0);
    daemon.stop();
    assert!(!any_file_holds(&disk, &bytes(7, 5_000_000)[..64]));
}
