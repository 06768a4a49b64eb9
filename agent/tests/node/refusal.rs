//! Recipes that cannot come up: one clear line, exit code 1, nothing left.

use crate::house::House;
use crate::recipe::{NAME, ask, text};

fn llama(file: &str, bytes: u64) -> String {
    format!(
        "description = \"d\"\n[model]\nname = \"m\"\nfile = \"{file}\"\nfile_bytes = {bytes}\n\
         [engine]\nkind = \"llama_cpp\"\n"
    )
}

/// Nothing runs, nothing is desired, and the router knows of nothing.
fn is_clean(house: &House, model: &str) {
    assert_eq!(house.engines(), []);
    assert_eq!(house.ctl(&["model", "ls"])["models"], serde_json::json!([]));
    assert_eq!(processes_of(house), Vec::<String>::new());
    let mut body = ask("hello", 2);
    body["model"] = model.into();
    let refused = house.chat(&body);
    assert_eq!(refused.status, 404, "{refused:?}");
    assert_eq!(refused.json()["error"]["code"], "model_not_found");
}

/// Command lines that name the house's folder, but for its own three processes.
fn processes_of(house: &House) -> Vec<String> {
    let folder = house.dir.path().display().to_string();
    let lines = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(&folder) && !line.contains(" --config ")).collect()
}

#[test]
fn a_missing_binary_or_model_fails_up_in_one_line_and_leaves_nothing() {
    let house = House::start("llama_cpp = \"no-such-llama-server\"");
    std::fs::create_dir(house.dir.path().join("models")).unwrap();
    house.recipe("m/llama/a", &llama("m.gguf", 0));
    let ran = house.cgnctl(&["recipe", "up", "m/llama/a"]);
    let said = ran.error();
    assert!(said.contains("no-such-llama-server not found: set [engines] llama_cpp"), "{said}");
    assert!(said.ends_with("(nothing of it is left running)"), "{said}");
    is_clean(&house, "m");
    drop(house);

    let house = House::start("llama_cpp = \"sleep\"");
    std::fs::create_dir(house.dir.path().join("models")).unwrap();
    house.recipe("m/llama/a", &llama("m.gguf", 64));
    let ran = house.cgnctl(&["recipe", "up", "m/llama/a"]);
    assert!(ran.error().contains("m.gguf: No such file"), "{ran:?}");
    is_clean(&house, "m");
    std::fs::write(house.dir.path().join("models/m.gguf"), "GGUF, but cut off").unwrap();
    let ran = house.cgnctl(&["recipe", "up", "m/llama/a"]);
    assert!(ran.error().contains("is truncated (17 of 64 bytes): fetch it again"), "{ran:?}");
    is_clean(&house, "m");
}

#[test]
fn an_engine_never_ready_or_ending_at_once_fails_up_and_leaves_nothing() {
    let house = House::start("");
    // A word by which its processes are found.
    let mark = house.dir.path().join("mark").display().to_string();
    let args = format!("\"--startup-ms\", \"600000\", \"--kv-events-topic\", \"{mark}\"");
    let slow = text(2, 1, &args).replace("startup_timeout_s = 60", "startup_timeout_s = 1");
    house.recipe(NAME, &slow);
    let ran = house.cgnctl(&["recipe", "up", NAME]);
    let said = ran.error();
    assert!(said.contains("not ready within 1 s"), "{said}");
    assert!(said.ends_with("(nothing of it is left running)"), "{said}");
    is_clean(&house, "sim");

    // It starts, and ends as soon as it is asked to listen where it cannot.
    let args = format!("\"--kv-events-endpoint\", \"ipc://{mark}/no/such/folder\"");
    house.recipe(NAME, &text(1, 1, &args));
    let ran = house.cgnctl(&["recipe", "up", NAME]);
    let said = ran.error();
    assert!(said.contains("exited with status"), "{said}");
    is_clean(&house, "sim");
}

#[test]
fn a_truncated_recipe_and_an_unknown_key_are_refused_before_anything_starts() {
    let house = House::start("");
    house.recipe(NAME, "description = \"d\"\n[model]\nname = \"m\"\n[engine]\n");
    let ran = house.cgnctl(&["recipe", "up", NAME]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    house.recipe(NAME, &text(1, 1, "").replace("slots", "slotz"));
    let ran = house.cgnctl(&["recipe", "up", NAME]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(
        ran.stderr.contains("unknown key `slotz`; the nearest known key is `slots`"),
        "{ran:?}"
    );
    is_clean(&house, "m");
}
