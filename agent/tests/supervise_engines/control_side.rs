//! The other end of the agent's line: a gRPC server that says what to run and hears the reports.

use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::thread::JoinHandle;

use control::api::control_server::{Control, ControlServer};
use control::api::*;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::PATIENCE;

/// A running server, on a thread and runtime of its own: when those end, so does every connection.
pub struct ControlSide {
    pub address: SocketAddr,
    desired: watch::Sender<DesiredState>,
    reports: watch::Receiver<AgentReport>,
    server: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Drop for ControlSide {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.server.take() {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}

impl ControlSide {
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap())
    }

    pub fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (desired, desired_out) = watch::channel(DesiredState::default());
        let (reports_in, reports) = watch::channel(AgentReport::default());
        let seat = Seat { desired: desired_out, reports: reports_in };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let server = tonic::transport::Server::builder()
                    .add_service(ControlServer::new(seat))
                    .serve_with_incoming(TcpListenerStream::new(listener));
                tokio::select! {
                    ended = server => ended.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        ControlSide { address, desired, reports, server: Some((stop, thread)) }
    }

    /// Says what to run from now on.
    pub fn desire(&self, engines: Vec<DesiredEngine>) {
        self.desired.send_modify(|desired| {
            desired.version += 1;
            desired.engines = engines;
        });
    }

    /// Waits for a report that `holds`.
    pub async fn until(&self, what: &str, holds: impl Fn(&AgentReport) -> bool) -> AgentReport {
        let mut reports = self.reports.clone();
        let result = tokio::time::timeout(PATIENCE, reports.wait_for(|report| holds(report))).await;
        match result {
            Ok(report) => report.unwrap().clone(),
            Err(_) => panic!("waited in vain for: {what}; last: {:#?}", *self.reports.borrow()),
        }
    }

    /// Waits until the only engine is in `state`.
    pub async fn until_state(&self, state: engine::State) -> Engine {
        let report = self
            .until(state.as_str_name(), |report| match report.engines.as_slice() {
                [only] => only.state() == state,
                _ => false,
            })
            .await;
        report.engines[0].clone()
    }
}

struct Seat {
    desired: watch::Receiver<DesiredState>,
    reports: watch::Sender<AgentReport>,
}

#[tonic::async_trait]
impl Control for Seat {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<DesiredState, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<AgentReport>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut incoming = request.into_inner();
        let reports = self.reports.clone();
        tokio::spawn(async move {
            while let Some(Ok(report)) = incoming.next().await {
                reports.send_replace(report);
            }
        });
        let (out, stream) = mpsc::channel(1);
        let mut desired = self.desired.clone();
        tokio::spawn(async move {
            loop {
                let now = desired.borrow_and_update().clone();
                // Nothing was said yet: the agent keeps what it has.
                if now.version > 0 && out.send(Ok(now)).await.is_err() {
                    return;
                }
                if desired.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn apply_deployment(
        &self,
        _: Request<Deployment>,
    ) -> Result<Response<ApplyDeploymentResponse>, Status> {
        Err(Status::unimplemented("for operators"))
    }

    async fn delete_deployment(
        &self,
        _: Request<DeleteDeploymentRequest>,
    ) -> Result<Response<DeleteDeploymentResponse>, Status> {
        Err(Status::unimplemented("for operators"))
    }

    async fn list_deployments(
        &self,
        _: Request<ListDeploymentsRequest>,
    ) -> Result<Response<ListDeploymentsResponse>, Status> {
        Err(Status::unimplemented("for operators"))
    }

    async fn list_nodes(
        &self,
        _: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        Err(Status::unimplemented("for operators"))
    }

    async fn list_models(
        &self,
        _: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        Err(Status::unimplemented("for operators"))
    }

    async fn explain_route(
        &self,
        _: Request<ExplainRouteRequest>,
    ) -> Result<Response<ExplainRouteResponse>, Status> {
        Err(Status::unimplemented("for operators"))
    }

    async fn set_route_weights(
        &self,
        _: Request<SetRouteWeightsRequest>,
    ) -> Result<Response<RouteWeights>, Status> {
        Err(Status::unimplemented("for operators"))
    }

    async fn get_route_weights(
        &self,
        _: Request<GetRouteWeightsRequest>,
    ) -> Result<Response<RouteWeights>, Status> {
        Err(Status::unimplemented("for operators"))
    }
}
