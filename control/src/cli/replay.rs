//! `cgnctl route replay`: the decisions of a router's decision log, made again offline: all the same, or which
//! are not. With other weights or another temperature: which would change, and to where.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use clap::Args;
use dataplane::route::decision::{Decision, LINE_BYTES_MAX};
use dataplane::route::pick::{Picked, Rules};
use dataplane::wire::ScoreWeights;
use serde::Serialize;

use super::output::{Table, print};
use super::{Failure, Global};

/// Lines that are shown one by one; all are counted.
const SHOWN_MAX: usize = 20;
/// Pairs of workers that picks may move between and are counted apart; more are one sum.
const MOVES_MAX: usize = 4_096;

/// Options of `route replay`.
#[derive(Debug, Args)]
pub(super) struct Replay {
    /// A file of `[router.decision_log]`.
    file: PathBuf,
    /// What if these had been the weights?
    #[arg(long, value_name = "kv=…,load=…,power=…,capacity=…")]
    weights: Option<ScoreWeights>,
    /// What if this had been the temperature?
    #[arg(long, value_name = "T", value_parser = super::weights::temperature)]
    temperature: Option<f64>,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Replayed {
    /// Whether other rules than the log's were asked for.
    what_if: bool,
    decisions: u64,
    same: u64,
    changed: u64,
    bad_lines: u64,
    /// The first of those that changed.
    changes: Vec<Change>,
    /// How many went from where to where, most first.
    moves: Vec<Move>,
    /// Changes between pairs of workers beyond those counted apart.
    moves_left_out: u64,
    /// The first of the lines that could not be read.
    bad: Vec<Bad>,
}

#[derive(Debug, Serialize)]
struct Change {
    line: u64,
    request_id: String,
    model: String,
    logged: Outcome,
    replayed: Outcome,
}

#[derive(Debug, Serialize)]
struct Outcome {
    worker: Option<String>,
    because: Option<dataplane::route::pick::Because>,
}

#[derive(Debug, Serialize)]
struct Move {
    from: String,
    to: String,
    decisions: u64,
}

#[derive(Debug, Serialize)]
struct Bad {
    line: u64,
    reason: String,
}

/// From and to.
type Moves = BTreeMap<(String, String), u64>;

/// Replays the file and prints; an error where it does not come out the same.
pub(super) fn run(global: &Global, replay: &Replay) -> Result<(), Failure> {
    let file = &replay.file;
    let wrong = |error: std::io::Error| Failure::Usage(format!("{}: {error}", file.display()));
    let reader = BufReader::new(File::open(file).map_err(wrong)?);
    let replayed = replay.all(reader).map_err(wrong)?;
    print(global.output, &replayed, Replayed::render)?;
    if replayed.bad_lines > 0 {
        let message =
            format!("{} lines of {} are no decisions", replayed.bad_lines, file.display());
        return Err(Failure::Failed(message));
    }
    if replayed.decisions == 0 {
        return Err(Failure::Failed(format!("{} holds no decision", file.display())));
    }
    if replayed.changed > 0 && !replayed.what_if {
        return Err(Failure::Failed(format!(
            "{} of {} decisions are not the same: the log is of another version, or of a system whose logarithm differs",
            replayed.changed, replayed.decisions
        )));
    }
    Ok(())
}

impl Replay {
    /// Every line of `reader`.
    fn all(&self, mut reader: impl BufRead) -> std::io::Result<Replayed> {
        let what_if = self.weights.is_some() || self.temperature.is_some();
        let mut replayed = Replayed { what_if, ..Replayed::default() };
        let mut moves = Moves::new();
        let (mut line, mut number) = (Vec::new(), 0);
        loop {
            line.clear();
            // One byte more than may be, to tell a line that is too long.
            let limit = LINE_BYTES_MAX as u64 + 1;
            if reader.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            number += 1;
            if line.last() == Some(&b'\n') {
                line.pop();
            } else if line.len() > LINE_BYTES_MAX {
                replayed.bad(number, format!("longer than {LINE_BYTES_MAX} bytes"));
                skip_line(&mut reader)?;
                continue;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            match Decision::from_line(&line) {
                Ok(decision) => self.one(number, &decision, &mut replayed, &mut moves),
                Err(error) => replayed.bad(number, error.to_string()),
            }
        }
        let mut moves: Vec<Move> =
            moves.into_iter().map(|((from, to), decisions)| Move { from, to, decisions }).collect();
        moves.sort_by_key(|one| std::cmp::Reverse(one.decisions));
        replayed.moves = moves;
        Ok(replayed)
    }

    fn one(&self, line: u64, decision: &Decision, replayed: &mut Replayed, moves: &mut Moves) {
        let rules = Rules {
            weights: self.weights.unwrap_or(decision.rules.weights),
            temperature: self.temperature.unwrap_or(decision.rules.temperature),
            ..decision.rules
        };
        let again = decision.again(Some(&rules));
        replayed.decisions += 1;
        // What if: only the worker counts; the same worker for another reason is no change.
        let is_same = match replayed.what_if {
            true => again.map(|picked| picked.at) == decision.picked.map(|picked| picked.at),
            false => again == decision.picked,
        };
        if is_same {
            replayed.same += 1;
            return;
        }
        replayed.changed += 1;
        let name = |picked| decision.worker(picked).unwrap_or("nobody").to_owned();
        let pair = (name(decision.picked), name(again));
        if moves.len() < MOVES_MAX || moves.contains_key(&pair) {
            *moves.entry(pair).or_default() += 1;
        } else {
            replayed.moves_left_out += 1;
        }
        if replayed.changes.len() < SHOWN_MAX {
            replayed.changes.push(Change {
                line,
                request_id: decision.request_id.clone(),
                model: decision.model.clone(),
                logged: Outcome::of(decision, decision.picked),
                replayed: Outcome::of(decision, again),
            });
        }
    }
}

/// Reads past the end of a line that is too long to be held.
fn skip_line(reader: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let bytes = reader.fill_buf()?;
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (count, is_over) = match end {
            Some(at) => (at + 1, true),
            None => (bytes.len(), bytes.is_empty()),
        };
        reader.consume(count);
        if is_over {
            return Ok(());
        }
    }
}

impl Outcome {
    fn of(decision: &Decision, picked: Option<Picked>) -> Outcome {
        Outcome {
            worker: decision.worker(picked).map(str::to_owned),
            because: picked.map(|picked| picked.because),
        }
    }

    fn text(&self) -> String {
        let because = self.because.map(|because| format!("{because:?}").to_lowercase());
        match (&self.worker, because) {
            (Some(worker), Some(because)) => format!("{worker} ({because})"),
            _ => "nobody".to_owned(),
        }
    }
}

impl Replayed {
    fn bad(&mut self, line: u64, reason: String) {
        self.bad_lines += 1;
        if self.bad.len() < SHOWN_MAX {
            self.bad.push(Bad { line, reason });
        }
    }

    fn render(&self) -> String {
        let Replayed { decisions, same, changed, .. } = self;
        let mut text = match self.what_if {
            true => format!("{changed} of {decisions} would go elsewhere\n"),
            false => format!("{same} of {decisions} the same\n"),
        };
        if self.what_if && !self.moves.is_empty() {
            let mut table = Table::new(["DECISIONS", "FROM", "TO"]);
            for one in self.moves.iter().take(SHOWN_MAX) {
                table.row([one.decisions.to_string(), one.from.clone(), one.to.clone()]);
            }
            text += &format!("\n{table}");
        }
        if !self.what_if && !self.changes.is_empty() {
            let mut table = Table::new(["LINE", "REQUEST", "MODEL", "LOGGED", "REPLAYED"]);
            for change in &self.changes {
                table.row([
                    change.line.to_string(),
                    change.request_id.clone(),
                    change.model.clone(),
                    change.logged.text(),
                    change.replayed.text(),
                ]);
            }
            text += &format!("\n{table}");
        }
        if !self.bad.is_empty() {
            text += &format!("\n{} bad lines, the first:\n", self.bad_lines);
            for bad in &self.bad {
                text += &format!("line {}: {}\n", bad.line, bad.reason);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use dataplane::route::decision::{RulesFrom, Seen, VERSION};
    use dataplane::route::pick::{Candidate, Request};
    use dataplane::route::speeds::Held;

    use super::*;

    fn decision(gpu_tokens: [u64; 2]) -> Decision {
        let seen = |(at, gpu_tokens)| Seen {
            worker: format!("w{at}"),
            source: "learned".to_owned(),
            state: Candidate {
                excluded: None,
                held: Held { gpu_tokens, ..Held::default() },
                queued_ms: [30.0, 0.0][at],
                decoding: 0,
                inflight: 0,
                slots: 4,
                picked: 0,
                power_watts: None,
                cache_free: 1.0,
            },
        };
        let mut one = Decision {
            version: VERSION,
            time_unix_ms: 1,
            request_id: "r".to_owned(),
            trace_id: "t".to_owned(),
            model: "m".to_owned(),
            tried: 0,
            rules_from: RulesFrom::Configuration,
            request: Request { prompt_tokens: 2_000, preferred: None },
            rules: Rules::default(),
            seed: 7,
            candidates: gpu_tokens.into_iter().enumerate().map(seen).collect(),
            picked: None,
        };
        one.picked = one.again(None);
        one
    }

    fn replayed(text: &[u8], weights: Option<&str>) -> Replayed {
        let weights = weights.map(|weights| weights.parse().unwrap());
        let replay = Replay { file: PathBuf::new(), weights, temperature: None };
        replay.all(text).unwrap()
    }

    fn lines(decisions: &[Decision]) -> Vec<u8> {
        let line = |one: &Decision| [one.to_line().unwrap(), b"\n".to_vec()].concat();
        decisions.iter().flat_map(line).collect()
    }

    #[test]
    fn the_same_decisions_are_the_same_and_a_tampered_one_is_shown() {
        let mut all = [decision([1_900, 0]), decision([0, 0]), decision([0, 1_900])];
        let same = replayed(&lines(&all), None);
        assert_eq!((same.decisions, same.same, same.changed, same.bad_lines), (3, 3, 0, 0));
        assert!(same.render().starts_with("3 of 3 the same"));
        let picked = all[1].picked.as_mut().unwrap();
        picked.at = 1 - picked.at;
        let differs = replayed(&lines(&all), None);
        assert_eq!((differs.same, differs.changed, differs.changes[0].line), (2, 1, 2));
    }

    #[test]
    fn other_weights_say_how_many_would_go_where() {
        let all = [decision([1_900, 0]), decision([0, 0]), decision([0, 1_900])];
        let log = lines(&all);
        let by_load = replayed(&log, Some("kv=0,load=1,power=0,capacity=0"));
        assert_eq!((by_load.decisions, by_load.changed), (3, 1), "{by_load:?}");
        assert_eq!((by_load.moves[0].from.as_str(), by_load.moves[0].to.as_str()), ("w0", "w1"));
        assert!(by_load.render().starts_with("1 of 3 would go elsewhere"));
        assert_eq!(replayed(&log, Some(&ScoreWeights::default().to_string())).changed, 0);
    }

    #[test]
    fn bad_lines_are_named_and_the_rest_is_replayed() {
        let good = lines(&[decision([0, 0])]);
        let torn = &good[..40];
        let long = vec![b'x'; LINE_BYTES_MAX + 9];
        let all = [&good, torn, b"\n\n \n", &good, &long, b"\n", &good, b"{}"].concat();
        let got = replayed(&all, None);
        assert_eq!((got.decisions, got.same, got.bad_lines), (3, 3, 3));
        let named: Vec<u64> = got.bad.iter().map(|bad| bad.line).collect();
        assert_eq!(named, [2, 6, 8]);
        assert!(got.bad[1].reason.contains("longer than"));
    }
}
