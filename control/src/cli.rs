//! `cgnctl`: what an operator types. Each command is one file below `cli/`.
//!
//! With `--output json` stdout carries one object and nothing else; progress and errors go to
//! stderr. The exit code says what kind of end it was (see [`Failure`]).

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

mod bench;
mod connect;
mod explain;
mod failure;
mod kv;
mod models;
mod nodes;
mod output;
mod pki;
mod progress;
mod recipe;
mod recipe_down;
mod recipe_up;
mod replay;
mod wait;
mod weights;

pub use failure::Failure;

/// The command line of Cognitora.
#[derive(Debug, Parser)]
#[command(name = "cgnctl", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of all commands.
#[derive(Debug, Args)]
struct Global {
    /// Address of cgn-control [env: CGN_CONTROL] [default: http://127.0.0.1:9090].
    #[arg(long, global = true, value_name = "URL")]
    control: Option<String>,
    /// Folder of recipes [env: CGN_RECIPES_DIR] [default: ./recipes, then
    /// /usr/share/cognitora/recipes].
    #[arg(long, global = true, value_name = "DIR")]
    recipes: Option<PathBuf>,
    /// For people or for programs.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// How results are written to stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Aligned columns.
    Table,
    /// One object with stable snake_case keys.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What to serve, and starting and stopping it.
    #[command(subcommand)]
    Recipe(Recipe),
    /// The machines.
    #[command(subcommand)]
    Cluster(Cluster),
    /// What is served.
    #[command(subcommand)]
    Model(Model),
    /// Where requests go.
    #[command(subcommand)]
    Route(Route),
    /// Routing policies in simulation; needs neither control nor engines.
    #[command(subcommand)]
    Bench(Bench),
    /// The KV daemon of this machine; needs no control.
    Kv(kv::Kv),
    /// The cluster's certificates; needs no control.
    #[command(subcommand)]
    Pki(Pki),
}

#[derive(Debug, Subcommand)]
enum Pki {
    /// Makes the cluster's authority.
    Bootstrap(pki::Bootstrap),
    /// Makes a certificate for a node, a router or an operator.
    Issue(pki::Issue),
    /// Shows what a certificate says.
    Show {
        /// A certificate in PEM form.
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Recipe {
    /// Lists the recipes.
    Ls,
    /// Shows one recipe.
    Show {
        /// As `recipe ls` lists it.
        name: String,
    },
    /// Starts a recipe's engines and waits until they are ready.
    Up(recipe_up::Up),
    /// Stops a recipe's engines; running requests may finish.
    Down(recipe_down::Down),
}

#[derive(Debug, Subcommand)]
enum Cluster {
    /// Lists the nodes and their engines.
    Nodes,
}

#[derive(Debug, Subcommand)]
enum Model {
    /// Lists the models.
    Ls,
}

#[derive(Debug, Subcommand)]
enum Route {
    /// Shows which worker a request would go to, and why.
    Explain(explain::Explain),
    /// Makes the decisions of a router's decision log again and compares. Needs no control.
    Replay(replay::Replay),
    /// Shows, sets or resets the weights of all routers.
    Weights(weights::Weights),
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Replays a trace under several policies.
    Replay(bench::Replay),
    /// Searches the cheapest cluster that meets a time to the first token.
    Plan(bench::Planned),
    /// Writes a made-up trace to stdout.
    Trace(bench::Made),
}

impl Cli {
    /// Does what was typed.
    pub async fn run(self) -> ExitCode {
        let global = &self.global;
        let done = match self.command {
            Command::Recipe(Recipe::Ls) => recipe::ls(global),
            Command::Recipe(Recipe::Show { name }) => recipe::show(global, &name),
            Command::Recipe(Recipe::Up(up)) => recipe_up::run(global, &up).await,
            Command::Recipe(Recipe::Down(down)) => recipe_down::run(global, &down).await,
            Command::Cluster(Cluster::Nodes) => nodes::ls(global).await,
            Command::Model(Model::Ls) => models::ls(global).await,
            Command::Route(Route::Explain(explain)) => explain::run(global, &explain).await,
            Command::Route(Route::Replay(replay)) => replay::run(global, &replay),
            Command::Route(Route::Weights(weights)) => weights::run(global, &weights).await,
            Command::Bench(Bench::Replay(replay)) => bench::replay(global, &replay),
            Command::Bench(Bench::Plan(planned)) => bench::plan(global, &planned),
            Command::Bench(Bench::Trace(made)) => bench::make(&made),
            Command::Kv(asked) => kv::run(global, &asked),
            Command::Pki(Pki::Bootstrap(asked)) => pki::bootstrap(global, &asked),
            Command::Pki(Pki::Issue(asked)) => pki::issue(global, &asked),
            Command::Pki(Pki::Show { file }) => pki::show(global, &file),
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                eprintln!("error: {failure}");
                ExitCode::from(failure.exit_code())
            }
        }
    }
}
