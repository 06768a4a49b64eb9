//! Stands in until the device is merged.
use super::device::{Buffer, Device};
use std::io;
/// None.
#[derive(Debug)]
pub enum Absent {}
impl Device for Absent {
    async fn read_at(
        &self,
        _o: u64,
        _i: Buffer,
        _s: impl FnMut(&[u8]),
    ) -> (io::Result<()>, Buffer) {
        match *self {}
    }
    async fn write_at(&self, _o: u64, _f: Buffer) -> io::Result<()> {
        match *self {}
    }
    async fn sync(&self) -> io::Result<()> {
        match *self {}
    }
    async fn allocate(&self, _o: u64, _b: u64) -> io::Result<()> {
        match *self {}
    }
    fn bytes(&self) -> u64 {
        match *self {}
    }
}
