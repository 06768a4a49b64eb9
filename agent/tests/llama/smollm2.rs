//! Where the engine and the model are, and a node that serves them.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::house::{Engine, House};

pub const MODEL: &str = "smollm2-135m";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const RECIPE: &str = "smollm2-135m/llama-cpp/test";
/// The engine's folder in the cache is named after the package it was built from.
const ENGINE_PREFIX: &str = "llama.cpp-0.3.36";

/// The engine and the folder of the model. One test at a time: two engines keep two cores busy.
pub struct Parts {
    server: PathBuf,
    models: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

/// `None` says that the test is skipped, and why.
pub fn find() -> Option<Parts> {
    static TURN: Mutex<()> = Mutex::new(());
    let models = variable("CGN_MODEL_DIR").or_else(|| Some(cache()?.join("models")));
    let models = models.filter(|folder| folder.join(FILE).is_file());
    let (Some(server), Some(models)) = (server(), models) else {
        println!("skipped: llama-server is not built: cargo xtask up");
        return None;
    };
    // A test that failed before has left nothing half done.
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Some(Parts { server, models, _turn: turn })
}

fn server() -> Option<PathBuf> {
    let built = || {
        let engines = std::fs::read_dir(cache()?.join("engines")).ok()?.flatten();
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(ENGINE_PREFIX))
        };
        let mut folders = engines.map(|entry| entry.path()).filter(is_ours);
        folders.find_map(|folder| executable(&folder))
    };
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find_map(|folder| executable(&folder))
    };
    match variable("CGN_LLAMA_SERVER") {
        Some(server) => Some(server).filter(|server| server.is_file()),
        None => built().or_else(on_path),
    }
}

fn executable(folder: &Path) -> Option<PathBuf> {
    Some(folder.join("llama-server")).filter(|file| file.is_file())
}

fn cache() -> Option<PathBuf> {
    variable("CGN_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("cognitora")))
        .or_else(|| Some(variable("HOME")?.join(".cache/cognitora")))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// How much an engine has.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub replicas: u32,
    pub slots: u32,
    /// The prompt cache in host memory, beside the slots.
    pub cache_ram_mib: u32,
}

impl Parts {
    /// A node that knows the engine, nothing up yet.
    pub fn house(&self) -> House {
        self.furnish(House::start(&self.engines()))
    }

    /// The same with a KV daemon for what the engines compute.
    pub fn keeping_house(&self) -> House {
        self.furnish(House::start_keeping(&self.engines()))
    }

    fn engines(&self) -> String {
        format!("llama_cpp = {:?}", self.server)
    }

    fn furnish(&self, house: House) -> House {
        std::os::unix::fs::symlink(&self.models, house.dir.path().join("models")).unwrap();
        house
    }
}

/// Tokens of context in each slot, where nothing else is asked for.
const CONTEXT_TOKENS: u32 = 1_024;

/// Brings up fresh engines of that size; their caches are empty.
pub fn up(house: &House, size: Size) -> Vec<Engine> {
    up_with(house, size, CONTEXT_TOKENS)
}

/// The same with so many tokens of context in each slot.
pub fn up_with(house: &House, size: Size, context_tokens: u32) -> Vec<Engine> {
    let Size { replicas, slots, cache_ram_mib } = size;
    let text = format!(
        "description = \"the real engine under test\"\n\
         [model]\nname = \"{MODEL}\"\nfile = \"{FILE}\"\n\
         [engine]\nkind = \"llama_cpp\"\nreplicas = {replicas}\nslots = {slots}\n\
         context_length_tokens = {context_tokens}\nthreads = 1\ndrain_timeout_s = 60\n\
         extra_args = [\"--cache-ram\", \"{cache_ram_mib}\"]\n"
    );
    house.recipe(RECIPE, &text);
    let up = house.ctl(&["recipe", "up", RECIPE]);
    let engines: Vec<Engine> = up["workers"].as_array().unwrap().iter().map(Engine::of).collect();
    assert_eq!(engines.len(), replicas as usize, "{up}");
    house.ready();
    engines
}
