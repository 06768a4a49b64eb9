//! A device in memory that does what devices do at their worst: it keeps unsynced writes in part, in
//! any order, torn by sector, fails the n-th operation, is slow, is full, flips bits.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use futures_lite::future;
use kvstore::disk::device::{Buffer, Device, Pages};

/// What a device writes in one piece.
const SECTOR_BYTES: usize = 512;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// A small random source, so that a failing case is the same each time.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed | 1)
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % sides.max(1)
    }
}

#[derive(Debug)]
struct World {
    /// What reads see.
    current: Vec<u8>,
    /// What a power cut leaves for sure.
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    dice: Dice,
    /// Turns of other tasks that an operation takes at most.
    slowness: u64,
    /// Operations until one fails, and how many fail then.
    fails_in: Option<(u64, u64)>,
    /// What `allocate` gives at most.
    room: u64,
    operations: u64,
}

#[derive(Clone, Debug)]
pub struct FaultDevice {
    world: Rc<RefCell<World>>,
}

impl FaultDevice {
    pub fn new(bytes: usize, seed: u64) -> FaultDevice {
        let world = World {
            current: vec![0; bytes],
            durable: vec![0; bytes],
            unsynced: Vec::new(),
            dice: Dice::new(seed),
            slowness: 3,
            fails_in: None,
            room: u64::MAX,
            operations: 0,
        };
        FaultDevice { world: Rc::new(RefCell::new(world)) }
    }

    /// From the `operations`-th operation on, `count` fail.
    pub fn fail_in(&self, operations: u64, count: u64) {
        self.world.borrow_mut().fails_in = Some((operations, count));
    }

    pub fn heal(&self) {
        self.world.borrow_mut().fails_in = None;
    }

    pub fn set_room(&self, bytes: u64) {
        self.world.borrow_mut().room = bytes;
    }

    pub fn set_slowness(&self, turns: u64) {
        self.world.borrow_mut().slowness = turns;
    }

    pub fn operations(&self) -> u64 {
        self.world.borrow().operations
    }

    /// The power goes: of what was not synced, some sectors are kept, in any order.
    pub fn cut(&self) {
        let world = &mut *self.world.borrow_mut();
        let mut writes = std::mem::take(&mut world.unsynced);
        while !writes.is_empty() {
            let at = world.dice.roll(writes.len() as u64) as usize;
            let (offset, bytes) = writes.swap_remove(at);
            let mood = world.dice.roll(3);
            for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                if mood == 0 || (mood == 1 && world.dice.roll(2) == 0) {
                    let start = offset + number * SECTOR_BYTES;
                    world.durable[start..start + sector.len()].copy_from_slice(sector);
                }
            }
        }
        world.current = world.durable.clone();
        world.fails_in = None;
    }

    /// The power goes, and all that was not synced is kept, or none of it.
    pub fn cut_all(&self, is_kept: bool) {
        let world = &mut *self.world.borrow_mut();
        for (offset, bytes) in std::mem::take(&mut world.unsynced) {
            if is_kept {
                world.durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
        }
        world.current = world.durable.clone();
    }

    /// Flips `count` bits anywhere behind the device's own first pages.
    pub fn flip_bits(&self, count: usize) {
        let world = &mut *self.world.borrow_mut();
        for _ in 0..count {
            let at = 8192 + world.dice.roll(world.current.len() as u64 - 8192) as usize;
            let bit = 1 << world.dice.roll(8);
            world.current[at] ^= bit;
            world.durable[at] ^= bit;
        }
    }

    pub fn overwrite(&self, offset: usize, bytes: &[u8]) {
        let world = &mut *self.world.borrow_mut();
        world.current[offset..offset + bytes.len()].copy_from_slice(bytes);
        world.durable[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub fn bytes_at(&self, offset: usize, count: usize) -> Vec<u8> {
        self.world.borrow().current[offset..offset + count].to_vec()
    }

    async fn operate(&self) -> io::Result<()> {
        let turns = {
            let world = &mut *self.world.borrow_mut();
            world.operations += 1;
            world.dice.roll(world.slowness + 1)
        };
        for _ in 0..turns {
            future::yield_now().await;
        }
        let world = &mut *self.world.borrow_mut();
        match &mut world.fails_in {
            Some((0, 0)) | None => Ok(()),
            Some((0, count)) => {
                *count -= 1;
                Err(io::Error::from_raw_os_error(EIO))
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

impl Device for FaultDevice {
    async fn read_at(
        &self,
        offset: u64,
        mut into: Buffer,
        mut seen: impl FnMut(&[u8]),
    ) -> (io::Result<()>, Buffer) {
        if let Err(error) = self.operate().await {
            return (Err(error), into);
        }
        let world = self.world.borrow();
        let Some(bytes) = into.bytes_mut() else { panic!("a block is read only") };
        let Some(found) = world.current.get(offset as usize..offset as usize + bytes.len()) else {
            return (Err(io::Error::from_raw_os_error(EIO)), into);
        };
        bytes.copy_from_slice(found);
        bytes.chunks(8192).for_each(&mut seen);
        drop(world);
        (Ok(()), into)
    }

    async fn write_at(&self, offset: u64, from: Buffer) -> io::Result<()> {
        let result = self.operate().await;
        let world = &mut *self.world.borrow_mut();
        let bytes = from.bytes();
        assert!(offset.is_multiple_of(4096) && bytes.len().is_multiple_of(4096));
        let end = offset as usize + bytes.len();
        assert!(end <= world.current.len(), "a write beyond the device's end");
        // A write that fails has written what it liked, and keeps none of it for sure.
        let kept = if result.is_ok() { bytes.len() } else { bytes.len() / 2 / 512 * 512 };
        let start = offset as usize;
        world.current[start..start + kept].copy_from_slice(&bytes[..kept]);
        world.unsynced.push((start, bytes[..kept].to_vec()));
        result
    }

    async fn write_record(
        &self,
        offset: u64,
        page: Pages,
        value: Option<Buffer>,
    ) -> io::Result<()> {
        // In either order, and either may fail alone.
        let bytes = page.bytes().len() as u64;
        let head = self.write_at(offset, Buffer::Pages(page));
        let rest = async {
            match value {
                Some(value) => self.write_at(offset + bytes, value).await,
                None => Ok(()),
            }
        };
        let (head, rest) = future::zip(head, rest).await;
        head.and(rest)
    }

    async fn sync(&self) -> io::Result<()> {
        // What is written while this runs is not promised.
        let promised = self.world.borrow().unsynced.len();
        self.operate().await?;
        let world = &mut *self.world.borrow_mut();
        let promised = promised.min(world.unsynced.len());
        for (offset, bytes) in world.unsynced.drain(..promised) {
            world.durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }

    async fn allocate(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.operate().await?;
        let is_there = offset + bytes <= self.world.borrow().room;
        if is_there { Ok(()) } else { Err(io::Error::from_raw_os_error(ENOSPC)) }
    }

    fn bytes(&self) -> u64 {
        self.world.borrow().current.len() as u64
    }
}
