//! Captures an engine's output: a file of bounded size, rotated, and the last lines in memory.
//!
//! One pipe carries both stdout and stderr, so their order is kept. The pipe is read until the
//! last writer is gone; a full or broken disk loses lines, never blocks an engine.
//! `<name>.log` is the current file, `<name>.log.1` the one before, and so on.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Result, Write};
use std::path::{Path, PathBuf};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

/// Lines kept in memory of each engine.
const TAIL_LINES_MAX: usize = 40;
/// Bytes kept of each such line.
const TAIL_LINE_BYTES_MAX: usize = 300;
/// One read from the pipe: what a pipe holds.
const READ_BYTES: usize = 64 << 10;
/// Words by which a line speaks of an error, in lower case.
const ERROR_WORDS: [&str; 6] = ["error", "fail", "fatal", "panick", "cannot", "refused"];

/// A log of bounded size.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    bytes_max: u64,
    files_max: u32,
    complained: bool,
}

impl LogFile {
    /// Opens `path` to append; the file may hold `bytes_max` before it is rotated, and `files_max`
    /// files are kept.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn open(path: &Path, bytes_max: u64, files_max: u32) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        let path = path.to_owned();
        Ok(LogFile { path, file: Some(file), bytes, bytes_max, files_max, complained: false })
    }

    /// Appends `bytes`, which may be cut over several files. A failure is said once and the bytes are
    /// lost.
    pub fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.bytes_max.saturating_sub(self.bytes);
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let cut = match whole_lines(bytes, room) {
                0 if self.bytes > 0 => {
                    if let Err(error) = self.rotate() {
                        return self.complain(&error);
                    }
                    continue;
                }
                // A line longer than a whole file is cut.
                0 => room.max(1).min(bytes.len()),
                cut => cut,
            };
            let (now, later) = bytes.split_at(cut);
            if let Err(error) = self.write(now) {
                return self.complain(&error);
            }
            bytes = later;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.file.is_none() {
            self.file = Some(OpenOptions::new().create(true).append(true).open(&self.path)?);
        }
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// `x.log.2` → `x.log.3`, …, `x.log` → `x.log.1`; the oldest is dropped.
    fn rotate(&mut self) -> Result<()> {
        self.file = None;
        let numbered = |number: u32| match number {
            0 => self.path.clone(),
            number => {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{number}"));
                PathBuf::from(name)
            }
        };
        for number in (1..self.files_max).rev() {
            match std::fs::rename(numbered(number - 1), numbered(number)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file =
            Some(OpenOptions::new().create(true).write(true).truncate(true).open(&self.path)?);
        self.bytes = 0;
        Ok(())
    }

    fn complain(&mut self, error: &std::io::Error) {
        if !self.complained {
            self.complained = true;
            tracing::warn!(log = %self.path.display(), %error, "engine output is being lost");
        }
    }
}

/// How much of `bytes` goes into `room`: all, else up to the last line end that fits, else nothing.
fn whole_lines(bytes: &[u8], room: usize) -> usize {
    if bytes.len() <= room {
        return bytes.len();
    }
    bytes[..room].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1)
}

/// The last lines an engine wrote.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    lines: VecDeque<Vec<u8>>,
    open: Vec<u8>,
}

impl Tail {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = TAIL_LINE_BYTES_MAX.saturating_sub(self.open.len());
            self.open.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < piece.len() {
                self.end_line();
            }
        }
    }

    /// The last line that speaks of an error, or else the last line; empty if there is none.
    pub fn error_line(&self) -> String {
        let lines = || {
            [&self.open].into_iter().chain(self.lines.iter().rev()).map(|line| {
                let text = String::from_utf8_lossy(line);
                text.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned()
            })
        };
        let speaks = |line: &String| {
            let lower = line.to_lowercase();
            ERROR_WORDS.iter().any(|word| lower.contains(word))
        };
        let last = || lines().find(|line| !line.is_empty());
        lines().find(speaks).or_else(last).unwrap_or_default()
    }

    fn end_line(&mut self) {
        if self.lines.len() == TAIL_LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(std::mem::take(&mut self.open));
    }
}

/// Copies `pipe` into `file` until every writer is gone; gives the last lines.
pub async fn capture(mut pipe: Receiver, mut file: LogFile) -> Tail {
    let mut tail = Tail::default();
    let mut bytes = vec![0; READ_BYTES];
    loop {
        match pipe.read(&mut bytes).await {
            Ok(0) => return tail,
            Ok(count) => {
                let read = &bytes[..count];
                file.append(read);
                tail.push(read);
            }
            Err(error) => {
                file.complain(&error);
                return tail;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_error_line_is_the_last_that_speaks_of_one() {
        let mut tail = Tail::default();
        tail.push(b"loading\nE error: no such tensor\nbye\n");
        assert_eq!(tail.error_line(), "E error: no such tensor");
        let mut tail = Tail::default();
        tail.push(b"one\ntw");
        tail.push(b"o\n\n");
        assert_eq!(tail.error_line(), "two");
        assert_eq!(Tail::default().error_line(), "");
    }

    proptest! {
        #[test]
        fn the_tail_is_bounded_whatever_comes(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..40)) {
            let mut tail = Tail::default();
            for chunk in &chunks {
                tail.push(chunk);
            }
            prop_assert!(tail.lines.len() <= TAIL_LINES_MAX);
            prop_assert!(tail.lines.iter().all(|line| line.len() <= TAIL_LINE_BYTES_MAX));
            prop_assert!(!tail.error_line().contains('\n'));
        }

        #[test]
        fn rotation_keeps_the_newest_bytes_in_bounded_files(lines in prop::collection::vec("[a-z]{0,30}\n", 1..120)) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("e.log");
            let mut log = LogFile::open(&path, 100, 3).unwrap();
            for line in &lines {
                log.append(line.as_bytes());
            }
            let mut kept = Vec::new();
            for name in ["e.log.2", "e.log.1", "e.log"] {
                let bytes = std::fs::read(directory.path().join(name)).unwrap_or_default();
                prop_assert!(bytes.len() <= 100);
                kept.extend(bytes);
            }
            let all = lines.concat().into_bytes();
            prop_assert!(all.ends_with(&kept) && kept.len() >= all.len().min(100));
            prop_assert!(std::fs::read_dir(directory.path()).unwrap().count() <= 3);
        }
    }

    #[test]
    fn an_old_log_is_continued() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("e.log");
        LogFile::open(&path, 100, 2).unwrap().append(b"one\n");
        LogFile::open(&path, 100, 2).unwrap().append(b"two\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n");
    }
}
