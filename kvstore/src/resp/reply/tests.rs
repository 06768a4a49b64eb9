//! What goes out, in which bytes, and when leases end.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::arena::{Arena, Memory, Pages};
use crate::block::Block;
use crate::key::{Key, Name};
use crate::namespace::{Namespaces, Rules};

fn memory() -> Memory {
    Arena::map(1, 64 << 20, 1 << 20, Pages::Plain).unwrap().pop().unwrap()
}

fn block(memory: &mut Memory, bytes: &[u8]) -> Lease {
    let namespaces = Namespaces::new(BTreeMap::new(), Rules::default(), 1);
    let namespace = namespaces.open("n").unwrap();
    assert!(namespace.charge(bytes.len().max(1).next_multiple_of(4096) as u64));
    let key = Key::new(namespace.id, Name::of(b"k"));
    let mut slot = memory.alloc(bytes.len(), namespace).unwrap();
    slot.bytes_mut().copy_from_slice(bytes);
    Block::seal(slot, key, None, Box::default())
}

/// Sends all, `steps` bytes at a time.
fn send(output: &mut Output, mut steps: impl Iterator<Item = usize>) -> Vec<u8> {
    let mut sent = Vec::new();
    while !output.is_empty() {
        let mut slices = [IoSlice::new(&[]); PIECES_PER_WRITE_MAX];
        let count = output.slices(&mut slices);
        let ready: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
        assert!(!ready.is_empty() && ready.starts_with(output.first()));
        let step = steps.next().unwrap_or(usize::MAX).clamp(1, ready.len());
        sent.extend(&ready[..step]);
        output.advance(step);
    }
    sent
}

#[test]
fn each_form_is_written_as_the_protocol_says() {
    let mut output = Output::default();
    output.simple("OK");
    output.integer(7);
    output.negative(1);
    output.bulk(b"a\r\n");
    output.nil();
    output.array(2);
    output.map(1);
    output.error("ERR a\r\n+OK");
    let two = b"+OK\r\n:7\r\n:-1\r\n$3\r\na\r\n\r\n$-1\r\n*2\r\n*2\r\n-ERR a  +OK\r\n";
    assert_eq!(send(&mut output, std::iter::empty()), two);
    output.set_protocol(Protocol::Three);
    output.nil();
    output.map(1);
    assert_eq!(send(&mut output, std::iter::empty()), b"_\r\n%1\r\n");
}

#[test]
fn a_lease_is_held_until_its_last_byte_is_out() {
    let mut memory = memory();
    let lease = block(&mut memory, b"value");
    let mut output = Output::default();
    output.block(lease.clone());
    assert_eq!(lease.count(), 2);
    output.advance(b"$5\r\nvalu".len());
    assert_eq!(lease.count(), 2);
    output.advance(1);
    assert_eq!(lease.count(), 1);
    assert_eq!(output.first(), b"\r\n");
}

#[test]
fn an_output_is_full_by_text_by_blocks_or_by_their_bytes() {
    let mut memory = memory();
    let mut output = Output::default();
    while !output.is_full() {
        output.bulk(&[b'x'; 1000]);
    }
    assert!(output.text.len() < OUTPUT_TEXT_BYTES_MAX + 2000);
    // What is sent of it makes no room before all is: its memory is one piece.
    output.advance(OUTPUT_TEXT_BYTES_MAX / 2);
    assert!(output.is_full());
    send(&mut output, std::iter::empty());
    assert!(!output.is_full() && output.text.capacity() <= KEPT_TEXT_BYTES_MAX);
    let small = block(&mut memory, b"v");
    for _ in 0..OUTPUT_BLOCKS_MAX {
        assert!(!output.is_full());
        output.block(small.clone());
    }
    assert!(output.is_full());
    send(&mut output, std::iter::empty());
    let large = block(&mut memory, &vec![b'v'; 1 << 20]);
    for _ in 0..OUTPUT_BLOCK_BYTES_MAX >> 20 {
        assert!(!output.is_full());
        output.block(large.clone());
    }
    assert!(output.is_full());
}

proptest! {
    #[test]
    fn whatever_the_kernel_takes_at_a_time_the_bytes_are_the_same(
        replies in proptest::collection::vec((any::<bool>(), 0_usize..40), 0..80),
        steps in proptest::collection::vec(1_usize..60, 1..20),
    ) {
        let mut memory = memory();
        let (mut output, mut expected) = (Output::default(), Vec::new());
        for (number, (is_block, len)) in replies.into_iter().enumerate() {
            let bytes = vec![number as u8; len];
            expected.extend(format!("${len}\r\n").bytes());
            expected.extend(&bytes);
            expected.extend(b"\r\n");
            if is_block { output.block(block(&mut memory, &bytes)) } else { output.bulk(&bytes) }
        }
        prop_assert_eq!(send(&mut output, steps.into_iter().cycle()), expected);
        prop_assert_eq!((output.blocks, output.block_bytes), (0, 0));
    }
}
