//! An agent as control sees it: a stream of reports, and desired states taken at their word. It
//! starts no engines; what it reports about them is up to the test.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use control::api::control_client::ControlClient;
use control::api::engine::State;
use control::api::{AgentReport, DesiredEngine, DesiredState, Engine};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::house::{House, PATIENCE};

const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Makes of a desired engine what is reported of it.
pub(crate) type Behaviour = fn(&DesiredEngine) -> (State, &'static str);

pub(crate) const WELL: Behaviour = |_| (State::Ready, "");
pub(crate) const BROKEN: Behaviour =
    |_| (State::Failed, "llama-server is not installed; set [engines] llama_cpp");

/// One attached agent; dropping it breaks its stream.
pub(crate) struct Agent {
    life: JoinHandle<Status>,
    told: watch::Receiver<Option<DesiredState>>,
    is_silent: Arc<AtomicBool>,
}

impl Agent {
    /// Dials; attached once the first desired state came (see [`Agent::told`]).
    pub(crate) async fn dial(house: &House, node: &str, behaviour: Behaviour) -> Agent {
        Agent::come_back(house, node, behaviour, DesiredState::default()).await
    }

    /// Dials with engines running already, as an agent does that outlived control.
    pub(crate) async fn come_back(
        house: &House,
        node: &str,
        behaviour: Behaviour,
        running: DesiredState,
    ) -> Agent {
        let client = house.client().await;
        let (sender, told) = watch::channel(None);
        let is_silent = Arc::new(AtomicBool::new(false));
        let life = Life { node: node.to_owned(), behaviour, now: running };
        let life = tokio::spawn(life.live(client, sender, Arc::clone(&is_silent)));
        Agent { life, told, is_silent }
    }

    /// Waits for a desired state that is as `wanted`.
    pub(crate) async fn told(&mut self, wanted: impl Fn(&DesiredState) -> bool) -> DesiredState {
        let is_it = |told: &Option<DesiredState>| told.as_ref().is_some_and(&wanted);
        let told = tokio::time::timeout(PATIENCE, self.told.wait_for(is_it)).await;
        told.expect("no such desired state").expect("the stream ended").clone().unwrap()
    }

    /// Keeps the stream but reports no more, as a stuck process would.
    pub(crate) fn fall_silent(&self) {
        self.is_silent.store(true, Ordering::Relaxed);
    }

    /// Waits for control to end the stream, with its reason.
    pub(crate) async fn ended(mut self) -> Status {
        tokio::time::timeout(PATIENCE, &mut self.life).await.expect("it goes on").unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.life.abort();
    }
}

struct Life {
    node: String,
    behaviour: Behaviour,
    now: DesiredState,
}

impl Life {
    async fn live(
        mut self,
        mut client: ControlClient<tonic::transport::Channel>,
        told: watch::Sender<Option<DesiredState>>,
        is_silent: Arc<AtomicBool>,
    ) -> Status {
        let (reports, stream) = mpsc::channel(4);
        let mut desired = match client.attach(ReceiverStream::new(stream)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return status,
        };
        let mut ticks = tokio::time::interval(REPORT_EVERY);
        loop {
            tokio::select! {
                state = desired.message() => match state {
                    Ok(Some(state)) => {
                        self.now = state.clone();
                        told.send_replace(Some(state));
                    }
                    Ok(None) => return Status::ok("control ended the stream"),
                    Err(status) => return status,
                },
                _ = ticks.tick() => {}
            }
            if !is_silent.load(Ordering::Relaxed) {
                // A stream that broke is seen above.
                let _ = reports.send(self.report()).await;
            }
        }
    }

    fn report(&self) -> AgentReport {
        AgentReport {
            node_id: self.node.clone(),
            version: "test".to_owned(),
            cpu_cores: 2,
            memory_bytes: 1 << 30,
            desired_version: self.now.version,
            engines: self.now.engines.iter().map(|one| self.engine(one)).collect(),
        }
    }

    fn engine(&self, one: &DesiredEngine) -> Engine {
        let spec = one.spec.clone().unwrap();
        let (state, message) = (self.behaviour)(one);
        Engine {
            worker_id: format!("{}/{}/{}", self.node, one.deployment, one.replica),
            deployment: one.deployment.clone(),
            replica: one.replica,
            state: state.into(),
            message: message.to_owned(),
            url: format!("http://127.0.0.1:{}", 18100 + one.replica),
            model: spec.model,
            kind: "vllm".to_owned(),
            slots: spec.slots,
            context_length_tokens: spec.context_length_tokens,
            capabilities: vec!["chat".to_owned(), "completions".to_owned()],
            epoch: 1,
            ..Engine::default()
        }
    }
}
