//! What `cgnctl` writes to stdout: aligned columns or one JSON object.

use std::io::Write;

use serde::Serialize;

use super::{Failure, Output};
use crate::api::{self, engine::State};

/// Columns with a head, as wide as their widest cell.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(head: [&str; N]) -> Table {
        Table { rows: vec![head.map(str::to_owned).to_vec()] }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Writes `value` as JSON, or else what `text` makes of it.
pub(super) fn print<T: Serialize>(
    output: Output,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    let written = match output {
        Output::Table => text(value),
        Output::Json => serde_json::to_string_pretty(value)
            .map_err(|error| Failure::Failed(format!("the result is no JSON: {error}")))?,
    };
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", written.trim_end())
        .map_err(|error| Failure::Failed(format!("stdout cannot be written: {error}")))
}

/// One engine, as all commands show it.
#[derive(Debug, Serialize)]
pub(super) struct Engine {
    worker: String,
    deployment: String,
    replica: u32,
    state: &'static str,
    message: String,
    url: String,
    model: String,
    kind: String,
    slots: u32,
    context_length_tokens: u32,
    pid: u32,
    epoch: u64,
    restarts: u32,
    log_path: String,
}

impl From<api::Engine> for Engine {
    fn from(engine: api::Engine) -> Engine {
        Engine {
            state: state_name(engine.state()),
            worker: engine.worker_id,
            deployment: engine.deployment,
            replica: engine.replica,
            message: engine.message,
            url: engine.url,
            model: engine.model,
            kind: engine.kind,
            slots: engine.slots,
            context_length_tokens: engine.context_length_tokens,
            pid: engine.pid,
            epoch: engine.epoch,
            restarts: engine.restarts,
            log_path: engine.log_path,
        }
    }
}

/// The table of some engines.
pub(super) fn engine_table<'a>(engines: impl Iterator<Item = &'a Engine>) -> Table {
    let mut table = Table::new(["WORKER", "STATE", "URL", "SLOTS", "RESTARTS", "MESSAGE"]);
    for engine in engines {
        table.row([
            engine.worker.clone(),
            engine.state.to_owned(),
            engine.url.clone(),
            engine.slots.to_string(),
            engine.restarts.to_string(),
            engine.message.clone(),
        ]);
    }
    table
}

/// As JSON and tables spell it.
pub(super) fn state_name(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::Starting => "starting",
        State::Ready => "ready",
        State::Draining => "draining",
        State::Backoff => "backoff",
        State::Failed => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_at_their_last_letter() {
        let mut table = Table::new(["A", "LONG"]);
        assert!(table.is_empty());
        table.row(["wide cell".to_owned(), String::new()]);
        table.row(["ä".to_owned(), "x".to_owned()]);
        assert_eq!(table.to_string(), "A          LONG\nwide cell\nä          x\n");
    }
}
