//! Where a value lies on disk.

/// A segment of one of the tier's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Segment {
    /// Which device, as the configuration lists them.
    pub device: u16,
    /// Which segment of the device.
    pub number: u32,
}

/// Where a value lies, for as long as its segment is in this use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The segment.
    pub segment: Segment,
    /// Which use of the segment: places of an older one are gone.
    pub sequence: u64,
    /// Where the record's page begins, in pages from the segment's start.
    pub page: u32,
    /// Which of several values of the key it is.
    pub version: u64,
    /// Bytes of the value.
    pub len: u64,
}
