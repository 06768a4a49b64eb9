//! Start of the tier: devices are recognised or formatted, the index is loaded, segments are read.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::cipher::DiskKey;
use super::device::{Buffer, Device, Pages};
use super::index::{Index, IndexError, IndexThread};
use super::ledger::Ledger;
use super::record::{PAGE_BYTES, Secret};
use super::recovery::{Found, Report, recover};
use super::seals::Seals;
use super::segment::{FIRST_SEGMENT_BYTES, FirstFields, FirstPage, Layout, parse_first};
use super::tier::Tier;

/// Segments a tier needs at least: some to write, some to make room in.
const SEGMENTS_MIN: usize = 4;
/// Changes of one batch of the index while it is built again.
const BATCH_MAX: usize = 4096;

/// Why the tier does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A device cannot be read or written.
    #[error("disk {device} of kv.ssd_dir fails: {source}")]
    Device {
        /// Which, counted from 0.
        device: usize,
        /// What it says.
        source: io::Error,
    },
    /// A device holds what we have not written.
    #[error(
        "disk {0} of kv.ssd_dir holds data that is not ours; fill its first MiB with zeros to have it overwritten"
    )]
    Foreign(usize),
    /// See [`IndexError`].
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A device is encrypted, and there is no key.
    #[error(
        "disk {0} of kv.ssd_dir is encrypted; name its key in kv.disk_key_file, or fill its first MiB with zeros to begin anew"
    )]
    KeyMissing(usize),
    /// A device is encrypted with another key.
    #[error(
        "disk {0} of kv.ssd_dir is encrypted with another key than that of kv.disk_key_file; name its own, or fill its first MiB with zeros to begin anew"
    )]
    KeyWrong(usize),
    /// A device holds blocks in clear, and there is a key.
    #[error(
        "disk {0} of kv.ssd_dir is not encrypted; leave out kv.disk_key_file, or fill its first MiB with zeros to begin anew"
    )]
    NotEncrypted(usize),
    /// There is room for too few segments.
    #[error("kv.ssd_gib has room for {0} segments, {SEGMENTS_MIN} are the least")]
    TooSmall(usize),
}

/// A tier that is ready, and what it holds.
#[derive(Debug)]
pub struct Started {
    /// What the shards share.
    pub tier: Arc<Tier>,
    /// To be joined when the tier is gone.
    pub index: IndexThread,
    /// All blocks on disk. Each goes to the shard that owns its key.
    pub found: Vec<Found>,
    /// How it went.
    pub report: Report,
}

/// Starts the tier. With a `key` devices are encrypted. `secret` makes up a device's secret when it is
/// formatted.
///
/// # Errors
/// [`StartError`].
pub async fn start<D: Device>(
    devices: &[D],
    index_dir: &Path,
    segment_bytes: u64,
    key: Option<&DiskKey>,
    mut secret: impl FnMut() -> Secret,
) -> Result<Started, StartError> {
    let mut layouts = Vec::new();
    for (number, device) in devices.iter().enumerate() {
        layouts.push(layout_of(device, number, segment_bytes, key, &mut secret).await?);
    }
    let segments: Vec<u32> = devices
        .iter()
        .zip(&layouts)
        .map(|(device, layout)| layout.segments(device.bytes()))
        .collect();
    let ledger = Ledger::new(&segments);
    if ledger.segments() < SEGMENTS_MIN {
        return Err(StartError::TooSmall(ledger.segments()));
    }
    let (index, loaded) = Index::load(index_dir, key)?;
    let (found, changes, report) = recover(devices, &layouts, &ledger, loaded).await;
    let mut changes = changes.into_iter().peekable();
    while changes.peek().is_some() {
        let batch = changes.by_ref().take(BATCH_MAX);
        let refused = |source| IndexError::Rocks { path: index_dir.to_owned(), source };
        index.apply(batch).map_err(refused)?;
    }
    let (sender, index) = index.start()?;
    let tier = Arc::new(Tier::new(layouts, ledger, sender));
    Ok(Started { tier, index, found, report })
}

/// How a device is laid out. One that is blank or of no use any more is formatted.
async fn layout_of<D: Device>(
    device: &D,
    number: usize,
    segment_bytes: u64,
    key: Option<&DiskKey>,
    secret: &mut impl FnMut() -> Secret,
) -> Result<Layout, StartError> {
    let failed = |source| StartError::Device { device: number, source };
    if device.bytes() < FIRST_SEGMENT_BYTES {
        return Err(StartError::TooSmall(0));
    }
    let page = recognise(device).await.map_err(failed)?;
    if page == FirstPage::Foreign {
        return Err(StartError::Foreign(number));
    }
    if let FirstPage::Ours(first) = page {
        check_key(&first, key, number)?;
        if first.segment_bytes == segment_bytes {
            return Ok(Layout { segment_bytes, seals: Seals::new(first.secret, key) });
        }
    }
    if page != FirstPage::Blank {
        tracing::warn!(disk = number, "damaged, or of another segment size: emptied");
    }
    let secret = secret();
    let check = key.map(|key| key.check(&secret));
    let first = FirstFields { segment_bytes, secret, check };
    format(device, &first).await.map_err(failed)?;
    Ok(Layout { segment_bytes, seals: Seals::new(secret, key) })
}

/// Whether the device is encrypted with this key, or in clear without one: before anything is made of it.
fn check_key(first: &FirstFields, key: Option<&DiskKey>, device: usize) -> Result<(), StartError> {
    match (key, first.check) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err(StartError::KeyMissing(device)),
        (Some(_), None) => Err(StartError::NotEncrypted(device)),
        (Some(key), Some(check)) => {
            // The comparison of two hashes takes the same time for all.
            let is_right = blake3::Hash::from_bytes(key.check(&first.secret)) == check;
            if is_right { Ok(()) } else { Err(StartError::KeyWrong(device)) }
        }
    }
}

/// The better of the two first pages. A device is blank when all is zero up to its first segment: file
/// systems and volumes have their marks there, and some of them nothing in the first pages.
async fn recognise<D: Device>(device: &D) -> io::Result<FirstPage> {
    let count = FIRST_SEGMENT_BYTES as usize / PAGE_BYTES;
    let (result, pages) = device.read_at(0, Buffer::Pages(Pages::new(count)), |_| {}).await;
    result?;
    let (pages, _) = pages.bytes().as_chunks::<PAGE_BYTES>();
    let mut found = pages.iter().take(2).map(parse_first);
    let (first, second) = (found.next(), found.next());
    let is_ours = |page: &Option<FirstPage>| matches!(page, Some(FirstPage::Ours(_)));
    let best = if is_ours(&second) && !is_ours(&first) { second } else { first };
    let is_blank = best == Some(FirstPage::Blank);
    if is_blank && pages.iter().any(|page| parse_first(page) != FirstPage::Blank) {
        return Ok(FirstPage::Foreign);
    }
    Ok(best.unwrap_or(FirstPage::Damaged))
}

async fn format<D: Device>(device: &D, first: &FirstFields) -> io::Result<()> {
    device.allocate(0, FIRST_SEGMENT_BYTES).await?;
    // One after the other, so that a cut leaves one of them whole.
    for offset in [0, PAGE_BYTES as u64] {
        device.write_at(offset, Buffer::Pages(Pages::of(&first.encode()))).await?;
        device.sync().await?;
    }
    Ok(())
}
