//! The recipe of the simulated engines that these tests bring up, and what they are asked.

use serde_json::{Value, json};

use crate::house::{Engine, House};

pub const NAME: &str = "sim/sim/test";
pub const MODEL: &str = "sim";

/// So fast that a test waits for nothing.
pub const FAST: &str = "\"--speedup-ratio\", \"1000\"";
/// As slow as the machine the time model was fitted to: some 6 ms a token.
pub const REAL: &str = "\"--speedup-ratio\", \"1\"";

/// The file of a recipe of that many engines.
pub fn text(replicas: u32, slots: u32, extra_args: &str) -> String {
    format!(
        "description = \"simulated engines under test\"\n[model]\nname = \"{MODEL}\"\n\
         [engine]\nkind = \"sim\"\nreplicas = {replicas}\nslots = {slots}\n\
         context_length_tokens = 8192\nstartup_timeout_s = 60\ndrain_timeout_s = 120\n\
         extra_args = [{extra_args}]\n"
    )
}

/// A node with that recipe up and its router ready; the engines as `recipe up` reports them.
pub fn up(replicas: u32, slots: u32, extra_args: &str) -> (House, Vec<Engine>) {
    up_with(replicas, slots, extra_args, "")
}

/// The same with further sections of the router's file.
pub fn up_with(replicas: u32, slots: u32, extra_args: &str, router: &str) -> (House, Vec<Engine>) {
    let house = House::start_with("", router);
    house.recipe(NAME, &text(replicas, slots, extra_args));
    let up = house.ctl(&["recipe", "up", NAME]);
    assert_eq!((&up["state"], &up["ready"]), (&json!("ready"), &json!(replicas)), "{up}");
    let engines = up["workers"].as_array().unwrap().iter().map(Engine::of).collect();
    house.ready();
    (house, engines)
}

/// A chat request of one user message.
pub fn ask(content: &str, tokens: u32) -> Value {
    json!({
        "model": MODEL, "max_tokens": tokens, "ignore_eos": true,
        "messages": [{ "role": "user", "content": content }],
    })
}

/// Text of `words` words that shares no beginning with that of another number.
pub fn words(number: usize, words: usize) -> String {
    (0..words).map(|word| format!("{number}-{word} ")).collect()
}
