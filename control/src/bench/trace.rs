//! A trace: when requests came, how long they were and which blocks their prompts were made of.
//!
//! One JSON object a line, as Mooncake published theirs:
//!
//! ```text
//! {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2354, 2355]}
//! ```
//!
//! `timestamp` in ms; a hash id names a block and all before it; the last block may be a part of one.
//! Reads only; nothing here runs.

use std::collections::HashMap;
use std::io::BufRead;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// More requests are not a trace to wait for.
pub const REQUESTS_MAX: usize = 4_000_000;
/// Blocks of all prompts together: 1 GiB of memory.
pub const BLOCKS_MAX: usize = 256 << 20;
/// Tokens of one prompt or answer: above any context, so that sums cannot overflow.
pub const TOKENS_MAX: u32 = 1 << 24;

/// One line of the file.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Line {
    /// Arrival, in ms from the start of the trace.
    pub timestamp: f64,
    /// Tokens of the prompt.
    pub input_length: u32,
    /// Tokens of the answer.
    pub output_length: u32,
    /// The prompt's blocks.
    pub hash_ids: Vec<u64>,
}

/// One request; its blocks are [`Trace::blocks_of`].
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// In ms from the start of the trace.
    pub arrival_ms: f64,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    blocks: Range<usize>,
}

/// Requests in order of arrival.
#[derive(Clone, Debug)]
pub struct Trace {
    requests: Vec<Request>,
    blocks: Vec<u32>,
    unique_blocks: usize,
    block_tokens: u32,
}

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file broke off.
    #[error("line {line}: {error}")]
    Read {
        /// Counted from 1.
        line: usize,
        /// What the system said.
        error: std::io::Error,
    },
    /// A line is no request.
    #[error(
        "line {line}: {error}; a line is {{\"timestamp\": ms, \"input_length\": tokens, \"output_length\": tokens, \"hash_ids\": [blocks]}}"
    )]
    Parse {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// A line contradicts itself.
    #[error("line {line}: {what}")]
    Wrong {
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// Nothing to replay.
    #[error("the trace has no request")]
    Empty,
}

impl Trace {
    /// Reads a whole trace. Empty lines are passed over; lines may come in any order of time.
    ///
    /// # Errors
    /// [`TraceError`], with the number of the line.
    pub fn read(file: impl BufRead, block_tokens: u32) -> Result<Trace, TraceError> {
        let mut builder = Builder::new(block_tokens);
        for (at, text) in file.lines().enumerate() {
            let line = at + 1;
            let text = text.map_err(|error| TraceError::Read { line, error })?;
            if text.trim().is_empty() {
                continue;
            }
            let request =
                serde_json::from_str(&text).map_err(|error| TraceError::Parse { line, error })?;
            builder.add(request).map_err(|what| TraceError::Wrong { line, what })?;
        }
        builder.finish()
    }

    /// A trace made up rather than read.
    ///
    /// # Errors
    /// [`TraceError`], where `line` counts the requests.
    pub fn of(
        lines: impl IntoIterator<Item = Line>,
        block_tokens: u32,
    ) -> Result<Trace, TraceError> {
        let mut builder = Builder::new(block_tokens);
        for (at, line) in lines.into_iter().enumerate() {
            builder.add(line).map_err(|what| TraceError::Wrong { line: at + 1, what })?;
        }
        builder.finish()
    }

    /// In order of arrival.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// A request's blocks, numbered from 0 without gaps over the trace.
    pub fn blocks_of(&self, request: &Request) -> &[u32] {
        &self.blocks[request.blocks.clone()]
    }

    /// Blocks of all requests, each as often as it occurs.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Different blocks.
    pub fn unique_blocks(&self) -> usize {
        self.unique_blocks
    }

    /// Tokens of a whole block.
    pub fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    /// Tokens in the first `blocks` blocks of a prompt.
    pub fn tokens_in(&self, request: &Request, blocks: usize) -> u64 {
        (blocks as u64 * u64::from(self.block_tokens)).min(u64::from(request.prompt_tokens))
    }
}

struct Builder {
    trace: Trace,
    numbers: HashMap<u64, u32>,
}

impl Builder {
    fn new(block_tokens: u32) -> Self {
        let block_tokens = block_tokens.max(1);
        let trace =
            Trace { requests: Vec::new(), blocks: Vec::new(), unique_blocks: 0, block_tokens };
        Builder { trace, numbers: HashMap::new() }
    }

    fn add(&mut self, line: Line) -> Result<(), String> {
        let Line { timestamp, input_length, output_length, hash_ids } = line;
        if !(timestamp.is_finite() && timestamp >= 0.0) {
            return Err(format!("timestamp {timestamp} is not a time; give ms from the start"));
        }
        if input_length == 0 || input_length.max(output_length) > TOKENS_MAX {
            return Err(format!(
                "lengths must lie between 1 and {TOKENS_MAX} tokens, not {input_length} and {output_length}"
            ));
        }
        let blocks = input_length.div_ceil(self.trace.block_tokens);
        if hash_ids.len() != blocks as usize {
            return Err(format!(
                "{} hash_ids for {input_length} tokens: blocks of {} tokens make {blocks}; give the trace's own with --block-tokens",
                hash_ids.len(),
                self.trace.block_tokens
            ));
        }
        if self.trace.requests.len() >= REQUESTS_MAX
            || self.trace.blocks.len() + hash_ids.len() > BLOCKS_MAX
        {
            return Err(format!(
                "a trace ends at {REQUESTS_MAX} requests or {BLOCKS_MAX} blocks; cut it"
            ));
        }
        let start = self.trace.blocks.len();
        for id in hash_ids {
            // Fits: there are no more numbers than blocks.
            let next = self.numbers.len() as u32;
            self.trace.blocks.push(*self.numbers.entry(id).or_insert(next));
        }
        self.trace.requests.push(Request {
            arrival_ms: timestamp,
            prompt_tokens: input_length,
            output_tokens: output_length,
            blocks: start..self.trace.blocks.len(),
        });
        Ok(())
    }

    fn finish(self) -> Result<Trace, TraceError> {
        let mut trace = self.trace;
        if trace.requests.is_empty() {
            return Err(TraceError::Empty);
        }
        trace.unique_blocks = self.numbers.len();
        trace.requests.sort_by(|a, b| a.arrival_ms.total_cmp(&b.arrival_ms));
        Ok(trace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        r#"{"timestamp": 5, "input_length": 1000, "output_length": 3, "hash_ids": [7, 9]}"#;

    #[test]
    fn lines_become_requests_in_order_of_time_with_blocks_numbered_from_zero() {
        let later = r#"{"timestamp":1,"input_length":1100,"output_length":0,"hash_ids":[7,3,9]}"#;
        let trace = Trace::read(format!("{LINE}\n\n{later}\n").as_bytes(), 512).unwrap();
        assert_eq!((trace.requests().len(), trace.blocks(), trace.unique_blocks()), (2, 5, 3));
        assert_eq!(trace.requests()[0].prompt_tokens, 1_100);
        assert_eq!(trace.blocks_of(&trace.requests()[0]), [0, 2, 1]);
        assert_eq!(trace.blocks_of(&trace.requests()[1]), [0, 1]);
        assert_eq!(trace.tokens_in(&trace.requests()[1], 2), 1_000);
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        let told = |text: &str| {
            let error = Trace::read(format!("{LINE}\n{text}\n").as_bytes(), 512).unwrap_err();
            let told = error.to_string();
            assert!(told.starts_with("line 2: "), "{told}");
            told
        };
        assert!(told("{").contains("timestamp"));
        assert!(told("[]").contains("hash_ids"));
        assert!(told(&LINE.replace("[7, 9]", "[7]")).contains("--block-tokens"));
        assert!(told(&LINE.replace("1000", "-1")).contains("input_length"));
        assert!(told(&LINE.replace("1000", "0")).contains("between 1"));
        assert!(told(&LINE.replace(": 5", ": -5")).contains("timestamp"));
    }

    #[test]
    fn an_empty_trace_says_so() {
        assert!(matches!(Trace::read(&b"\n \n"[..], 512), Err(TraceError::Empty)));
    }
}
