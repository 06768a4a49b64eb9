//! What `cgnctl` shows while it waits: a bar on a terminal, else a line for each change. On stderr,
//! so stdout stays the result.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(120);

/// A bar or lines.
pub(super) enum Progress {
    Bar(ProgressBar),
    Lines { last: String },
}

impl Progress {
    /// `total` steps to go.
    pub(super) fn start(total: u32) -> Progress {
        if !std::io::stderr().is_terminal() {
            return Progress::Lines { last: String::new() };
        }
        let bar = ProgressBar::new(u64::from(total));
        // The template is a constant; were it wrong, the default style would do.
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} [{bar:24}] {pos}/{len} {wide_msg}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Progress::Bar(bar)
    }

    /// So far, and what is going on.
    pub(super) fn show(&mut self, done: u32, line: &str) {
        match self {
            Progress::Bar(bar) => {
                bar.set_position(u64::from(done));
                bar.set_message(line.to_owned());
            }
            Progress::Lines { last } if last != line => {
                eprintln!("{line}");
                line.clone_into(last);
            }
            Progress::Lines { .. } => {}
        }
    }

    /// Clears the terminal's line.
    pub(super) fn finish(self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
