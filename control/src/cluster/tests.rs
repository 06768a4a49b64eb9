//! Properties of the cluster's state over any life it may have.

use dataplane::wire::WorkerState;
use proptest::prelude::*;

use super::*;
use crate::api::{Engine, EngineSpec, engine::State};

const LIMITS: Limits =
    Limits { node_timeout_ms: 15_000, node_grace_ms: 60_000, nodes_max: 4, deployments_max: 3 };

fn empty() -> Cluster {
    Cluster::restore(LIMITS, Remembered::default(), 0)
}

fn sim(name: &str, replicas: u32) -> Deployment {
    let spec = EngineSpec {
        model: "sim".into(),
        kind: "sim".into(),
        slots: 4,
        context_length_tokens: 2048,
        startup_timeout_s: 10,
        ..EngineSpec::default()
    };
    Deployment { name: name.into(), replicas, spec: Some(spec) }
}

/// The report of an agent that has done all it was told.
fn obedient(cluster: &Cluster, node: &str, state: State) -> AgentReport {
    let desired = cluster.desired(node);
    let engine = |(index, one): (usize, DesiredEngine)| Engine {
        deployment: one.deployment,
        replica: one.replica,
        state: state.into(),
        url: format!("http://127.0.0.1:{}", 18100 + index),
        model: "sim".into(),
        kind: "vllm".into(),
        slots: 4,
        capabilities: vec!["chat".into()],
        epoch: 1,
        ..Engine::default()
    };
    AgentReport {
        node_id: node.into(),
        desired_version: desired.version,
        engines: desired.engines.into_iter().enumerate().map(engine).collect(),
        ..AgentReport::default()
    }
}

fn hello(node: &str) -> AgentReport {
    AgentReport { node_id: node.into(), ..AgentReport::default() }
}

fn states(cluster: &Cluster) -> Vec<(&str, WorkerState)> {
    cluster.snapshot().workers.iter().map(|one| (one.id.as_str(), one.state)).collect()
}

fn one_ready() -> Cluster {
    let mut cluster = empty();
    cluster.report(hello("n1"), 0).unwrap();
    cluster.apply(sim("sim", 1), 0).unwrap();
    cluster.report(obedient(&cluster, "n1", State::Ready), 1).unwrap();
    cluster
}

#[test]
fn a_ready_engine_becomes_a_ready_worker_and_an_equal_report_changes_nothing() {
    let mut cluster = one_ready();
    assert_eq!(states(&cluster), [("n1/sim/0", WorkerState::Ready)]);
    let version = cluster.snapshot().version;
    let again = obedient(&cluster, "n1", State::Ready);
    assert_eq!(cluster.report(again, 2).unwrap(), Changes::default());
    assert_eq!(cluster.expire(3), Changes::default());
    assert_eq!(cluster.snapshot().version, version);
}

#[test]
fn a_silent_agent_loses_its_workers_and_keeps_its_replicas_for_the_grace_time() {
    let mut cluster = one_ready();
    cluster.report(hello("n2"), 14_000).unwrap();
    assert!(!cluster.expire(15_000).snapshot);
    assert!(cluster.expire(15_001).snapshot);
    assert_eq!(states(&cluster), [("n1/sim/0", WorkerState::NotReady)]);
    cluster.report(hello("n2"), 75_000).unwrap();
    assert!(!cluster.expire(75_000).desired);
    assert_eq!(cluster.desired("n1").engines.len(), 1);
    assert!(cluster.expire(75_001).desired, "the grace time is over");
    assert_eq!(cluster.desired("n1").engines.len(), 0);
    assert_eq!(cluster.desired("n2").engines.len(), 1);
    assert!(states(&cluster).is_empty(), "nobody will come back to it");
}

#[test]
fn a_broken_stream_takes_the_workers_out_at_once_and_a_new_one_brings_them_back() {
    let mut cluster = one_ready();
    assert_eq!(cluster.detach("n1", 2), Changes { desired: false, snapshot: true });
    assert_eq!(states(&cluster), [("n1/sim/0", WorkerState::NotReady)]);
    assert_eq!(cluster.deployments()[0].ready, 0);
    let back = cluster.report(obedient(&cluster, "n1", State::Ready), 3).unwrap();
    assert_eq!(back, Changes { desired: false, snapshot: true });
    assert_eq!(states(&cluster), [("n1/sim/0", WorkerState::Ready)]);
}

#[test]
fn a_deleted_deployment_takes_no_new_requests_even_before_its_agent_heard() {
    let mut cluster = one_ready();
    assert_eq!(cluster.delete("sim", 2), Some(Changes { desired: true, snapshot: true }));
    assert_eq!(states(&cluster), [("n1/sim/0", WorkerState::Draining)]);
    assert!(cluster.desired("n1").engines.is_empty());
    assert!(cluster.desired("n1").version > 0);
    assert_eq!(cluster.delete("sim", 2), None);
}

#[test]
fn a_changed_spec_is_not_ready_before_the_agent_has_applied_it() {
    let mut cluster = one_ready();
    assert_eq!(cluster.deployments()[0].ready, 1);
    let old_report = obedient(&cluster, "n1", State::Ready);
    let mut changed = sim("sim", 1);
    changed.spec.as_mut().unwrap().slots = 8;
    assert!(cluster.apply(changed, 2).unwrap().desired);
    cluster.report(old_report, 3).unwrap();
    assert_eq!(cluster.deployments()[0].ready, 0);
    cluster.report(obedient(&cluster, "n1", State::Ready), 4).unwrap();
    assert_eq!(cluster.deployments()[0].ready, 1);
}

#[test]
fn the_same_deployment_again_changes_nothing() {
    let mut cluster = one_ready();
    let revision = cluster.revision();
    assert_eq!(cluster.apply(sim("sim", 1), 2).unwrap(), Changes::default());
    assert_eq!(cluster.revision(), revision);
}

#[test]
fn limits_refuse_and_lost_nodes_make_room() {
    let mut cluster = empty();
    for name in ["a", "b", "c"] {
        cluster.apply(sim(name, 1), 0).unwrap();
    }
    assert!(matches!(cluster.apply(sim("d", 1), 0), Err(ControlError::Full { limit: 3, .. })));
    for node in ["n1", "n2", "n3", "n4"] {
        cluster.report(hello(node), 0).unwrap();
    }
    assert!(matches!(cluster.report(hello("n5"), 1), Err(ControlError::Full { limit: 4, .. })));
    cluster.detach("n3", 2);
    cluster.report(hello("n5"), 3).unwrap();
    assert_eq!(cluster.node_names().collect::<Vec<_>>(), ["n1", "n2", "n4", "n5"]);
    assert_eq!(cluster.placement().len(), 3, "the forgotten node's replica moved on");
}

#[test]
fn reports_that_could_not_be_named_are_refused() {
    let mut cluster = empty();
    assert!(cluster.report(hello("a/b"), 0).is_err());
    assert!(cluster.report(hello(""), 0).is_err());
    let mut report = hello("n1");
    report.engines = vec![Engine { deployment: "../x".into(), ..Engine::default() }];
    assert!(cluster.report(report, 0).is_err());
    assert_eq!(cluster.node_names().count(), 0);
}

#[test]
fn a_restart_remembers_all_but_who_is_attached() {
    let before = one_ready();
    let nodes = before.node_names().filter_map(|node| before.last_report(node));
    let remembered = Remembered {
        deployments: before.deployments.values().cloned().collect(),
        placement: before.placement().clone(),
        revision: before.revision(),
        nodes: nodes.map(|(report, seen_ms)| (report.clone(), seen_ms)).collect(),
        weights: None,
    };
    let mut after = Cluster::restore(LIMITS, remembered, 1_000_000);
    assert_eq!(states(&after), [("n1/sim/0", WorkerState::NotReady)]);
    assert!(!after.is_attached("n1"));
    assert_eq!(after.published(), None, "who has an older picture goes on with it");
    assert_eq!(after.desired("n1").engines, before.desired("n1").engines);
    assert!(after.desired("n1").version >= before.desired("n1").version);
    after.report(hello("n0"), 1_000_001).unwrap();
    assert!(after.desired("n0").engines.is_empty(), "the grace time starts with control");
    assert_eq!(after.published(), None);

    let mut alone = after.clone();
    assert!(!alone.expire(1_014_999).snapshot);
    assert!(alone.expire(1_015_000).snapshot, "it is not held back for ever");
    assert_eq!(alone.published(), Some(alone.snapshot()));

    let back = after.report(obedient(&after, "n1", State::Ready), 1_000_002).unwrap();
    assert!(back.snapshot, "all nodes with replicas are back");
    assert_eq!(after.published(), Some(after.snapshot()));
    assert_eq!(states(&after), [("n1/sim/0", WorkerState::Ready)]);
}

#[test]
fn models_are_listed_while_they_are_desired_or_observed() {
    let mut cluster = empty();
    cluster.apply(sim("sim", 2), 0).unwrap();
    assert_eq!(cluster.models()[0].name, "sim");
    assert!(cluster.deployments()[0].message.contains("start cgn-agent"));
    cluster.report(hello("n1"), 1).unwrap();
    cluster.report(obedient(&cluster, "n1", State::Ready), 2).unwrap();
    let model = &cluster.models()[0];
    assert_eq!((model.workers, model.workers_ready, model.slots), (2, 2, 8));
    assert_eq!(model.kinds, ["vllm"]);
    assert_eq!(cluster.deployments()[0].message, "");
}

#[derive(Clone, Debug)]
enum Event {
    Report(&'static str, State),
    Detach(&'static str),
    Apply(&'static str, u32),
    Delete(&'static str),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let node = || prop::sample::select(vec!["n1", "n2", "n3", "n4", "n5"]);
    let name = || prop::sample::select(vec!["a", "b", "c", "d"]);
    let state = prop::sample::select(vec![State::Starting, State::Ready, State::Draining]);
    prop_oneof![
        4 => (node(), state).prop_map(|(node, state)| Event::Report(node, state)),
        1 => node().prop_map(Event::Detach),
        2 => (name(), 1u32..6).prop_map(|(name, replicas)| Event::Apply(name, replicas)),
        1 => name().prop_map(Event::Delete),
        2 => (0u64..40_000).prop_map(Event::Wait),
    ]
}

/// Applies one event; a refused one must leave all as it was, which the caller checks.
fn step(cluster: &mut Cluster, event: &Event, now_ms: &mut u64) -> Changes {
    match event {
        Event::Report(node, state) => {
            let report = obedient(cluster, node, *state);
            cluster.report(report, *now_ms).unwrap_or_default()
        }
        Event::Detach(node) => cluster.detach(node, *now_ms),
        Event::Apply(name, n) => cluster.apply(sim(name, *n), *now_ms).unwrap_or_default(),
        Event::Delete(name) => cluster.delete(name, *now_ms).unwrap_or_default(),
        Event::Wait(ms) => {
            *now_ms += ms;
            cluster.expire(*now_ms)
        }
    }
}

proptest! {
    #[test]
    fn any_life_keeps_the_promises(events in prop::collection::vec(event(), 1..60)) {
        let (mut cluster, mut now_ms) = (empty(), 0);
        for event in events {
            let before = cluster.clone();
            let changes = step(&mut cluster, &event, &mut now_ms);

            let same = before.snapshot().workers == cluster.snapshot().workers;
            let rose = cluster.snapshot().version - before.snapshot().version;
            prop_assert_eq!(rose, u64::from(!same), "version rises with each change only");
            prop_assert_eq!(changes.snapshot, !same);

            let kept = before.placement() == cluster.placement()
                && before.deployments == cluster.deployments;
            prop_assert_eq!(changes.desired, !kept);
            prop_assert_eq!(cluster.revision() > before.revision(), !kept);

            for (key, node) in cluster.placement() {
                prop_assert!(key.replica < cluster.deployments[&key.deployment].replicas);
                prop_assert!(cluster.nodes.contains_key(node));
            }
            for (id, node) in &cluster.nodes {
                let told = before.nodes.get(id).map(|old| &old.desired);
                if let Some(told) = told {
                    let changed = told.engines != node.desired.engines;
                    prop_assert_eq!(node.desired.version > told.version, changed);
                }
            }
            for worker in &cluster.snapshot().workers {
                if worker.state == WorkerState::Ready {
                    prop_assert!(cluster.is_attached(&worker.node));
                }
            }
            prop_assert!(cluster.nodes.len() <= LIMITS.nodes_max);
        }
    }
}

#[test]
fn weights_are_part_of_the_picture_and_the_same_again_are_no_news() {
    let mut cluster = Cluster::restore(LIMITS, Remembered::default(), 0);
    let before = cluster.snapshot().version;
    let weights = Some(ScoreWeights::default());
    assert_eq!(cluster.set_weights(weights, 1), Changes { desired: false, snapshot: true });
    assert_eq!((cluster.snapshot().version, cluster.snapshot().weights), (before + 1, weights));
    assert_eq!(cluster.set_weights(weights, 2), Changes::default());
    assert!(cluster.set_weights(None, 3).snapshot);
    assert_eq!((cluster.snapshot().version, cluster.snapshot().weights), (before + 2, None));
}
