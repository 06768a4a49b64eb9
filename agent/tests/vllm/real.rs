//! Where the engine and the model are, and a node that serves them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client;
use crate::house::{Engine, House};

pub const MODEL: &str = "tiny-llama";
const RECIPE: &str = "tiny-llama/vllm/test";
/// Tokens of a block, and blocks of the whole cache: so few that the test fills it.
pub const BLOCK_TOKENS: usize = 32;
pub const CACHE_BLOCKS: usize = 80;
pub const CONTEXT_TOKENS: usize = 2048;
/// Guards against a hang; a start takes two minutes on two cores that are idle.
const START_PATIENCE: Duration = Duration::from_secs(900);

/// A node with one vLLM.
pub struct Real {
    pub house: House,
}

impl Real {
    /// Brings it up. `None` says that the test is skipped, and why.
    pub fn up() -> Option<Real> {
        let (program, model) = parts()?;
        let house = House::start(&format!("vllm = {program:?}"));
        let text = format!(
            "description = \"the real engine under test\"\n\
             [model]\nname = \"{MODEL}\"\nfile = {model:?}\n\
             [engine]\nkind = \"vllm\"\nslots = 4\ncontext_length_tokens = {CONTEXT_TOKENS}\n\
             threads = 1\nstartup_timeout_s = {}\ndrain_timeout_s = 60\n\
             extra_args = [\"--dtype\", \"float32\", \"--enforce-eager\", \
             \"--block-size\", \"{BLOCK_TOKENS}\", \"--num-gpu-blocks-override\", \"{CACHE_BLOCKS}\"]\n\
             env = [\"VLLM_CPU_KVCACHE_SPACE=1\", \"VLLM_CPU_OMP_THREADS_BIND=nobind\"]\n",
            START_PATIENCE.as_secs(),
        );
        house.recipe(RECIPE, &text);
        let begun = Instant::now();
        let up = house.ctl(&["recipe", "up", RECIPE]);
        assert_eq!(up["workers"].as_array().unwrap().len(), 1, "{up}");
        println!("vLLM is up after {} s", begun.elapsed().as_secs());
        house.ready();
        Some(Real { house })
    }

    /// The one engine.
    pub fn engine(&self) -> Engine {
        self.house.engines().remove(0)
    }

    /// Where the engine itself listens.
    pub fn engine_address(&self) -> SocketAddr {
        self.engine().url.strip_prefix("http://").unwrap().parse().unwrap()
    }

    /// Waits for a process of the engine later than `epoch`, that the router knows to be ready.
    pub fn back_after(&self, epoch: u64) {
        let begun = Instant::now();
        let is_back = || {
            let engine = self.engine();
            assert_ne!(engine.state, "failed", "{engine:?}");
            engine.epoch > epoch && engine.state == "ready"
        };
        while !is_back() {
            assert!(begun.elapsed() < START_PATIENCE, "the engine did not come back");
            std::thread::sleep(Duration::from_millis(500));
        }
        println!("vLLM is back after {} s", begun.elapsed().as_secs());
        self.house.ready();
    }

    /// The token ids of a chat, as the engine sees it.
    pub fn tokens(&self, messages: &Value) -> Vec<u64> {
        let question = json!({ "model": MODEL, "messages": messages });
        let answer = client::post(self.engine_address(), "/tokenize", &question);
        assert_eq!(answer.status, 200, "{answer:?}");
        let tokens = answer.json()["tokens"].as_array().unwrap().clone();
        tokens.iter().map(|token| token.as_u64().unwrap()).collect()
    }
}

fn parts() -> Option<(PathBuf, PathBuf)> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    match (variable("CGN_VLLM"), variable("CGN_VLLM_MODEL")) {
        (Some(program), Some(model)) if program.is_file() && model.is_dir() => {
            Some((program, model))
        }
        _ => {
            println!("skipped: no vLLM (CGN_VLLM, CGN_VLLM_MODEL): cargo xtask test --only vllm");
            None
        }
    }
}

/// The chat that is asked: short answers of a stated length, always the same ones.
pub fn ask(messages: &Value, more: &Value) -> Value {
    let mut body = json!({
        "model": MODEL, "messages": messages, "max_tokens": 8,
        "temperature": 0, "ignore_eos": true,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// `usage`: prompt tokens, and those of them that came from the cache.
pub fn usage(answer: &Value) -> (usize, usize) {
    let usage = &answer["usage"];
    let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let cached = &usage["prompt_tokens_details"]["cached_tokens"];
    (number(&usage["prompt_tokens"]), number(cached))
}
