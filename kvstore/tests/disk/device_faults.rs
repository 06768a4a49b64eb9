//! Devices that fail, are full, or give back what was not written.

use futures_lite::future::block_on;

use crate::fault_device::FaultDevice;
use crate::shelf::{FIRST_SEGMENT, SEGMENT_BYTES, Shelf, device, key, value};

#[test]
fn what_is_written_is_read_before_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [device(8, 1)];
    let shelf = block_on(Shelf::start(&devices, folder.path()));
    for number in 0..10 {
        block_on(shelf.put(key(number), &value(u32::from(number)))).unwrap();
    }
    block_on(shelf.remove(key(3))).unwrap();
    for number in 0..10u8 {
        let expected = (number != 3).then(|| value(u32::from(number)));
        assert_eq!(block_on(shelf.get(key(number))), expected);
    }
    shelf.stop();
    let shelf = block_on(Shelf::start(&devices, folder.path()));
    assert_eq!(shelf.report.indexed, 9);
    assert_eq!(shelf.report.scanned, 0, "a graceful stop leaves nothing to look for");
    for number in 0..10u8 {
        let expected = (number != 3).then(|| value(u32::from(number)));
        assert_eq!(block_on(shelf.get(key(number))), expected);
    }
    shelf.stop();
}
