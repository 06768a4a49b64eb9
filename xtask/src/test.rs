//! `cargo xtask test`: every check of the project, in stages, with one line of sums at the end.
//!
//! A stage that fails does not stop the others, only those that stand on it. The last line counts
//! single tests where a stage runs many, and the stage itself where it is one check.

mod deny;
mod kv_clients;
mod page;
mod sdk;
mod smoke;
mod tally;
mod tokenizers;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::cache::Cache;
use crate::failure::Failure;
use crate::{build, llama, model, packages, step, vllm};

use tally::Tally;

/// One stage: its name, the stages it stands on, what it runs.
struct Stage {
    name: &'static str,
    needs: &'static [&'static str],
    /// Too long for every change: only with `--full`, or by name.
    is_long: bool,
    run: fn(&Cache) -> Result<Tally, Failure>,
}

const STAGES: &[Stage] = &[
    Stage { name: "packages", needs: &[], is_long: false, run: packages_present },
    Stage { name: "fmt", needs: &[], is_long: false, run: fmt },
    Stage { name: "deny", needs: &["packages"], is_long: false, run: deny::run },
    Stage { name: "build", needs: &["packages"], is_long: false, run: binaries },
    Stage { name: "clippy", needs: &["packages"], is_long: false, run: clippy },
    Stage { name: "engine", needs: &["packages"], is_long: false, run: engine_and_model },
    // Without them cargo's tests say what they skip.
    Stage { name: "tokenizers", needs: &["packages"], is_long: false, run: tokenizers::run },
    Stage { name: "kv-clients", needs: &["packages"], is_long: false, run: kv_clients::run },
    Stage { name: "cargo", needs: &["build", "engine"], is_long: false, run: cargo_test },
    Stage { name: "sdk-python", needs: &["build", "engine"], is_long: false, run: sdk::python },
    Stage { name: "sdk-node", needs: &["build", "engine"], is_long: false, run: sdk::node },
    Stage { name: "page", needs: &["build"], is_long: false, run: page::run },
    Stage { name: "smoke", needs: &["build", "engine"], is_long: false, run: smoke::run },
    Stage { name: "agree", needs: &["build"], is_long: true, run: agree },
    Stage { name: "vllm", needs: &["build"], is_long: true, run: vllm_test },
];

/// How a stage ended.
struct Ended {
    name: &'static str,
    tally: Tally,
    seconds: u64,
    note: String,
}

/// Runs all stages, the long ones only if `full`, or the one called `only` and those it stands on.
pub fn run(cache: &Cache, full: bool, only: Option<&str>) -> Result<(), Failure> {
    if let Some(name) = only
        && !STAGES.iter().any(|stage| stage.name == name)
    {
        let names: Vec<&str> = STAGES.iter().map(|stage| stage.name).collect();
        return Err(Failure::new(format!("no stage `{name}`; there are: {}", names.join(", "))));
    }
    let mut ended: Vec<Ended> = Vec::new();
    let is_due = |stage: &&Stage| match only {
        Some(name) => is_wanted(stage, name),
        None => full || !stage.is_long,
    };
    for stage in STAGES.iter().filter(is_due) {
        println!("\n=== {} ===", stage.name);
        let one = run_stage(cache, stage, &ended);
        if !one.note.is_empty() {
            println!("{}: {}", one.name, one.note);
        }
        ended.push(one);
    }
    summary(&ended)
}

/// Whether `stage` is the one called `only` or one that it stands on, however far down.
fn is_wanted(stage: &Stage, only: &str) -> bool {
    let mut above = STAGES.iter().filter(|other| other.needs.contains(&stage.name));
    stage.name == only || above.any(|other| is_wanted(other, only))
}

fn run_stage(cache: &Cache, stage: &Stage, ended: &[Ended]) -> Ended {
    let started = Instant::now();
    let unmet = stage
        .needs
        .iter()
        .find(|need| ended.iter().any(|other| other.name == **need && !other.tally.is_good()));
    let (tally, note) = match unmet {
        Some(need) => (Tally::SKIPPED, format!("skipped, since `{need}` did not pass")),
        None => match (stage.run)(cache) {
            Ok(tally) => (tally, String::new()),
            Err(failure) => (Tally::FAILED, failure.to_string()),
        },
    };
    Ended { name: stage.name, tally, seconds: started.elapsed().as_secs(), note }
}

fn summary(ended: &[Ended]) -> Result<(), Failure> {
    println!("\n=== summary ===");
    let mut sum = Tally::default();
    for one in ended {
        let mark = if one.tally.is_good() { "ok" } else { "NOT OK" };
        println!("{:<12} {mark:<7} {:>5} s  {}", one.name, one.seconds, one.tally);
        if let Some(line) = one.note.lines().next() {
            println!("             {line}");
        }
        sum += one.tally;
    }
    println!("\n{sum}");
    // The sums are the last line on stdout; the error goes to stderr.
    if sum.failed == 0 && ended.iter().all(|one| one.tally.is_good()) {
        return Ok(());
    }
    Err(Failure::new("some tests did not pass; one stage alone: cargo xtask test --only STAGE"))
}

fn packages_present(cache: &Cache) -> Result<Tally, Failure> {
    packages::ensure(cache, packages::NODE)?;
    let installed = packages::ensure(cache, packages::TEST)?;
    if installed.contains(&packages::PROMETHEUS) {
        packages::stop_service(packages::PROMETHEUS);
    }
    Ok(Tally::PASSED)
}

fn fmt(cache: &Cache) -> Result<Tally, Failure> {
    build::stage(cache.cargo().args(["fmt", "--all", "--check"]))?;
    Ok(Tally::PASSED)
}

fn clippy(cache: &Cache) -> Result<Tally, Failure> {
    let mut command = cache.cargo();
    command.args(["clippy", "--release", "--locked", "--workspace", "--all-targets", "--quiet"]);
    build::stage(command.args(["--", "-D", "warnings"]))?;
    Ok(Tally::PASSED)
}

fn binaries(cache: &Cache) -> Result<Tally, Failure> {
    build::binaries(cache)?;
    Ok(Tally::PASSED)
}

fn engine_and_model(cache: &Cache) -> Result<Tally, Failure> {
    llama::ensure(cache)?;
    model::ensure(cache)?;
    Ok(Tally::PASSED)
}

fn cargo_test(cache: &Cache) -> Result<Tally, Failure> {
    let mut command = cache.cargo();
    command.args(["test", "--release", "--locked", "--workspace", "--no-fail-fast"]);
    command.envs(kv_clients::variables(cache));
    count(&mut command, tally::cargo_line)
}

/// The tests that need a real vLLM; they are ignored where all tests run.
fn vllm_test(cache: &Cache) -> Result<Tally, Failure> {
    let vllm = vllm::ensure(cache)?;
    let mut command = cache.cargo();
    command.args(["test", "--release", "--locked", "--workspace"]);
    // The engine under an agent, and its KV cache through the KV daemon.
    command.args(["--test", "vllm", "--test", "plugins", "--"]);
    command.args(["--ignored", "--nocapture", "--test-threads=1"]);
    command.env("CGN_VLLM", &vllm.program).env("CGN_VLLM_MODEL", &vllm.model);
    count(&mut command, tally::cargo_line)
}

/// Routers and engines over bad lines for ten minutes; where all tests run it takes seconds.
fn agree(cache: &Cache) -> Result<Tally, Failure> {
    let mut command = cache.cargo();
    command.args(["test", "--release", "--locked", "--workspace", "--test", "node", "--"]);
    command.args(["agree::", "--nocapture"]).env("CGN_KV_FEED_SECONDS", "600");
    count(&mut command, tally::cargo_line)
}

/// Runs `command`, passes its output on line by line and sums what `read` finds in the lines.
/// A command that fails without a failed test is a failure of its own.
fn count(command: &mut Command, read: fn(&str) -> Option<Tally>) -> Result<Tally, Failure> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| step::start_failure(command, &error))?;
    let mut sum = Tally::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            if let Some(tally) = read(&line) {
                sum += tally;
            }
        }
    }
    let status = child.wait().map_err(|error| step::start_failure(command, &error))?;
    if !status.success() && sum.failed == 0 {
        sum.failed = 1;
    }
    if sum == Tally::default() {
        return Err(Failure::new("no test ran; the output above says why"));
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_stage_brings_what_it_stands_on_and_nothing_else() {
        let wanted = |only: &str| -> Vec<&str> {
            STAGES.iter().filter(|stage| is_wanted(stage, only)).map(|stage| stage.name).collect()
        };
        assert_eq!(wanted("fmt"), ["fmt"]);
        assert_eq!(wanted("page"), ["packages", "build", "page"]);
        assert_eq!(wanted("smoke"), ["packages", "build", "engine", "smoke"]);
        assert_eq!(wanted("vllm"), ["packages", "build", "vllm"]);
    }

    #[test]
    fn stages_stand_on_earlier_ones() {
        for (index, stage) in STAGES.iter().enumerate() {
            for need in stage.needs {
                assert!(STAGES[..index].iter().any(|other| other.name == *need), "{need}");
            }
        }
    }
}
