//! A walk over everything that the index holds, a bounded piece at a time, for who counts or compares.
//!
//! Not for requests: it reads the whole table. Each piece holds the writer's lock, so within one nothing
//! changes; between two anything may, and a block that came, went or moved then may be seen or not.

use super::arena::Arena;
use super::sets::{Member, level_of, slot_of, stored};
use super::{Index, Level, WorkerNumber};

/// Buckets of one piece at most: two megabytes of the table, half a millisecond.
const BUCKETS_MAX: usize = 32_768;
/// Holders of blocks that end a piece, however few buckets it had: as long.
const HOLDERS_MAX: usize = 16_384;

/// Where a walk goes on. The default is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bookmark(usize);

impl Index {
    /// Calls `each` for every holder of every block of the next piece. `None` when that was the last.
    pub fn visit(
        &self,
        from: Bookmark,
        mut each: impl FnMut(WorkerNumber, Level, u128),
    ) -> Option<Bookmark> {
        let mut writer = self.lock();
        let arena = Arena { words: &self.words, grains: writer.grains() };
        let mut members: Vec<Member> = Vec::new();
        let (mut bucket, mut holders) = (from.0, 0);
        let end = self.table.buckets().min(from.0.saturating_add(BUCKETS_MAX));
        while bucket < end && holders < HOLDERS_MAX {
            for place in self.table.places(bucket) {
                members.clear();
                match stored(place.id) {
                    Some(at) => arena.members(at, &mut members),
                    None => members.push(place.id),
                }
                let digest = self.table.digest(place);
                for &member in &members {
                    if let Some(worker) = self.owners.of(slot_of(member)) {
                        each(worker, Level::ALL[level_of(member)], digest);
                    }
                }
                holders += members.len();
            }
            bucket += 1;
        }
        (bucket < self.table.buckets()).then_some(Bookmark(bucket))
    }
}
