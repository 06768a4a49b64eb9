//! Devices that fail, are full, or give back what was not written: the rest is served, the bad dropped
//! and counted. Run on disks in clear and on encrypted ones.

use std::sync::atomic::Ordering::Relaxed;

use futures_lite::future::{self, block_on};
use kvstore::disk::DiskError;
use kvstore::disk::device::{Buffer, Pages};
use kvstore::disk::start::{StartError, start};

use crate::fault_device::FaultDevice;
use crate::shelf::{FIRST_SEGMENT, SEGMENT_BYTES, Shelf, about, device, key, key_of, value};

use super::KEY;

async fn started(devices: &[FaultDevice], index: &std::path::Path) -> Shelf {
    Shelf::start(devices, index, key_of(KEY)).await
}

fn filled(devices: &[FaultDevice], index: &std::path::Path, keys: u8) -> Shelf {
    let shelf = block_on(started(devices, index));
    for number in 0..keys {
        block_on(shelf.put(key(number), &value(u32::from(number) + 1))).unwrap();
    }
    shelf
}

/// How many of the keys are there; whatever is there is right.
fn right(shelf: &Shelf, keys: u8) -> usize {
    let found = (0..keys).filter(|&number| {
        let found = block_on(shelf.get(key(number)));
        assert!(found.is_none() || found == Some(value(u32::from(number) + 1)));
        found.is_some()
    });
    found.count()
}

#[test]
fn what_is_written_is_read_before_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [device(8, 1)];
    let shelf = filled(&devices, folder.path(), 10);
    block_on(shelf.remove(key(3))).unwrap();
    assert_eq!(right(&shelf, 10), 9);
    shelf.stop();
    let shelf = block_on(started(&devices, folder.path()));
    assert_eq!(shelf.report.indexed, 9);
    assert_eq!(shelf.report.scanned, 0, "a graceful stop leaves nothing to look for");
    assert_eq!(right(&shelf, 10), 9);
    assert_eq!(block_on(shelf.get(key(3))), None);
    shelf.stop();
}

#[test]
fn an_index_that_is_lost_or_damaged_is_built_again_from_the_segments() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [device(8, 2), device(8, 3)];
    filled(&devices, folder.path(), 20).stop();
    std::fs::remove_dir_all(folder.path()).unwrap();
    let shelf = block_on(started(&devices, folder.path()));
    assert_eq!((shelf.report.indexed, shelf.report.scanned), (0, 20));
    assert_eq!(right(&shelf, 20), 20);
    shelf.stop();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        std::fs::write(entry.unwrap().path(), b"not what RocksDB wrote").unwrap();
    }
    let shelf = block_on(started(&devices, folder.path()));
    assert!(shelf.report.is_index_lost);
    assert_eq!(right(&shelf, 20), 20);
    shelf.stop();
    // What was built is an index: the next start reads no records.
    let shelf = block_on(started(&devices, folder.path()));
    assert_eq!((shelf.report.indexed, shelf.report.scanned), (20, 0));
    shelf.stop();
}

#[test]
fn the_nth_operation_fails_and_what_was_acknowledged_stays() {
    for failing in 0..60 {
        for count in [1, 2, 5] {
            let folder = tempfile::tempdir().unwrap();
            let devices = [device(8, failing + 100)];
            let shelf = block_on(started(&devices, folder.path()));
            devices[0].fail_in(failing, count);
            let mut acknowledged = Vec::new();
            for number in 0..8u8 {
                let seed = u32::from(number) + 1;
                match block_on(shelf.put(key(number), &value(seed))) {
                    Ok(_) => acknowledged.push(number),
                    Err(DiskError::Io(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            devices[0].heal();
            let check = |shelf: &Shelf| {
                for &number in &acknowledged {
                    let found = block_on(shelf.get(key(number)));
                    let is_right = found == Some(value(u32::from(number) + 1));
                    assert!(is_right, "{failing} {count} {number}");
                }
                right(shelf, 8);
            };
            check(&shelf);
            if count == 1 && failing > 0 {
                assert_eq!(acknowledged.len(), 8, "one failure is made good: {failing}");
            }
            devices[0].cut();
            shelf.end();
            let shelf = block_on(started(&devices, &folder.path().join("lost")));
            check(&shelf);
            shelf.stop();
        }
    }
}

#[test]
fn a_read_that_fails_drops_its_block_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [device(8, 4)];
    let shelf = filled(&devices, folder.path(), 10);
    devices[0].fail_in(0, 1);
    assert_eq!(block_on(shelf.get(key(5))), None);
    assert_eq!(right(&shelf, 10), 9);
    assert_eq!(shelf.tier.counters.read_errors.load(Relaxed), 1);
    shelf.stop();
}

#[test]
fn a_disk_that_is_gone_says_so_with_few_operations_each() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [device(8, 5)];
    let shelf = filled(&devices, folder.path(), 4);
    devices[0].fail_in(0, u64::MAX);
    for number in 0..20 {
        let before = devices[0].operations();
        assert!(matches!(block_on(shelf.put(key(9), &value(number))), Err(DiskError::Io(_))));
        assert!(devices[0].operations() - before < 20);
    }
    assert_eq!(right(&shelf, 4), 0);
    shelf.stop();
}

#[test]
fn a_sick_disk_is_left_for_a_healthy_one() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [device(8, 6), device(8, 7)];
    let shelf = block_on(started(&devices, folder.path()));
    devices[1].fail_in(0, u64::MAX);
    let mut failed = 0;
    for number in 0..60u8 {
        failed += usize::from(block_on(shelf.put(key(number), &value(u32::from(number)))).is_err());
    }
    assert!(failed <= 2, "{failed}");
    assert!(shelf.tier.is_sick(1) && !shelf.tier.is_sick(0));
    let before = devices[1].operations();
    for number in 60..90u8 {
        block_on(shelf.put(key(number), &value(u32::from(number)))).unwrap();
    }
    assert_eq!(devices[1].operations(), before, "nothing more is written to it");
    shelf.stop();
}

#[test]
fn a_full_file_system_makes_the_oldest_give_way() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [device(8, 8)];
    devices[0].set_room(FIRST_SEGMENT as u64 + 4 * SEGMENT_BYTES);
    let shelf = block_on(started(&devices, folder.path()));
    for number in 0..100u8 {
        block_on(shelf.put(key(number), &value(u32::from(number) + 1))).unwrap();
    }
    assert!(shelf.tier.counters.dropped.load(Relaxed) > 0);
    assert_eq!(block_on(shelf.get(key(99))), Some(value(100)));
    assert!(right(&shelf, 100) > 4);
    let beyond = FIRST_SEGMENT + 4 * SEGMENT_BYTES as usize;
    let rest = devices[0].bytes_at(beyond, 4 * SEGMENT_BYTES as usize);
    assert!(rest.iter().all(|&byte| byte == 0), "nothing is written where there is no room");
    shelf.stop();
}

#[test]
fn flipped_bits_are_never_served() {
    for is_index_lost in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let devices = [device(8, 9)];
        filled(&devices, folder.path(), 30).stop();
        devices[0].flip_bits(40);
        let lost = folder.path().join("lost");
        let index = if is_index_lost { lost.as_path() } else { folder.path() };
        let shelf = block_on(started(&devices, index));
        let found = right(&shelf, 30);
        let corrupt = shelf.tier.counters.corruptions.load(Relaxed);
        assert!(corrupt > 0 && found > 0 && found < 30, "{found} found, {corrupt} corrupt");
        assert_eq!(right(&shelf, 30), found, "what was dropped is dropped once");
        assert_eq!(shelf.tier.counters.corruptions.load(Relaxed), corrupt);
        shelf.stop();
    }
}

#[test]
fn a_segment_of_nonsense_costs_its_own_blocks_only() {
    for is_index_lost in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let devices = [device(8, 10)];
        let shelf = filled(&devices, folder.path(), 24);
        let place = shelf.known.borrow().places[&key(12)];
        let hit = |number: u8| shelf.known.borrow().places[&key(number)].segment == place.segment;
        let lost = (0..24).filter(|&number| hit(number)).count();
        shelf.stop();
        let start = FIRST_SEGMENT + place.segment.number as usize * SEGMENT_BYTES as usize;
        devices[0].overwrite(start, &vec![0xA5; SEGMENT_BYTES as usize]);
        let other = folder.path().join("lost");
        let index = if is_index_lost { other.as_path() } else { folder.path() };
        let shelf = block_on(started(&devices, index));
        assert_eq!(right(&shelf, 24), 24 - lost);
        shelf.stop();
    }
}

#[test]
fn a_damaged_record_hides_none_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [device(8, 11)];
    let shelf = filled(&devices, folder.path(), 24);
    let place = shelf.known.borrow().places[&key(0)];
    shelf.stop();
    let start = FIRST_SEGMENT + place.segment.number as usize * SEGMENT_BYTES as usize;
    devices[0].overwrite(start + place.page as usize * 4096, &[0; 4096]);
    let shelf = block_on(started(&devices, &folder.path().join("lost")));
    assert_eq!(shelf.report.gaps, 1);
    assert_eq!(right(&shelf, 24), 23);
    shelf.stop();
}

#[test]
fn blocks_that_are_read_outlive_others_and_writing_stays_below_twice() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [device(10, 12)];
    let shelf = block_on(Shelf::keeping_free(2, &devices, folder.path(), key_of(KEY)));
    // No task of the cleaner runs: writers do its work where it is behind.
    let block = vec![7; 4096];
    for number in 0..4u8 {
        block_on(shelf.put(key(number), &block)).unwrap();
    }
    for number in 0..240u8 {
        block_on(shelf.put(key(4 + number), &block)).unwrap();
        (0..4).for_each(|hot| assert!(block_on(shelf.get(key(hot))).is_some(), "{hot}"));
        // Others are read, too: more than may be kept.
        block_on(shelf.get(key(4 + number)));
    }
    assert!(shelf.tier.counters.moved.load(Relaxed) > 100);
    assert!(shelf.tier.counters.dropped.load(Relaxed) > 0);
    // A page for each page's record; copying at most as much again; a segment's first page for 15.
    let milli = shelf.tier.write_amplification_milli().unwrap();
    assert!(milli <= 2 * 2000 * 16 / 14, "{milli}");
    shelf.stop();
}

#[test]
fn a_block_that_fits_no_segment_is_refused_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [device(8, 13)];
    let shelf = filled(&devices, folder.path(), 3);
    let error = block_on(shelf.put(key(9), &vec![1; SEGMENT_BYTES as usize])).unwrap_err();
    assert!(matches!(error, DiskError::TooLarge { .. }), "{error}");
    block_on(shelf.put(key(9), &vec![1; SEGMENT_BYTES as usize - 8192])).unwrap();
    assert_eq!(right(&shelf, 3), 3);
    shelf.stop();
}

#[test]
fn a_block_of_no_bytes_writes_over_nothing_behind_it() {
    for seed in 0..30 {
        let folder = tempfile::tempdir().unwrap();
        let devices = [device(8, 200 + seed)];
        let shelf = block_on(started(&devices, folder.path()));
        // A slot or lease of no bytes has a page in memory.
        let page = || Buffer::Pages(Pages::new(1));
        let empty = shelf.disk.write_buffer(key(1), about(&[]), &page);
        let other = value(1);
        let (empty, other) = block_on(future::zip(empty, shelf.put(key(0), &other)));
        assert_eq!((empty.unwrap().len, other.unwrap().page), (0, 2));
        assert_eq!(right(&shelf, 1), 1, "{seed}");
        shelf.stop();
    }
}

#[test]
fn a_slow_disk_serves_all_that_wait_with_fewer_syncs_than_writes() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [device(16, 14)];
    devices[0].set_slowness(200);
    let shelf = block_on(started(&devices, folder.path()));
    let values: Vec<Vec<u8>> = (0..24).map(|number| value(number + 1)).collect();
    let mut puts: Vec<_> = (0..24u8)
        .map(|number| Box::pin(shelf.put(key(number), &values[usize::from(number)])))
        .collect();
    block_on(std::future::poll_fn(|context| {
        puts.retain_mut(|put| match put.as_mut().poll(context) {
            std::task::Poll::Ready(result) => result.map(|_| false).unwrap(),
            std::task::Poll::Pending => true,
        });
        if puts.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    }));
    drop(puts);
    assert_eq!(right(&shelf, 24), 24);
    assert!(shelf.tier.counters.syncs.load(Relaxed) < 24);
    shelf.stop();
}

#[test]
fn a_disk_of_somebody_else_is_not_touched_and_a_damaged_one_is_emptied() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [device(8, 15)];
    filled(&devices, folder.path(), 5).stop();
    let first = devices[0].bytes_at(0, 4096);
    // One first page is enough.
    devices[0].overwrite(0, &[0xFF; 4096]);
    let shelf = block_on(started(&devices, folder.path()));
    assert_eq!(right(&shelf, 5), 5);
    shelf.stop();
    devices[0].overwrite(4096, &[0xFF; 4096]);
    let operations = devices[0].operations();
    let refused =
        block_on(start(&devices, folder.path(), SEGMENT_BYTES, key_of(KEY).as_ref(), || [1; 32]));
    assert!(matches!(refused, Err(StartError::Foreign(0))));
    assert_eq!(devices[0].operations(), operations + 1, "it was read once and not written");
    let mut damaged = first;
    damaged[100] ^= 1;
    devices[0].overwrite(0, &damaged);
    let shelf = block_on(started(&devices, folder.path()));
    assert_eq!((shelf.report.segments, right(&shelf, 5)), (0, 0));
    shelf.stop();
    // Some file systems leave the first pages as they are.
    let other = [device(8, 17)];
    other[0].overwrite(64 << 10, b"_BHRfS_M");
    let refused =
        block_on(start(&other, folder.path(), SEGMENT_BYTES, key_of(KEY).as_ref(), || [1; 32]));
    assert!(matches!(refused, Err(StartError::Foreign(0))));
}

#[test]
fn what_follows_a_tombstone_over_a_restart_outlives_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [device(8, 16)];
    let shelf = filled(&devices, folder.path(), 3);
    for _ in 0..5 {
        block_on(shelf.put(key(1), &value(2))).unwrap();
        block_on(shelf.remove(key(1))).unwrap();
    }
    shelf.stop();
    let shelf = block_on(started(&devices, folder.path()));
    block_on(shelf.put(key(1), &value(2))).unwrap();
    shelf.stop();
    let shelf = block_on(started(&devices, &folder.path().join("lost")));
    assert_eq!(right(&shelf, 3), 3);
    shelf.stop();
}
