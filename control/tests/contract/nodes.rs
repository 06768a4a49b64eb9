//! Agents attach, work and go; control remembers, and the data planes see it.

use std::time::Duration;

use control::api::engine::State;
use control::api::{
    AgentReport, DeleteDeploymentRequest, Deployment, EngineSpec, ListDeploymentsRequest,
    ListNodesRequest, Node,
};
use dataplane::wire::{Snapshot, WorkerState};
use tonic::Code;

use crate::agent::{Agent, WELL};
use crate::house::{House, PATIENCE};
use crate::plane::Plane;

fn sim(name: &str, replicas: u32) -> Deployment {
    let spec = EngineSpec {
        model: "sim".to_owned(),
        kind: "sim".to_owned(),
        slots: 4,
        context_length_tokens: 2048,
        startup_timeout_s: 10,
        ..EngineSpec::default()
    };
    Deployment { name: name.to_owned(), replicas, spec: Some(spec) }
}

fn all(state: WorkerState, count: usize) -> impl Fn(&Snapshot) -> bool {
    move |seen| seen.workers.len() == count && seen.workers.iter().all(|one| one.state == state)
}

async fn nodes(house: &House) -> Vec<Node> {
    house.client().await.list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes
}

async fn until_node(house: &House, wanted: impl Fn(&Node) -> bool) {
    let found = async {
        while !nodes(house).await.iter().any(&wanted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("no such node");
}

#[tokio::test]
async fn an_agent_with_nothing_to_do_is_told_so() {
    let house = House::start("").await;
    let mut agent = Agent::dial(&house, "n1", WELL).await;
    assert!(agent.told(|_| true).await.engines.is_empty());
    until_node(&house, |node| node.id == "n1" && node.attached && node.cpu_cores == 2).await;
}

#[tokio::test]
async fn a_deployment_reaches_agent_and_data_plane_and_leaves_them_again() {
    let house = House::start("").await;
    let mut plane = Plane::dial(&house, "cgn-router").await;
    assert!(plane.see(|_| true).await.workers.is_empty());
    let mut agent = Agent::dial(&house, "n1", WELL).await;
    agent.told(|_| true).await;
    let mut client = house.client().await;
    client.apply_deployment(sim("a/b/c", 2)).await.unwrap();
    agent.told(|told| told.engines.len() == 2).await;
    let seen = plane.see(all(WorkerState::Ready, 2)).await;
    assert_eq!(seen.workers[1].id, "n1/a/b/c/1");
    assert_eq!(seen.workers[1].node, "n1");

    let name = "a/b/c".to_owned();
    let gone = client.delete_deployment(DeleteDeploymentRequest { name }).await.unwrap();
    assert!(gone.into_inner().existed);
    agent.told(|told| told.engines.is_empty()).await;
    plane.see(|seen| seen.workers.is_empty()).await;
}

#[tokio::test]
async fn equal_reports_publish_nothing() {
    let house = House::start("").await;
    let mut agent = Agent::dial(&house, "n1", WELL).await;
    agent.told(|_| true).await;
    house.client().await.apply_deployment(sim("sim", 1)).await.unwrap();
    let mut plane = Plane::dial(&house, "cgn-router").await;
    plane.see(all(WorkerState::Ready, 1)).await;
    assert!(plane.hears_nothing(Duration::from_secs(1)).await);
}

#[tokio::test]
async fn a_broken_stream_takes_the_workers_out_and_the_replicas_wait_for_their_node() {
    let house = House::start("").await;
    let mut plane = Plane::dial(&house, "cgn-router").await;
    let mut agent = Agent::dial(&house, "n1", WELL).await;
    agent.told(|_| true).await;
    house.client().await.apply_deployment(sim("sim", 1)).await.unwrap();
    plane.see(all(WorkerState::Ready, 1)).await;
    drop(agent);
    plane.see(all(WorkerState::NotReady, 1)).await;
    let mut other = Agent::dial(&house, "n2", WELL).await;
    assert!(other.told(|_| true).await.engines.is_empty(), "it is n1's for the grace time");
    let mut back = Agent::dial(&house, "n1", WELL).await;
    assert_eq!(back.told(|_| true).await.engines.len(), 1);
    plane.see(all(WorkerState::Ready, 1)).await;
}

#[tokio::test]
async fn a_silent_agent_loses_its_workers_then_its_replicas() {
    let house = House::start("node_timeout_s = 1\nnode_grace_s = 1").await;
    let mut plane = Plane::dial(&house, "cgn-router").await;
    let mut first = Agent::dial(&house, "n1", WELL).await;
    first.told(|_| true).await;
    house.client().await.apply_deployment(sim("sim", 1)).await.unwrap();
    plane.see(all(WorkerState::Ready, 1)).await;
    let mut second = Agent::dial(&house, "n2", WELL).await;
    second.told(|_| true).await;
    first.fall_silent();
    plane.see(all(WorkerState::NotReady, 1)).await;
    until_node(&house, |node| node.id == "n1" && !node.attached).await;
    second.told(|told| told.engines.len() == 1).await;
    let seen = plane.see(all(WorkerState::Ready, 1)).await;
    assert_eq!(seen.workers[0].node, "n2");
}

#[tokio::test]
async fn desired_state_survives_a_crash_and_nodes_come_back_as_not_attached() {
    let mut house = House::start("").await;
    let mut agent = Agent::dial(&house, "n2", WELL).await;
    agent.told(|_| true).await;
    let mut client = house.client().await;
    client.apply_deployment(sim("kept", 2)).await.unwrap();
    client.apply_deployment(sim("dropped", 1)).await.unwrap();
    let name = "dropped".to_owned();
    client.delete_deployment(DeleteDeploymentRequest { name }).await.unwrap();
    let before = agent.told(|told| told.engines.len() == 2).await;
    until_node(&house, |node| node.engines.iter().all(|one| one.state() == State::Ready)).await;
    house.crash_control().await;
    drop(agent);
    house.start_control().await;

    let list = house.client().await.list_deployments(ListDeploymentsRequest {}).await;
    let list = list.unwrap().into_inner().deployments;
    let names: Vec<Deployment> = list.into_iter().filter_map(|one| one.deployment).collect();
    assert_eq!(names, [sim("kept", 2)]);
    let nodes = nodes(&house).await;
    assert_eq!((nodes[0].id.as_str(), nodes[0].attached), ("n2", false));

    let mut stranger = Agent::dial(&house, "n1", WELL).await;
    assert!(stranger.told(|_| true).await.engines.is_empty(), "replicas are sticky");
    let mut back = Agent::dial(&house, "n2", WELL).await;
    let after = back.told(|_| true).await;
    assert_eq!(after.engines, before.engines);
    assert!(after.version >= before.version);
}

#[tokio::test]
async fn one_node_has_one_agent() {
    let house = House::start("").await;
    let mut agent = Agent::dial(&house, "n1", WELL).await;
    agent.told(|_| true).await;
    let refused = Agent::dial(&house, "n1", WELL).await.ended().await;
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("[agent] node_id"), "{}", refused.message());
    until_node(&house, |node| node.attached).await;
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_with_its_key() {
    let house = House::start("deployments_max = 1").await;
    let mut client = house.client().await;
    let status = client.apply_deployment(sim("../escape", 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = client.apply_deployment(sim("a", 0)).await.unwrap_err();
    assert!(status.message().contains("engine.replicas"));
    client.apply_deployment(sim("a", 1)).await.unwrap();
    let status = client.apply_deployment(sim("b", 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("[control] deployments_max"));

    let nameless = tokio_stream::once(AgentReport::default());
    let mut answer = client.attach(nameless).await.unwrap().into_inner();
    assert_eq!(answer.message().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_data_plane_that_talks_nonsense_is_hung_up_on_and_others_are_not() {
    let house = House::start("").await;
    let mut good = Plane::dial(&house, "cgn-kvcached").await;
    good.see(|_| true).await;
    let mut bad = Plane::dial(&house, "cgn-router").await;
    bad.see(|_| true).await;
    bad.say_bytes(b"GET / HTTP/1.1\r\n\r\n").await;
    bad.hung_up().await;
    let mut agent = Agent::dial(&house, "n1", WELL).await;
    agent.told(|_| true).await;
    house.client().await.apply_deployment(sim("sim", 1)).await.unwrap();
    good.see(all(WorkerState::Ready, 1)).await;
}
