//! The two commands as a person uses them: `up`, the printed `curl` lines, `down`; and `down` after
//! the agent was killed.
//!
//! It runs beside whatever node the user has up: with ports of its own and a run folder of its own.

use std::net::{Ipv4Addr, TcpListener};

use super::Tally;
use crate::cache::Cache;
use crate::failure::Failure;
use crate::node::{self, Options, Ports, Question, process};
use crate::recipe;

/// Port offsets that are tried, in order.
const PORT_OFFSETS: &[u16] = &[20_000, 21_000, 22_000, 23_000, 24_000];
const SIM_RECIPE: &str = "sim/sim/cpu";

/// Runs all of it; leaves nothing behind either way.
pub fn run(cache: &Cache) -> Result<Tally, Failure> {
    let cache = cache.with_run(cache.root.join("run-smoke"));
    node::down(&cache)?;
    let mut passed = Tally::default();
    let result = checks(&cache, &mut passed);
    node::down(&cache)?;
    result.map(|()| passed)
}

fn checks(cache: &Cache, passed: &mut Tally) -> Result<(), Failure> {
    let offset = PORT_OFFSETS.iter().find(|&&offset| Ports::at(offset).check_free(offset).is_ok());
    let port_offset =
        *offset.ok_or_else(|| Failure::new("no free ports for a node; end what holds them"))?;
    let options = Options { port_offset, ..Options::default() };
    let mut say = |name: &str| {
        println!("smoke: {name} ... ok");
        *passed += Tally::PASSED;
    };

    refuses_a_taken_port(cache, &options)?;
    say("a taken port is named and nothing is left running");
    node::up(cache, &options)?;
    asks(cache, &options)?;
    say("the printed curl lines answer, whole and streamed");
    second_up_changes_nothing(cache, &options)?;
    say("a second up changes nothing, and another recipe is refused");
    survives_a_killed_agent(cache)?;
    say("down leaves nothing after the agent was killed");
    let sim = Options { recipe: SIM_RECIPE.to_owned(), replicas: Some(2), ..options };
    node::up(cache, &sim)?;
    node::down(cache)?;
    expect_nothing(cache)?;
    say("two simulated engines come up and go down");
    Ok(())
}

fn refuses_a_taken_port(cache: &Cache, options: &Options) -> Result<(), Failure> {
    let port = Ports::at(options.port_offset).http;
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .map_err(|error| Failure::new(format!("cannot hold port {port}: {error}")))?;
    let said = match node::up(cache, options) {
        Ok(()) => return Err(Failure::new(format!("came up although port {port} was taken"))),
        Err(failure) => failure.to_string(),
    };
    drop(holder);
    if !said.contains(&format!("port {port}")) || said.contains('\n') {
        return Err(Failure::new(format!("a taken port was reported as: {said}")));
    }
    expect_nothing(cache)
}

fn asks(cache: &Cache, options: &Options) -> Result<(), Failure> {
    let recipe = recipe::find(&cache.repository, &options.recipe)?;
    let question = Question::of(&recipe, Ports::at(options.port_offset));
    for is_streamed in [false, true] {
        let answer = question.ask(is_streamed)?;
        if !answer.contains("Paris") {
            return Err(Failure::new(format!("the capital of France is said to be: {answer}")));
        }
    }
    Ok(())
}

fn second_up_changes_nothing(cache: &Cache, options: &Options) -> Result<(), Failure> {
    let before = process::marked(&cache.run);
    node::up(cache, options)?;
    let other = Options { recipe: SIM_RECIPE.to_owned(), ..options.clone() };
    if node::up(cache, &other).is_ok() {
        return Err(Failure::new("a second recipe came up over a running node"));
    }
    let after = process::marked(&cache.run);
    if before == after {
        return Ok(());
    }
    Err(Failure::new(format!("a second up changed {before:?} to {after:?}")))
}

fn survives_a_killed_agent(cache: &Cache) -> Result<(), Failure> {
    process::signal(&cache.run, "KILL", &|one| one.name == "cgn-agent")?;
    node::down(cache)?;
    expect_nothing(cache)
}

fn expect_nothing(cache: &Cache) -> Result<(), Failure> {
    let left = process::marked(&cache.run);
    if left.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("still running: {left:?}")))
}
