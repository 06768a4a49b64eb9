//! `up`, `down` and `status`: one node on this machine, from nothing to an answer and back.
//!
//! The running node lives in the run folder: configurations, sockets, state, logs, and a note of what
//! was started. `up` starts from an empty state each time; what it started is found again by a mark
//! in the environment of each process ([`process`]), so `down` needs no luck.

mod config;
mod ports;
pub mod process;
mod question;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::cache::{self, Cache};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::recipe::{self, Recipe};
use crate::{build, llama, model, packages, step, vllm};

pub use ports::Ports;
pub use question::Question;

/// A process of ours answers on its port within this time, or `up` gives up.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at a process that is to start or to end.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The one process a node can do without: where the kernel lets it have no io_uring, the node goes on, and
/// nothing is kept for its engines.
const KVCACHED: &str = "cgn-kvcached";
/// The order to stop in, and how long each may take to finish what it has.
const STOP_ORDER: &[(&str, Duration)] = &[
    ("cgn-router", Duration::from_secs(10)),
    ("cgn-agent", Duration::from_secs(25)),
    (KVCACHED, Duration::from_secs(10)),
    ("cgn-control", Duration::from_secs(10)),
];

/// What `up` may be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Name of the recipe to bring up.
    pub recipe: String,
    /// Engines to start; the recipe's own number if absent.
    pub replicas: Option<u32>,
    /// Added to every port.
    pub port_offset: u16,
}

impl Options {
    /// The highest port, 18199, stays a port.
    pub const PORT_OFFSET_MAX: u16 = u16::MAX - 18199;

    /// One line that two equal sets of options share.
    fn line(&self) -> String {
        let replicas = self.replicas.map_or("default".to_owned(), |count| count.to_string());
        format!("recipe {} replicas {replicas} port-offset {}", self.recipe, self.port_offset)
    }
}

impl Default for Options {
    fn default() -> Self {
        Options { recipe: "smollm2-135m/llama-cpp/cpu".to_owned(), replicas: None, port_offset: 0 }
    }
}

/// Brings the node up and ends with the lines that use it.
pub fn up(cache: &Cache, options: &Options) -> Result<(), Failure> {
    let recipe = recipe::find(&cache.repository, &options.recipe)?;
    let ports = Ports::at(options.port_offset);
    cache::make(&cache.run)?;
    let _lock = Cache::lock(&cache.run.join("lock"))?;
    if is_up(cache) {
        let running = fs::read_to_string(note(cache)).unwrap_or_default();
        if running.trim() != options.line() {
            return Err(Failure::new(format!(
                "a node is up already with {}; run `cargo xtask down` first",
                running.trim()
            )));
        }
        println!("The node is already up.");
        print_lines(cache, &recipe, ports);
        return Ok(());
    }
    // What is left of a crash must not hold the ports.
    stop(cache)?;
    ports.check_free(options.port_offset)?;
    packages::ensure(cache, packages::NODE)?;
    build::binaries(cache)?;
    let engine = match recipe.engine.as_str() {
        "llama_cpp" => Some(("llama_cpp", llama::ensure(cache)?)),
        "vllm" => Some(("vllm", vllm::ensure(cache)?.program)),
        _ => None,
    };
    if recipe.file == model::FILE {
        model::ensure(cache)?;
    }
    let result = start(cache, options, &recipe, ports, engine.as_ref());
    if result.is_err() {
        stop(cache)?;
    }
    result
}

/// Stops the node and whatever else carries its mark.
pub fn down(cache: &Cache) -> Result<(), Failure> {
    if !cache.run.exists() {
        println!("Nothing is up.");
        return Ok(());
    }
    let _lock = Cache::lock(&cache.run.join("lock"))?;
    match stop(cache)? {
        0 => println!("Nothing is up."),
        count => println!("The node is down; {count} processes ended."),
    }
    Ok(())
}

/// Prints what runs.
pub fn status(cache: &Cache) -> Result<(), Failure> {
    let marked = process::marked(&cache.run);
    if marked.is_empty() {
        println!("Nothing is up; `cargo xtask up` brings a node up.");
        return Ok(());
    }
    println!("{}", fs::read_to_string(note(cache)).unwrap_or_default().trim());
    for one in &marked {
        println!("  {:>8}  {}", one.pid, one.command);
    }
    println!("  logs: {}", cache.run.join("logs").display());
    if !is_up(cache) {
        println!("The node is not whole; `cargo xtask down` ends what is left.");
    }
    Ok(())
}

/// The options of the node that runs, or ran last.
fn note(cache: &Cache) -> PathBuf {
    cache.run.join("up")
}

/// Whether `up` once came to its end and each process it started is still there.
fn is_up(cache: &Cache) -> bool {
    let marked = process::marked(&cache.run);
    let is_there = |name: &str| name == KVCACHED || marked.iter().any(|one| one.name == name);
    note(cache).is_file() && STOP_ORDER.iter().all(|(name, _)| is_there(name))
}

fn start(
    cache: &Cache,
    options: &Options,
    recipe: &Recipe,
    ports: Ports,
    engine: Option<&(&str, PathBuf)>,
) -> Result<(), Failure> {
    for stale in ["control-state", "agent-state", "logs"] {
        cache::remove(&cache.run.join(stale))?;
    }
    cache::make(&cache.run.join("logs"))?;
    config::write(cache, ports, engine)?;
    ports.check_free(options.port_offset)?;
    let mut progress = Progress::start("start control, KV daemon, agent and router");
    let mut without = None;
    for (name, port) in [
        ("cgn-control", ports.control),
        (KVCACHED, ports.kvcached),
        ("cgn-agent", ports.agent),
        ("cgn-router", ports.http),
    ] {
        progress.say(name);
        let child = process::start(cache, name)?;
        match wait_for(cache, name, child, port) {
            Err(failure) if name == KVCACHED => without = Some(failure),
            waited => waited?,
        }
    }
    progress.done("");
    if let Some(failure) = without {
        eprintln!("! the node goes on without its KV daemon: {failure}");
    }
    deploy(cache, options, ports)?;
    let answer = Question::of(recipe, ports).ask(true)?;
    let note = note(cache);
    fs::write(&note, options.line()).map_err(|error| Failure::at(&note, "write", &error))?;
    println!("\nThe node is up. Asked for the capital of France, it says: {answer}");
    print_lines(cache, recipe, ports);
    Ok(())
}

fn wait_for(cache: &Cache, name: &str, mut child: Child, port: u16) -> Result<(), Failure> {
    let started = Instant::now();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            let log = process::log(cache, name);
            return Err(Failure::new(format!(
                "{name} ended with {status}:{}\n  the whole log: {}",
                process::tail(&log),
                log.display()
            )));
        }
        if ports::is_open(port) {
            return Ok(());
        }
        if started.elapsed() > START_TIMEOUT {
            return Err(Failure::new(format!(
                "{name} does not answer on port {port} after {} s; see {}",
                START_TIMEOUT.as_secs(),
                process::log(cache, name).display()
            )));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Hands the recipe to control; `cgnctl` shows its own progress until the engines are ready.
fn deploy(cache: &Cache, options: &Options, ports: Ports) -> Result<(), Failure> {
    let mut command = Command::new(cache.binary("cgnctl"));
    command
        .args(["--control", &format!("http://127.0.0.1:{}", ports.control), "--recipes"])
        .arg(cache.repository.join("recipes"))
        .args(["recipe", "up", &options.recipe]);
    if let Some(replicas) = options.replicas {
        command.args(["--replicas", &replicas.to_string()]);
    }
    let status = command.status().map_err(|error| step::start_failure(&command, &error))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the recipe {} did not come up (see above); logs: {}",
        options.recipe,
        cache.run.join("logs").display()
    )))
}

/// Ends everything with the run folder's mark, in order, and answers how many processes that were.
fn stop(cache: &Cache) -> Result<usize, Failure> {
    let before = process::marked(&cache.run).len();
    for (name, limit) in STOP_ORDER {
        let is_it = |one: &process::Marked| one.name == *name;
        process::signal(&cache.run, "TERM", &is_it)?;
        let started = Instant::now();
        while process::marked(&cache.run).iter().any(is_it) && started.elapsed() < *limit {
            std::thread::sleep(POLL_INTERVAL);
        }
        process::signal(&cache.run, "KILL", &is_it)?;
    }
    let started = Instant::now();
    while !process::marked(&cache.run).is_empty() {
        if started.elapsed() > START_TIMEOUT {
            return Err(Failure::new(format!(
                "some processes do not end even on SIGKILL: {:?}; they wait in the kernel, see dmesg",
                process::marked(&cache.run)
            )));
        }
        process::signal(&cache.run, "KILL", &|_| true)?;
        std::thread::sleep(POLL_INTERVAL);
    }
    cache::remove(&note(cache))?;
    cache::remove(&config::socket(cache))?;
    cache::remove(&config::kv_socket(cache))?;
    Ok(before)
}

fn print_lines(cache: &Cache, recipe: &Recipe, ports: Ports) {
    let question = Question::of(recipe, ports);
    let folder = if cache.run == cache.root.join("run") {
        String::new()
    } else {
        format!("CGN_RUN_DIR={} ", cache.run.display())
    };
    println!(
        "\nAsk it:\n\n  {}\n\nStreamed:\n\n  {}\n\n\
         OpenAI base URL  http://127.0.0.1:{}/v1\n\
         metrics          router http://127.0.0.1:{}/metrics   agent http://127.0.0.1:{}/metrics   KV daemon http://127.0.0.1:{}/metrics\n\
         control port     {} --control http://127.0.0.1:{} model ls\n\
         logs             {}\n\
         stop             {folder}cargo xtask down\n",
        question.curl(false),
        question.curl(true),
        ports.http,
        ports.admin,
        ports.agent,
        ports.kvcached,
        cache.binary("cgnctl").display(),
        ports.control,
        cache.run.join("logs").display(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_options_share_a_line_and_others_do_not() {
        let default = Options::default();
        assert_eq!(default.line(), Options::default().line());
        let other = Options { replicas: Some(1), ..Options::default() };
        assert_ne!(default.line(), other.line());
    }
}
