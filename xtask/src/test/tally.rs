//! How many tests passed, failed and were skipped, as each test runner says it.

use std::fmt;
use std::ops::AddAssign;

/// A count of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Went well.
    pub passed: u64,
    /// Did not.
    pub failed: u64,
    /// Were not run.
    pub skipped: u64,
}

impl Tally {
    /// One check that went well.
    pub const PASSED: Tally = Tally { passed: 1, failed: 0, skipped: 0 };
    /// One that did not.
    pub const FAILED: Tally = Tally { passed: 0, failed: 1, skipped: 0 };
    /// One that was not run.
    pub const SKIPPED: Tally = Tally { passed: 0, failed: 0, skipped: 1 };

    /// Whether what stands on these tests may go on.
    pub fn is_good(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; …`
pub fn cargo_line(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| number_before(counts, word);
    Some(Tally { passed: number("passed"), failed: number("failed"), skipped: number("ignored") })
}

/// `3 passed, 1 skipped in 2.50s`, with `1 failed` and `2 errors` before it.
pub fn pytest_line(line: &str) -> Option<Tally> {
    let (counts, time) = line.trim_matches(['=', ' ']).rsplit_once(" in ")?;
    if !time.starts_with(|first: char| first.is_ascii_digit()) || !time.contains('s') {
        return None;
    }
    let number = |word: &str| number_before(counts, word);
    let failed = number("failed") + number("errors").max(number("error"));
    let tally = Tally { passed: number("passed"), failed, skipped: number("skipped") };
    (tally != Tally::default()).then_some(tally)
}

/// `ℹ pass 3`, `ℹ fail 0`, `ℹ skipped 1` of `node --test --test-reporter=spec`, a line each.
pub fn node_line(line: &str) -> Option<Tally> {
    let (word, count) = line.strip_prefix("ℹ ")?.split_once(' ')?;
    let count = count.trim().parse().ok()?;
    match word {
        "pass" => Some(Tally { passed: count, ..Tally::default() }),
        "fail" | "cancelled" => Some(Tally { failed: count, ..Tally::default() }),
        "skipped" | "todo" => Some(Tally { skipped: count, ..Tally::default() }),
        _ => None,
    }
}

/// The number right before `word`, or 0.
fn number_before(text: &str, word: &str) -> u64 {
    let words: Vec<&str> = text.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: u64, failed: u64, skipped: u64) -> Option<Tally> {
        Some(Tally { passed, failed, skipped })
    }

    #[test]
    fn each_runner_is_understood() {
        let cargo = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; \
                     finished in 0.00s";
        assert_eq!(cargo_line(cargo), tally(3, 1, 2));
        assert_eq!(cargo_line("test digest::golden ... ok"), None);
        assert_eq!(pytest_line("20 passed in 3.21s"), tally(20, 0, 0));
        assert_eq!(
            pytest_line("== 2 failed, 5 passed, 1 skipped in 61.0s (0:01:01) =="),
            tally(5, 2, 1)
        );
        assert_eq!(pytest_line("1 error in 0.10s"), tally(0, 1, 0));
        assert_eq!(pytest_line("the answer came in 3s"), None);
        assert_eq!(node_line("ℹ pass 12"), tally(12, 0, 0));
        assert_eq!(node_line("ℹ fail 1"), tally(0, 1, 0));
        assert_eq!(node_line("ℹ duration_ms 12.5"), None);
    }

    #[test]
    fn nothing_run_is_not_good() {
        assert!(Tally::PASSED.is_good());
        assert!(!Tally::SKIPPED.is_good());
        assert!(!Tally { passed: 9, failed: 1, skipped: 0 }.is_good());
    }
}
