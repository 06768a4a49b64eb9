//! How a long step shows itself: a bar on a terminal, plain lines at intervals elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two plain lines of one step.
const PLAIN_INTERVAL: Duration = Duration::from_secs(20);
/// Between two frames of a bar while nothing happens.
const FRAME_INTERVAL: Duration = Duration::from_millis(120);

/// One step under way. Ends with [`Progress::done`] or, on failure, by being dropped.
pub struct Progress {
    title: String,
    message: String,
    position: u64,
    length: u64,
    started: Instant,
    said: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts to show `title`.
    pub fn start(title: &str) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_prefix(title.to_owned());
            bar.set_style(style("{spinner} {prefix}  {elapsed}  {wide_msg}"));
            bar.enable_steady_tick(FRAME_INTERVAL);
            bar
        });
        if bar.is_none() {
            eprintln!("{title} …");
        }
        let now = Instant::now();
        Progress {
            title: title.to_owned(),
            message: String::new(),
            position: 0,
            length: 0,
            started: now,
            said: now,
            bar,
        }
    }

    /// `position` of `length` parts are done; turns the spinner into a bar.
    pub fn set(&mut self, position: u64, length: u64) {
        (self.position, self.length) = (position.min(length), length);
        if let Some(bar) = &self.bar {
            if bar.length() != Some(length) {
                bar.set_length(length);
                bar.set_style(style(
                    "{spinner} {prefix} [{bar:24}] {pos}/{len}  {elapsed}  {wide_msg}",
                ));
            }
            bar.set_position(self.position);
        }
    }

    /// What is being done right now.
    pub fn say(&mut self, message: &str) {
        if self.message != message {
            message.clone_into(&mut self.message);
            if let Some(bar) = &self.bar {
                bar.set_message(self.message.clone());
            }
        }
    }

    /// Called about once a second: without a terminal it prints a line now and then.
    pub fn tick(&mut self) {
        if self.bar.is_none() && self.said.elapsed() >= PLAIN_INTERVAL {
            self.said = Instant::now();
            let share = match self.length {
                0 => String::new(),
                length => format!(" {}/{length}", self.position),
            };
            eprintln!("  {}{share} after {} s  {}", self.title, self.elapsed_s(), self.message);
        }
    }

    /// The step is over and went well.
    pub fn done(self, result: &str) {
        let line = format!("✓ {}  {result}", self.title);
        match &self.bar {
            Some(bar) => {
                bar.finish_and_clear();
                eprintln!("{line} ({} s)", self.elapsed_s());
            }
            None => eprintln!("{line} ({} s)", self.elapsed_s()),
        }
    }

    fn elapsed_s(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
