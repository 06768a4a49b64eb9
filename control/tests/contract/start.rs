//! Starting and stopping `cgn-control`: what it refuses, and what is left behind.

use std::net::TcpListener;
use std::time::Duration;

use control::api::ListNodesRequest;
use dataplane::wire::WorkerState;

use crate::agent::{Agent, WELL};
use crate::house::{House, control_ends};
use crate::plane::Plane;

#[tokio::test]
async fn an_unknown_key_names_file_line_and_the_nearest_key() {
    let house = House::build("node_timout_s = 3");
    let ran = control_ends(&house.config()).await;
    let place = format!("error: {}:5: ", house.config().display());
    let said = ran.error(2);
    assert!(said.starts_with(&place), "{said}");
    assert!(said.ends_with("the nearest known key is `node_timeout_s`"), "{said}");
    assert!(!house.dir.path().join("data").exists(), "nothing was started");
}

#[tokio::test]
async fn a_missing_file_is_a_configuration_error() {
    let house = House::build("");
    let ran = control_ends(&house.dir.path().join("none.toml")).await;
    assert!(ran.error(2).contains("none.toml"));
}

#[tokio::test]
async fn a_taken_port_says_which_key_to_change_and_leaves_nothing() {
    let house = House::build("");
    let address = house.address.strip_prefix("http://").unwrap();
    let _taken = TcpListener::bind(address).unwrap();
    let ran = control_ends(&house.config()).await;
    let said = ran.error(1);
    assert!(said.starts_with(&format!("error: {address} is taken (")), "{said}");
    assert!(said.ends_with("stop the other process or change [control] listen"), "{said}");
    assert!(!house.socket().exists());
}

#[tokio::test]
async fn a_second_control_on_the_same_data_is_refused() {
    let house = House::start("").await;
    let other = House::build("");
    let text = std::fs::read_to_string(other.config()).unwrap();
    let data = |house: &House| format!("{:?}", house.dir.path().join("data"));
    std::fs::write(other.config(), text.replace(&data(&other), &data(&house))).unwrap();
    let ran = control_ends(&other.config()).await;
    let said = ran.error(1);
    assert!(said.contains("is in use by another cgn-control"), "{said}");
    house.client().await.list_nodes(ListNodesRequest {}).await.unwrap();
}

#[tokio::test]
async fn a_second_control_on_the_same_socket_is_refused_and_the_first_keeps_it() {
    let house = House::start("").await;
    let other = House::build("");
    let text = std::fs::read_to_string(other.config()).unwrap();
    let socket = |house: &House| format!("{:?}", house.socket());
    std::fs::write(other.config(), text.replace(&socket(&other), &socket(&house))).unwrap();
    let ran = control_ends(&other.config()).await;
    assert!(ran.error(1).contains("another cgn-control is running"), "{ran:?}");
    Plane::dial(&house, "cgn-router").await.see(|_| true).await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    let house = House::build("");
    std::fs::write(house.dir.path().join("data"), "a file, not a folder").unwrap();
    let ran = control_ends(&house.config()).await;
    let said = ran.error(1);
    assert!(said.contains("data/store cannot be written"), "{said}");
    assert!(said.contains("[control] data_dir"), "{said}");
}

#[tokio::test]
async fn the_socket_of_a_crashed_control_is_replaced() {
    let mut house = House::start("").await;
    house.crash_control().await;
    assert!(house.socket().exists(), "a crash cannot remove it");
    house.start_control().await;
    Plane::dial(&house, "cgn-router").await.see(|_| true).await;
}

#[tokio::test]
async fn a_signal_ends_it_well_and_takes_no_worker_out() {
    let mut house = House::start("").await;
    let mut agent = Agent::dial(&house, "n1", WELL).await;
    agent.told(|_| true).await;
    assert_eq!(house.cgnctl(&["recipe", "up", "sim/sim/cpu"]).await.code, 0);
    let told = agent.told(|told| told.engines.len() == 3).await;
    let mut plane = Plane::dial(&house, "cgn-router").await;
    plane.see(|seen| seen.workers.len() == 3).await;
    assert!(house.stop_control().await);
    assert!(!house.socket().exists());
    assert!(plane.hung_up().await.is_empty(), "the data plane goes on with its last picture");

    house.start_control().await;
    let mut plane = Plane::dial(&house, "cgn-router").await;
    assert!(plane.hears_nothing(Duration::from_millis(500)).await, "the agent may come back");
    let mut agent = Agent::come_back(&house, "n1", WELL, told).await;
    agent.told(|told| told.engines.len() == 3).await;
    let first = plane.see(|_| true).await;
    assert!(first.workers.iter().all(|one| one.state == WorkerState::Ready));
    assert_eq!(first.workers.len(), 3);
}
