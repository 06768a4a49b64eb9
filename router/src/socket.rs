//! Owned-buffer reads and writes on monoio sockets, in the two shapes the router needs.
//!
//! The kernel owns a buffer from submission to completion, so buffers move in and come back.

use std::io;

use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt};

/// Appends what the socket has to `buffer`, which is given room for `room_bytes` first.
///
/// Returns 0 at the end of the stream.
pub async fn read_more<S: AsyncReadRent>(
    stream: &mut S,
    buffer: &mut Vec<u8>,
    room_bytes: usize,
) -> io::Result<usize> {
    let mut owned = std::mem::take(buffer);
    owned.reserve(room_bytes);
    let (begin, end) = (owned.len(), owned.capacity());
    let (result, slice) = stream.read(owned.slice_mut(begin..end)).await;
    *buffer = slice.into_inner();
    result
}

/// Writes all of `buffer`, which comes back unchanged.
pub async fn write_all<S: AsyncWriteRent>(stream: &mut S, buffer: &mut Vec<u8>) -> io::Result<()> {
    let (result, owned) = stream.write_all(std::mem::take(buffer)).await;
    *buffer = owned;
    result.map(drop)
}
