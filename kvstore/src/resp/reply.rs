//! Replies on their way out: text, and blocks that are sent from where they lie.
//!
//! It owns the leases of the blocks it will send and lets each go when its last byte is out. It is
//! bounded: a full output takes one more reply, and then nothing is read before it is empty. It writes
//! no socket.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use crate::block::Lease;

/// Text that may wait. Beyond it the client must read first.
pub const OUTPUT_TEXT_BYTES_MAX: usize = 256 << 10;
/// Blocks that may wait: leases keep memory from being used again.
pub const OUTPUT_BLOCKS_MAX: usize = 1024;
/// Bytes of blocks that may wait; a larger one waits alone.
pub const OUTPUT_BLOCK_BYTES_MAX: usize = 256 << 20;
/// Pieces of one system call: four replies with a block each have nine.
pub const PIECES_PER_WRITE_MAX: usize = 32;
/// Text memory that is kept when all is sent.
const KEPT_TEXT_BYTES_MAX: usize = 16 << 10;

/// How replies without a common form are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// RESP2: what a client gets that says nothing.
    #[default]
    Two,
    /// RESP3: asked for by `HELLO 3`.
    Three,
}

#[derive(Debug)]
enum Piece {
    Text(Range<usize>),
    Block(Lease),
}

impl Piece {
    fn bytes<'a>(&'a self, text: &'a [u8]) -> &'a [u8] {
        match self {
            Piece::Text(range) => &text[range.clone()],
            Piece::Block(block) => block.bytes(),
        }
    }
}

/// Replies that wait to be sent, in order.
#[derive(Debug, Default)]
pub struct Output {
    protocol: Protocol,
    text: Vec<u8>,
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are sent.
    sent: usize,
    /// Bytes that were ever sent.
    sent_bytes: u64,
    blocks: usize,
    block_bytes: usize,
}

impl Output {
    /// From here on replies are written so.
    pub fn set_protocol(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// How replies are written.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether all that waits must be sent before more is asked.
    pub fn is_full(&self) -> bool {
        self.text.len() >= OUTPUT_TEXT_BYTES_MAX
            || self.blocks >= OUTPUT_BLOCKS_MAX
            || self.block_bytes >= OUTPUT_BLOCK_BYTES_MAX
    }

    /// `+OK` and the like. `text` is ours.
    pub fn simple(&mut self, text: &'static str) {
        self.push(&[b"+", text.as_bytes(), b"\r\n"]);
    }

    /// An error: a word for machines, then a sentence. Control characters become blanks, so that no
    /// error is two lines.
    pub fn error(&mut self, text: &str) {
        let line: String =
            text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
        self.push(&[b"-", line.as_bytes(), b"\r\n"]);
    }

    /// A number.
    pub fn integer(&mut self, number: u64) {
        self.push(&[b":", number.to_string().as_bytes(), b"\r\n"]);
    }

    /// A number below zero, by its size.
    pub fn negative(&mut self, number: u64) {
        self.push(&[b":-", number.to_string().as_bytes(), b"\r\n"]);
    }

    /// A string of bytes.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.push(&[b"$", bytes.len().to_string().as_bytes(), b"\r\n", bytes, b"\r\n"]);
    }

    /// A block as a string of bytes, sent from where it lies.
    pub fn block(&mut self, block: Lease) {
        self.push(&[b"$", block.len().to_string().as_bytes(), b"\r\n"]);
        if !block.is_empty() {
            self.blocks += 1;
            self.block_bytes += block.len();
            self.pieces.push_back(Piece::Block(block));
        }
        self.push(&[b"\r\n"]);
    }

    /// Nothing.
    pub fn nil(&mut self) {
        let nil: &[u8] = if self.protocol == Protocol::Three { b"_\r\n" } else { b"$-1\r\n" };
        self.push(&[nil]);
    }

    /// The head of `len` replies in a row.
    pub fn array(&mut self, len: usize) {
        self.push(&[b"*", len.to_string().as_bytes(), b"\r\n"]);
    }

    /// The head of `len` pairs of replies.
    pub fn map(&mut self, len: usize) {
        match self.protocol {
            Protocol::Two => self.array(len * 2),
            Protocol::Three => self.push(&[b"%", len.to_string().as_bytes(), b"\r\n"]),
        }
    }

    /// What is to be sent next, in at most [`PIECES_PER_WRITE_MAX`] pieces.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; PIECES_PER_WRITE_MAX]) -> usize {
        let mut count = 0;
        for (piece, slice) in self.pieces.iter().zip(slices.iter_mut()) {
            let skip = if count == 0 { self.sent } else { 0 };
            *slice = IoSlice::new(&piece.bytes(&self.text)[skip..]);
            count += 1;
        }
        count
    }

    /// The first of what is to be sent next; empty if nothing is.
    pub fn first(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| &piece.bytes(&self.text)[self.sent..])
    }

    /// Bytes that were ever sent.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// `len` more bytes are sent.
    pub fn advance(&mut self, len: usize) {
        self.sent += len;
        self.sent_bytes += len as u64;
        while let Some(first) = self.pieces.front() {
            let first_len = first.bytes(&self.text).len();
            if self.sent < first_len {
                return;
            }
            self.sent -= first_len;
            if let Some(Piece::Block(block)) = self.pieces.pop_front() {
                self.blocks -= 1;
                self.block_bytes -= block.len();
            }
        }
        self.text.clear();
        self.text.shrink_to(KEPT_TEXT_BYTES_MAX);
    }

    fn push(&mut self, parts: &[&[u8]]) {
        let start = self.text.len();
        for part in parts {
            self.text.extend_from_slice(part);
        }
        let end = self.text.len();
        match self.pieces.back_mut() {
            Some(Piece::Text(range)) => range.end = end,
            _ => self.pieces.push_back(Piece::Text(start..end)),
        }
    }
}

#[cfg(test)]
mod tests;
