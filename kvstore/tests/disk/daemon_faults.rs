//! The daemon on file systems and block devices that are full, foreign, damaged or gone: it serves the
//! rest, drops the bad and says so.

use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::daemon::{Connection, Daemon, Settings, bytes};
use crate::loop_device::{LoopDevice, Mount, sparse};

const LEN: usize = 1_000_003;

/// 64 MiB of RAM, blocks to 8 MiB, segments of 16 MiB.
fn settings<'a>(folder: &'a Path, disk: &Path, ssd_gib: f64, more: &str) -> Settings<'a> {
    let lines = format!("ssd_dir = [{disk:?}]\nssd_gib = {ssd_gib}\nssd_segment_mib = 16\n{more}");
    Settings { folder, ram_gib: 0.0625, block_mib_max: 8, lines, enters: None }
}

/// How many of some blocks are there; whatever is there is right.
fn right(client: &mut Connection, numbers: std::ops::Range<u64>) -> usize {
    let found = numbers.filter(|&number| {
        let found = client.get(&number.to_string());
        assert!(found.is_none() || found == Some(bytes(number, LEN)), "block {number}");
        found.is_some()
    });
    found.count()
}

fn fill(client: &mut Connection, numbers: std::ops::Range<u64>) {
    for number in numbers {
        client.set(&number.to_string(), &bytes(number, LEN)).unwrap();
    }
}

#[test]
fn a_full_file_system_keeps_the_latest_blocks_and_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::ext4(folder.path(), 256 << 20) else { return };
    // The disk promises more than the file system has.
    let settings = settings(folder.path(), &mount.at, 1.0, "");
    let daemon = Daemon::start(&settings).unwrap();
    let mut client = daemon.connect();
    fill(&mut client, 0..300);
    assert_eq!(right(&mut client, 250..300), 50);
    assert!(daemon.metric("cgn_kvcached_disk_blocks_dropped_total") > 0.0);
    assert_eq!(daemon.metric("cgn_kvcached_disk_index_lags_total"), 0.0);
    assert!(!daemon.log().contains("the index takes no more"), "{}", daemon.log());
    daemon.kill();
    let daemon = Daemon::start(&settings).unwrap();
    let mut client = daemon.connect();
    assert_eq!(right(&mut client, 250..300), 50, "what was answered is durable");
    let there = right(&mut client, 0..300);
    fill(&mut client, 300..400);
    assert_eq!(right(&mut client, 350..400), 50);
    daemon.stop();
    // The room that was taken once is used again.
    let daemon = Daemon::start(&settings).unwrap();
    let later = right(&mut daemon.connect(), 0..400);
    assert!(there >= 70 && later >= 70, "{there} {later}");
    daemon.stop();
}

#[test]
fn a_block_device_keeps_blocks_over_a_kill_and_a_lost_index() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    sparse(&file, 512 << 20);
    let Some(device) = LoopDevice::over(&file) else { return };
    let index = folder.path().join("index");
    let settings =
        settings(folder.path(), &device.path, 4.0, &format!("index_dir = {index:?}\ncores = 2\n"));
    let daemon = Daemon::start(&settings).unwrap();
    fill(&mut daemon.connect(), 0..120);
    let second = tempfile::tempdir().unwrap();
    let refused = Daemon::start(&settings_elsewhere(second.path(), &device.path)).err().unwrap();
    assert!(refused.contains("is in use"), "{refused}");
    daemon.kill();
    let daemon = Daemon::start(&settings).unwrap();
    let mut client = daemon.connect();
    assert_eq!(right(&mut client, 0..120), 120);
    client.remove("7");
    daemon.kill();
    std::fs::remove_dir_all(&index).unwrap();
    let daemon = Daemon::start(&settings).unwrap();
    let mut client = daemon.connect();
    assert_eq!(right(&mut client, 0..120), 119);
    assert_eq!(client.get("7"), None);
    // More than the device holds: the oldest go, and its end is not passed.
    fill(&mut client, 120..700);
    assert_eq!(right(&mut client, 650..700), 50);
    assert_eq!(daemon.metric("cgn_kvcached_disk_write_errors_total"), 0.0);
    daemon.stop();
}

/// The disk for a daemon with its index in another folder.
fn settings_elsewhere<'a>(folder: &'a Path, disk: &Path) -> Settings<'a> {
    let index = folder.join("index");
    settings(folder, disk, 4.0, &format!("index_dir = {index:?}\n"))
}

#[test]
fn a_block_device_that_is_mounted_or_foreign_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut mount) = Mount::ext4(folder.path(), 128 << 20) else { return };
    let settings = settings_elsewhere(folder.path(), &mount.device.path);
    let refused = Daemon::start(&settings).err().unwrap();
    assert!(refused.contains("mounted"), "{refused}");
    mount.unmount();
    let file = folder.path().join("ext4");
    let before = std::fs::read(&file).unwrap();
    let refused = Daemon::start(&settings).err().unwrap();
    assert!(refused.contains("holds data that is not ours"), "{refused}");
    assert!(std::fs::read(&file).unwrap() == before, "not a byte of it has changed");
}

#[test]
fn a_block_device_that_loses_its_end_is_served_as_far_as_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    sparse(&file, 256 << 20);
    let Some(device) = LoopDevice::over(&file) else { return };
    let index = folder.path().join("index");
    let settings = settings(folder.path(), &device.path, 4.0, &format!("index_dir = {index:?}\n"));
    let daemon = Daemon::start(&settings).unwrap();
    fill(&mut daemon.connect(), 0..200);
    daemon.stop();
    // All blocks come from the disk after this; the kernel says EIO for those behind the file's end.
    let daemon = Daemon::start(&settings).unwrap();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(100 << 20).unwrap();
    let mut client = daemon.connect();
    let there = right(&mut client, 0..200);
    assert!(there > 50 && there < 150, "{there}");
    let lost = daemon.metric("cgn_kvcached_disk_read_errors_total")
        + daemon.metric("cgn_kvcached_disk_corruptions_total");
    assert_eq!(lost as usize, 200 - there, "each block that was lost is counted once");
    daemon.stop();
}

#[test]
fn bits_that_flip_under_a_running_daemon_cost_their_block_and_are_said() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = folder.path().join("ssd");
    std::fs::create_dir(&disk).unwrap();
    let settings = settings(folder.path(), &disk, 0.25, "");
    let daemon = Daemon::start(&settings).unwrap();
    fill(&mut daemon.connect(), 0..100);
    daemon.stop();
    let daemon = Daemon::start(&settings).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(disk.join("cognitora.kv"));
    let file = file.unwrap();
    // A byte in each of three segments, and the whole of a fourth.
    for segment in 0..3u64 {
        let at = (1 << 20) + segment * (16 << 20) + (5 << 20);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    }
    file.write_all_at(&vec![0x5A; 16 << 20], (1 << 20) + 3 * (16 << 20)).unwrap();
    let there = right(&mut daemon.connect(), 0..100);
    assert!((75..=97).contains(&there), "{there}");
    assert_eq!(daemon.metric("cgn_kvcached_disk_corruptions_total") as usize, 100 - there);
    assert!(daemon.log().contains("a block on disk is not what was written"));
    daemon.stop();
}
