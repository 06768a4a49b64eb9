//! The ring on real files: parts, order, ends and faults of operations.
use glommio::{LocalExecutor, LocalExecutorBuilder, spawn_local};

use super::*;
use crate::disk::device::Pages;
use crate::disk::record::PAGE_BYTES;

fn executor() -> LocalExecutor {
    LocalExecutorBuilder::default().make().unwrap()
}

fn with_device(bytes: u64, test: impl AsyncFn(Rc<Ring>, RingDevice)) {
    let folder = tempfile::tempdir().unwrap();
    let file = DiskFile::open(folder.path(), bytes).unwrap();
    executor().run(async {
        let ring = Ring::new().unwrap();
        let driver = spawn_local(ring.clone().drive());
        test(ring.clone(), RingDevice::new(ring.clone(), &file)).await;
        driver.cancel().await;
    });
}

fn pages(count: usize, seed: u8) -> Pages {
    let mut pages = Pages::new(count);
    for (at, byte) in pages.bytes_mut().iter_mut().enumerate() {
        *byte = (at as u8).wrapping_mul(31).wrapping_add((at >> 12) as u8) ^ seed;
    }
    pages
}

#[test]
fn parts_cover_all_bytes_once() {
    for bytes in [0, 1, 4096, PART_BYTES, PART_BYTES + 4096, 80 << 20, 513 << 20] {
        let parts = parts(bytes, PART_BYTES);
        assert!((1..=PARTS_OF_ONE_MAX).contains(&parts.len()));
        assert_eq!(parts.iter().map(|part| part.bytes).sum::<usize>(), bytes);
        assert!(parts.windows(2).all(|two| two[0].offset + two[0].bytes == two[1].offset));
    }
}

#[test]
fn what_is_written_is_read_and_seen_in_order() {
    with_device(16 << 20, async |_, device| {
        let (count, start) = (1025, 3 * PAGE_BYTES as u64);
        device.allocate(0, 16 << 20).await.unwrap();
        device.write_at(start, Buffer::Pages(pages(count, 7))).await.unwrap();
        device.sync().await.unwrap();
        let mut seen = Vec::new();
        let into = Buffer::Pages(Pages::new(count));
        let (result, buffer) =
            device.read_at(start, into, |part| seen.extend_from_slice(part)).await;
        result.unwrap();
        assert!(buffer.bytes() == pages(count, 7).bytes());
        assert!(seen == buffer.bytes());
    });
}

#[test]
fn a_record_is_its_page_and_its_value_behind_it() {
    with_device(64 << 20, async |_, device| {
        for count in [0, 1, 1023, 1024, 5000] {
            let value = (count > 0).then(|| Buffer::Pages(pages(count, 9)));
            device.write_record(8192, pages(1, 3), value).await.unwrap();
            let into = Buffer::Pages(Pages::new(1 + count));
            let (result, buffer) = device.read_at(8192, into, |_| {}).await;
            result.unwrap();
            assert!(buffer.bytes()[..PAGE_BYTES] == *pages(1, 3).bytes());
            assert!(buffer.bytes()[PAGE_BYTES..] == *pages(count, 9).bytes(), "{count}");
        }
    });
}

#[test]
fn reading_behind_the_end_is_an_error() {
    with_device(1 << 20, async |_, device| {
        let (result, _) =
            device.read_at((1 << 20) - 4096, Buffer::Pages(Pages::new(2)), |_| {}).await;
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn more_operations_than_the_ring_holds_wait_for_room() {
    with_device(64 << 20, async |ring, device| {
        let device = Rc::new(device);
        let writes: Vec<_> = (0..600u64)
            .map(|number| {
                let device = device.clone();
                let from = Buffer::Pages(pages(2, number as u8));
                spawn_local(async move { device.write_at(number * 8192, from).await.unwrap() })
            })
            .collect();
        for write in writes {
            write.await;
        }
        assert_eq!(ring.parts_left.get(), PARTS_MAX);
        for number in [0u64, 299, 599] {
            let (result, buffer) =
                device.read_at(number * 8192, Buffer::Pages(Pages::new(2)), |_| {}).await;
            result.unwrap();
            assert!(buffer.bytes() == pages(2, number as u8).bytes());
        }
    });
}

#[test]
fn memory_of_an_abandoned_read_is_kept_until_the_kernel_is_done() {
    with_device(64 << 20, async |ring, device| {
        device.allocate(0, 64 << 20).await.unwrap();
        for _ in 0..20 {
            let mut read = Box::pin(device.read_at(0, Buffer::Pages(Pages::new(4096)), |_| {}));
            assert!(futures_lite::future::poll_once(&mut read).await.is_none());
            drop(read);
        }
        let held = ring.operations.borrow().slots.iter().flatten().count();
        assert!(held > 0, "nobody has looked for its end yet");
        let (result, _) = device.read_at(0, Buffer::Pages(Pages::new(1)), |_| {}).await;
        result.unwrap();
        while ring.parts_left.get() < PARTS_MAX {
            futures_lite::future::yield_now().await;
        }
        assert_eq!(ring.operations.borrow().slots.iter().flatten().count(), 0);
    });
}
