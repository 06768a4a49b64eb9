//! The arena with real memory: what is granted can be written, what is given back is gone.

use std::collections::BTreeMap;

use super::*;
use crate::namespace::{Namespaces, Rules};

fn namespace() -> Arc<Namespace> {
    Namespaces::new(BTreeMap::new(), Rules::default(), 1).open("test").unwrap()
}

fn alloc(memory: &mut Memory, len: usize, namespace: &Arc<Namespace>) -> Result<Slot, MemoryError> {
    assert!(namespace.charge(len.max(1).next_multiple_of(PAGE_BYTES) as u64));
    let slot = memory.alloc(len, namespace.clone());
    if slot.is_err() {
        namespace.discharge(len.max(1).next_multiple_of(PAGE_BYTES) as u64);
    }
    slot
}

#[test]
fn blocks_of_all_sizes_keep_their_bytes_and_memory_comes_back() {
    let mut memory = Arena::map(1, 16 << 20, 8 << 20, Pages::Plain).unwrap().pop().unwrap();
    let namespace = namespace();
    for round in 0..20u8 {
        let lens = [1, 4096, 70_000, 1 << 20, 3_000_001, 5 << 20];
        let slots: Vec<Slot> = lens
            .iter()
            .map(|&len| {
                let mut slot = alloc(&mut memory, len, &namespace).unwrap();
                slot.bytes_mut().fill(round ^ len as u8);
                slot
            })
            .collect();
        for (slot, &len) in slots.iter().zip(&lens) {
            assert_eq!(slot.len(), len);
            assert!(slot.bytes().iter().all(|&byte| byte == round ^ len as u8));
        }
    }
    assert_eq!(namespace.used_bytes(), 0);
    assert_eq!(memory.used_bytes(), 0);
    assert!(memory.resident_bytes() <= 16 << 20);
}

#[test]
fn a_full_arena_says_so_until_a_region_comes_back_from_another_thread() {
    let mut memory = Arena::map(1, 4 << 20, 4 << 20, Pages::Plain).unwrap().pop().unwrap();
    let namespace = namespace();
    let all = alloc(&mut memory, 4 << 20, &namespace).unwrap();
    assert_eq!(alloc(&mut memory, 1, &namespace).unwrap_err(), MemoryError::Full);
    std::thread::spawn(move || drop(all)).join().unwrap();
    assert!(alloc(&mut memory, 1, &namespace).is_ok());
    assert!(matches!(
        alloc(&mut memory, (4 << 20) + 1, &namespace).unwrap_err(),
        MemoryError::TooLarge { .. }
    ));
}

#[test]
fn another_process_can_map_the_arena_only_to_read() {
    let mut memory = Arena::map(1, 1 << 20, 1 << 20, Pages::Plain).unwrap().pop().unwrap();
    let mut slot = alloc(&mut memory, 5, &namespace()).unwrap();
    slot.bytes_mut().copy_from_slice(b"hello");
    let mut read = [0; 5];
    let file = std::fs::File::from(memory.arena().for_clients().unwrap());
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut read, slot.offset()).unwrap();
    assert_eq!(&read, b"hello");
    assert!(std::os::unix::fs::FileExt::write_at(&file, b"wrong", slot.offset()).is_err());
    let flags = rustix::fs::fcntl_getfl(&file).unwrap();
    assert!(!flags.intersects(rustix::fs::OFlags::RDWR | rustix::fs::OFlags::WRONLY));
}

#[test]
fn memory_that_is_given_back_is_the_systems_again() {
    let mut memory = Arena::map(1, 8 << 20, 4 << 20, Pages::Plain).unwrap().pop().unwrap();
    let held =
        |memory: &Memory| rustix::fs::fstat(memory.arena().memfd()).unwrap().st_blocks as u64 * 512;
    // Blocks of many sizes, one after the other: what one leaves behind must make room for the next.
    for turn in 0..40usize {
        let len = 1 + (turn * 7919 * 4096) % (4 << 20);
        let slots: Vec<_> = (0..2).map(|_| alloc(&mut memory, len, &namespace())).collect();
        assert!(slots.iter().any(Result::is_ok));
        assert!(held(&memory) <= 8 << 20, "{} bytes are held", held(&memory));
        assert_eq!(held(&memory), memory.resident_bytes());
    }
}
