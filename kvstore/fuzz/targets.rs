//! What each fuzz target does with its bytes, and what must hold whatever they are. Used by the
//! targets (`cargo +nightly fuzz run TARGET`) and by `tests/corpus.rs`, which replays the corpus.

use kvstore::disk::record::{PAGE_BYTES, Record, seal};
use kvstore::disk::segment::{FirstPage, parse_first, parse_head};

/// A page of a disk, as it is and sealed: what is read can be written again and means the same.
pub fn record(bytes: &[u8]) {
    let secret = [7; 32];
    let mut page = [0; PAGE_BYTES];
    let len = bytes.len().min(PAGE_BYTES);
    page[..len].copy_from_slice(&bytes[..len]);
    for is_sealed in [false, true] {
        if is_sealed {
            seal(&secret, &mut page);
        }
        if let FirstPage::Ours(layout) = parse_first(&page) {
            assert_eq!(parse_first(&layout.encode()), FirstPage::Ours(layout));
        }
        let _ = parse_head(&secret, 0, &page);
        if let Ok(record) = Record::parse(&secret, &page) {
            assert!(is_sealed, "nobody can guess a seal");
            let mut again = [0; PAGE_BYTES];
            record.encode(&secret, &mut again).expect("what was read can be written");
            assert_eq!(Record::parse(&secret, &again), Ok(record));
        }
    }
}
