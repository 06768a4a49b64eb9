//! Deciding when a `recipe up` or `recipe down` is done, from what control says and how long it has
//! been waited. Pure; the commands poll and sleep.

use std::time::Duration;

use crate::api::{DeploymentStatus, Engine, Node, engine::State};

/// An agent that has just been started needs a moment to attach.
pub(super) const NODE_WAIT: Duration = Duration::from_secs(6);

/// Where a `recipe up` stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All replicas are ready.
    Ready,
    /// So many are; what the others do.
    Waiting { ready: u32, line: String },
    /// It will not get ready; why and what to do.
    Failed(String),
}

/// Judges a deployment `waited` long after it was asked for.
pub(super) fn judge(
    status: Option<&DeploymentStatus>,
    nodes: &[Node],
    waited: Duration,
    limit: Duration,
) -> Verdict {
    let Some((status, deployment)) =
        status.and_then(|status| Some((status, status.deployment.as_ref()?)))
    else {
        return Verdict::Failed("somebody else took it down meanwhile".to_owned());
    };
    let wanted = deployment.replicas;
    if status.ready >= wanted {
        return Verdict::Ready;
    }
    if let Some(engine) = status.engines.iter().find(|engine| engine.state() == State::Failed) {
        return Verdict::Failed(of_engine(engine));
    }
    if waited >= NODE_WAIT && !nodes.iter().any(|node| node.attached) {
        return Verdict::Failed(
            "no node is attached, so there is nothing to run it on; start `cgn-agent --config FILE` and try again"
                .to_owned(),
        );
    }
    let slowest = slowest(status);
    if waited >= limit {
        let doing = match slowest {
            Some(engine) => of_engine(engine),
            None if !status.message.is_empty() => status.message.clone(),
            None => "its agent has not reported any engine of it; see the agent's log".to_owned(),
        };
        return Verdict::Failed(format!(
            "{} of {wanted} ready after {} s: {doing}",
            status.ready,
            limit.as_secs()
        ));
    }
    let doing = match slowest {
        Some(engine) => of_engine(engine),
        None if !status.message.is_empty() => status.message.clone(),
        None => "waiting for its agent".to_owned(),
    };
    Verdict::Waiting { ready: status.ready, line: doing }
}

/// Whether an engine of that deployment still runs on a node that is attached.
pub(super) fn is_gone(nodes: &[Node], deployment: &str) -> bool {
    left(nodes, deployment) == 0
}

/// How many are left on attached nodes; what a lost node runs, nobody can know.
pub(super) fn left(nodes: &[Node], deployment: &str) -> usize {
    let attached = nodes.iter().filter(|node| node.attached);
    let engines = attached.flat_map(|node| &node.engines);
    engines.filter(|engine| engine.deployment == deployment).count()
}

/// The engine most in need of attention: one in backoff before one that starts.
fn slowest(status: &DeploymentStatus) -> Option<&Engine> {
    let waiting = status.engines.iter().filter(|engine| engine.state() != State::Ready);
    waiting.min_by_key(|engine| (engine.state() != State::Backoff, engine.replica))
}

fn of_engine(engine: &Engine) -> String {
    let state = super::output::state_name(engine.state());
    // Agents may begin with the state themselves.
    match engine.message.strip_prefix(state).unwrap_or(&engine.message) {
        "" => format!("{} is {state}", engine.worker_id),
        why => format!("{} is {state}: {}", engine.worker_id, why.trim_start_matches(": ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Deployment;

    const LIMIT: Duration = Duration::from_secs(60);

    fn engine(state: State, message: &str) -> Engine {
        Engine {
            worker_id: "n1/sim/0".into(),
            deployment: "sim".into(),
            state: state.into(),
            message: message.into(),
            ..Engine::default()
        }
    }

    fn status(ready: u32, engines: Vec<Engine>) -> DeploymentStatus {
        let deployment = Deployment { name: "sim".into(), replicas: 2, spec: None };
        DeploymentStatus { deployment: Some(deployment), ready, engines, message: String::new() }
    }

    fn attached(engines: Vec<Engine>) -> Vec<Node> {
        vec![Node { id: "n1".into(), attached: true, engines, ..Node::default() }]
    }

    fn failed(verdict: Verdict) -> String {
        match verdict {
            Verdict::Failed(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_is_ready_with_the_last_replica_and_not_before() {
        let (nodes, now) = (attached(vec![]), Duration::ZERO);
        let half = status(1, vec![engine(State::Starting, "starting: loading")]);
        let verdict = judge(Some(&half), &nodes, now, LIMIT);
        let line = "n1/sim/0 is starting: loading".to_owned();
        assert_eq!(verdict, Verdict::Waiting { ready: 1, line });
        assert_eq!(judge(Some(&status(2, vec![])), &nodes, now, LIMIT), Verdict::Ready);
    }

    #[test]
    fn a_failed_engine_ends_the_wait_with_its_own_words() {
        let broken = status(1, vec![engine(State::Failed, "no llama-server; set [engines]")]);
        let why = failed(judge(Some(&broken), &attached(vec![]), Duration::ZERO, LIMIT));
        assert_eq!(why, "n1/sim/0 is failed: no llama-server; set [engines]");
    }

    #[test]
    fn no_node_ends_the_wait_soon_and_silence_ends_it_at_the_limit() {
        let nothing = status(0, vec![]);
        assert!(failed(judge(Some(&nothing), &[], NODE_WAIT, LIMIT)).contains("cgn-agent"));
        assert!(matches!(
            judge(Some(&nothing), &attached(vec![]), NODE_WAIT, LIMIT),
            Verdict::Waiting { ready: 0, .. }
        ));
        let slow =
            status(0, vec![engine(State::Starting, ""), engine(State::Backoff, "not ready")]);
        let why = failed(judge(Some(&slow), &attached(vec![]), LIMIT, LIMIT));
        assert_eq!(why, "0 of 2 ready after 60 s: n1/sim/0 is backoff: not ready");
        assert!(failed(judge(None, &[], Duration::ZERO, LIMIT)).contains("took it down"));
    }

    #[test]
    fn it_is_gone_when_no_attached_node_reports_any_of_it() {
        let mut nodes = attached(vec![engine(State::Draining, "")]);
        assert!(!is_gone(&nodes, "sim"));
        assert!(is_gone(&nodes, "other"));
        nodes[0].attached = false;
        assert!(is_gone(&nodes, "sim"));
    }
}
