//! Reading what a segment holds, record by record, and finding the next one behind a damaged page.

use super::device::{Buffer, Device, Pages};
use super::place::Segment;
use super::record::{PAGE_BYTES, Record};
use super::seals::Seals;
use super::segment::{Layout, parse_head};

/// Pages read at once while looking for a record: 1 MiB.
const SEARCH_PAGES: u32 = 256;

/// What a scan came across.
#[derive(Debug, Default)]
pub struct Scan {
    /// Records and their pages, in order.
    pub records: Vec<(u32, Record)>,
    /// Records behind a page that should have been one.
    pub gaps: u64,
}

/// The sequence of a segment; none where it holds nothing of ours, or cannot be read.
pub async fn sequence<D: Device>(device: &D, layout: &Layout, segment: Segment) -> Option<u64> {
    let page = Buffer::Pages(Pages::new(1));
    let (result, page) = device.read_at(layout.start(segment.number), page, |_| {}).await;
    result.ok()?;
    parse_head(&layout.seals.secret, segment.number, page.bytes().first_chunk()?)
}

/// Records of this use of a segment from page `from` on. Pages that cannot be read are passed over.
pub async fn records<D: Device>(
    device: &D,
    layout: &Layout,
    segment: Segment,
    sequence: u64,
    from: u32,
) -> Scan {
    let start = layout.start(segment.number);
    let pages = (layout.segment_bytes / PAGE_BYTES as u64) as u32;
    let mut scan = Scan::default();
    let mut at = from.max(1);
    while at < pages {
        let found = read_pages(device, start, at, 1).await;
        let found =
            found.and_then(|buffer| first_record(&layout.seals, sequence, &buffer, at, pages));
        let found = match found {
            Some(found) => Some(found),
            None => search(device, layout, start, sequence, at + 1).await,
        };
        let Some((page, record)) = found else { break };
        scan.gaps += u64::from(page != at);
        at = page + (record.span_bytes() / PAGE_BYTES as u64) as u32;
        scan.records.push((page, record));
    }
    scan
}

async fn search<D: Device>(
    device: &D,
    layout: &Layout,
    start: u64,
    sequence: u64,
    from: u32,
) -> Option<(u32, Record)> {
    let pages = (layout.segment_bytes / PAGE_BYTES as u64) as u32;
    let mut at = from;
    while at < pages {
        let count = SEARCH_PAGES.min(pages - at);
        if let Some(buffer) = read_pages(device, start, at, count).await
            && let Some(found) = first_record(&layout.seals, sequence, &buffer, at, pages)
        {
            return Some(found);
        }
        at += count;
    }
    None
}

async fn read_pages<D: Device>(device: &D, start: u64, at: u32, count: u32) -> Option<Buffer> {
    let offset = start + u64::from(at) * PAGE_BYTES as u64;
    let buffer = Buffer::Pages(Pages::new(count as usize));
    let (result, buffer) = device.read_at(offset, buffer, |_| {}).await;
    result.ok().map(|()| buffer)
}

/// The first record in `buffer`, whose first page is page `at` of a segment of `pages`. A record of
/// another use of the segment is none, nor is one that would reach beyond the segment.
fn first_record(
    seals: &Seals,
    sequence: u64,
    buffer: &Buffer,
    at: u32,
    pages: u32,
) -> Option<(u32, Record)> {
    let (found, _) = buffer.bytes().as_chunks::<PAGE_BYTES>();
    found.iter().zip(at..).find_map(|(bytes, page)| {
        let (record, _) = seals.open(bytes).ok()?;
        let room = u64::from(pages - page) * PAGE_BYTES as u64;
        (record.sequence == sequence && record.span_bytes() <= room).then_some((page, record))
    })
}
