//! `cgnctl` as a script sees it: one JSON object on stdout, errors on stderr, exit codes.

use std::path::{Path, PathBuf};

use control::api::ListDeploymentsRequest;
use serde_json::{Value, json};

use crate::agent::{Agent, BROKEN, WELL};
use crate::house::House;

const SIM: &str = "sim/sim/cpu";

async fn json(house: &House, args: &[&str]) -> Value {
    let mut all = vec!["--output", "json"];
    all.extend(args);
    house.cgnctl(&all).await.json()
}

async fn deployed(house: &House) -> usize {
    let list = house.client().await.list_deployments(ListDeploymentsRequest {}).await;
    list.unwrap().into_inner().deployments.len()
}

/// A tree with one recipe that is not one.
fn broken_tree(house: &House, text: &str) -> PathBuf {
    let tree = house.dir.path().join("recipes");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    std::fs::write(tree.join("a/b/c.toml"), text).unwrap();
    tree
}

#[tokio::test]
async fn recipes_are_listed_and_shown_without_control() {
    let house = House::build("");
    let listed = json(&house, &["recipe", "ls"]).await;
    let names = listed["recipes"].as_array().unwrap().iter().map(|one| &one["name"]);
    assert!(names.clone().any(|name| name == SIM), "{listed}");
    let shown = json(&house, &["recipe", "show", "smollm2-135m/llama-cpp/cpu"]).await;
    assert_eq!(shown["engine"]["kind"], "llama_cpp");
    assert_eq!(shown["model"]["file"], "SmolLM2-135M-Instruct.Q4_1.gguf");
    let table = house.cgnctl(&["recipe", "ls"]).await;
    assert!(table.stdout.starts_with("RECIPE "), "{table:?}");
}

#[tokio::test]
async fn control_unreachable_is_exit_code_3_and_says_how_to_start_it() {
    let house = House::build("");
    for args in [
        &["cluster", "nodes"][..],
        &["model", "ls"],
        &["recipe", "up", SIM],
        &["recipe", "down", SIM],
        &["route", "explain", "--model", "sim", "--prompt", "hi"],
        &["route", "weights"],
    ] {
        let ran = house.cgnctl(args).await;
        let said = ran.error(3);
        let start = format!("error: cannot reach cgn-control at {}: start it with", house.address);
        assert!(said.starts_with(&start), "{said}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_control_is_exit_code_3() {
    let house = House::build("");
    let address = house.address.strip_prefix("http://").unwrap();
    let other = tokio::net::TcpListener::bind(address).await.unwrap();
    let hang_up = tokio::spawn(async move { while other.accept().await.is_ok() {} });
    house.cgnctl(&["model", "ls"]).await.error(3);
    hang_up.abort();
}

#[tokio::test]
async fn an_unknown_recipe_is_exit_code_4_with_names_like_it() {
    let house = House::start("").await;
    for command in ["up", "show", "down"] {
        let ran = house.cgnctl(&["recipe", command, "sim/sim/cpuu"]).await;
        let said = ran.error(4);
        // Others may be like it too; the nearest comes first.
        assert!(said.contains("did you mean sim/sim/cpu"), "{said}");
    }
}

#[tokio::test]
async fn a_faulty_recipe_or_option_is_exit_code_2_and_names_the_place() {
    let house = House::start("").await;
    let good = "description = \"d\"\n[model]\nname = \"m\"\n[engine]\nkind = \"sim\"\n";
    let tree = broken_tree(&house, &format!("{good}slotz = 3\n"));
    let ran = house.cgnctl_in(&tree, &["recipe", "up", "a/b/c"]).await;
    let said = ran.error(2);
    assert!(said.contains("a/b/c.toml:6: unknown key `slotz`"), "{said}");
    assert!(said.ends_with("the nearest known key is `slots`"), "{said}");
    let none = house.cgnctl_in(Path::new("/nonexistent"), &["recipe", "ls"]).await;
    assert!(none.error(2).contains("--recipes"));
    house.cgnctl(&["recipe", "up", SIM, "--replicas", "0"]).await.error(2);
    house.cgnctl(&["--control", "ftp://x", "model", "ls"]).await.error(2);
    assert_eq!(house.cgnctl(&["recipe", "upp", SIM]).await.code, 2);
    assert_eq!(deployed(&house).await, 0);
}

#[tokio::test]
async fn up_waits_for_every_replica_and_again_is_already_up_and_down_waits_for_none() {
    let house = House::start("").await;
    let _agent = Agent::dial(&house, "n1", WELL).await;
    let up = json(&house, &["recipe", "up", SIM]).await;
    assert_eq!(
        (&up["state"], &up["ready"], &up["replicas"]),
        (&json!("ready"), &json!(3), &json!(3))
    );
    assert_eq!(up["already_up"], false);
    assert_eq!(up["workers"][2]["worker"], "n1/sim/sim/cpu/2");
    let again = json(&house, &["recipe", "up", SIM]).await;
    assert_eq!(again["already_up"], true);
    let said = house.cgnctl(&["recipe", "up", SIM]).await;
    assert!(said.stdout.starts_with("sim/sim/cpu is already up: 3 of 3 ready"), "{said:?}");

    let nodes = json(&house, &["cluster", "nodes"]).await;
    assert_eq!(nodes["nodes"][0]["id"], "n1");
    assert_eq!(nodes["nodes"][0]["attached"], true);
    assert_eq!(nodes["nodes"][0]["engines_ready"], 3);
    assert_eq!(nodes["nodes"][0]["engines"][0]["state"], "ready");
    let models = json(&house, &["model", "ls"]).await;
    assert_eq!(models["models"][0]["name"], "sim");
    assert_eq!(models["models"][0]["workers_ready"], 3);

    let fewer = json(&house, &["recipe", "up", SIM, "--replicas", "1"]).await;
    assert_eq!((&fewer["ready"], &fewer["already_up"]), (&json!(1), &json!(false)));
    let down = json(&house, &["recipe", "down", SIM, "--wait"]).await;
    assert_eq!((&down["state"], &down["engines_left"]), (&json!("down"), &json!(0)));
    let nothing = json(&house, &["recipe", "down", SIM]).await;
    assert_eq!(nothing["state"], "was_not_up");
    assert_eq!(deployed(&house).await, 0);
}

#[tokio::test]
async fn up_without_waiting_only_asks() {
    let house = House::start("").await;
    let up = json(&house, &["recipe", "up", SIM, "--no-wait"]).await;
    assert_eq!((&up["state"], &up["ready"]), (&json!("asked"), &json!(0)));
    assert_eq!(deployed(&house).await, 1);
}

#[tokio::test]
async fn an_engine_that_cannot_run_fails_up_in_its_own_words_and_leaves_nothing() {
    let house = House::start("").await;
    let _agent = Agent::dial(&house, "n1", BROKEN).await;
    let ran = house.cgnctl(&["--output", "json", "recipe", "up", SIM]).await;
    let said = ran.error(1);
    assert!(said.contains("llama-server is not installed; set [engines] llama_cpp"), "{said}");
    assert!(said.ends_with("(nothing of it is left running)"), "{said}");
    assert_eq!(deployed(&house).await, 0);
    let nodes = json(&house, &["cluster", "nodes"]).await;
    assert_eq!(nodes["nodes"][0]["engines"], json!([]));
}

#[tokio::test]
async fn up_with_no_node_says_to_start_an_agent_and_leaves_nothing() {
    let house = House::start("").await;
    let ran = house.cgnctl(&["recipe", "up", SIM]).await;
    assert!(ran.error(1).contains("start `cgn-agent"), "{ran:?}");
    assert_eq!(deployed(&house).await, 0);
}

#[tokio::test]
async fn up_gives_up_at_its_time_limit_and_leaves_nothing() {
    let house = House::start("").await;
    let loading = |_: &_| (control::api::engine::State::Starting, "loading the model");
    let _agent = Agent::dial(&house, "n1", loading).await;
    let ran = house.cgnctl(&["recipe", "up", SIM, "--timeout-s", "1"]).await;
    let said = ran.error(1);
    assert!(said.contains("0 of 3 ready after 1 s"), "{said}");
    assert!(said.contains("loading the model"), "{said}");
    assert_eq!(deployed(&house).await, 0);
}

#[tokio::test]
async fn a_change_that_fails_brings_back_what_was_serving() {
    let house = House::start("").await;
    let first_three = |one: &control::api::DesiredEngine| match one.replica {
        0..3 => WELL(one),
        _ => BROKEN(one),
    };
    let _agent = Agent::dial(&house, "n1", first_three).await;
    json(&house, &["recipe", "up", SIM]).await;
    let ran = house.cgnctl(&["recipe", "up", SIM, "--replicas", "4"]).await;
    assert!(ran.error(1).ends_with("(the deployment that was serving before is back)"), "{ran:?}");
    let again = json(&house, &["recipe", "up", SIM]).await;
    assert_eq!(again["replicas"], 3);
}
