//! The control port: `control.proto` over gRPC. Each call is a line or two to [`Keeper`] or
//! [`Planes`]; all refusals become statuses in `error.rs`.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::api::control_server::Control;
use crate::api::{
    AgentReport, ApplyDeploymentResponse, DeleteDeploymentRequest, DeleteDeploymentResponse,
    Deployment, DesiredState, ExplainRouteRequest, ExplainRouteResponse, GetRouteWeightsRequest,
    ListDeploymentsRequest, ListDeploymentsResponse, ListModelsRequest, ListModelsResponse,
    ListNodesRequest, ListNodesResponse, RouteWeights, SetRouteWeightsRequest,
};
use crate::attached;
use crate::error::ControlError;
use crate::keeper::Keeper;
use crate::plane::{Planes, Question};
use crate::weights;

/// Desired states on their way to one agent; newer ones wait in its `watch` channel.
const DESIRED_ON_THE_WAY_MAX: usize = 1;

/// The service. Ends its streams when `stopping` turns true.
pub struct ControlPort {
    /// State.
    pub keeper: Arc<Keeper>,
    /// Data planes to ask.
    pub planes: Arc<Planes>,
    /// Turns true once.
    pub stopping: watch::Receiver<bool>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Control for ControlPort {
    type AttachStream = ReceiverStream<Result<DesiredState, Status>>;

    /// Answers at once: an agent may wait for that before it says its first word.
    async fn attach(&self, call: Request<Streaming<AgentReport>>) -> Answer<Self::AttachStream> {
        let (down, desired) = mpsc::channel(DESIRED_ON_THE_WAY_MAX);
        let (keeper, stopping) = (Arc::clone(&self.keeper), self.stopping.clone());
        tokio::spawn(attached::serve(keeper, call.into_inner(), down, stopping));
        Ok(Response::new(ReceiverStream::new(desired)))
    }

    async fn apply_deployment(&self, call: Request<Deployment>) -> Answer<ApplyDeploymentResponse> {
        let version = self.keeper.apply(call.into_inner())?;
        Ok(Response::new(ApplyDeploymentResponse { version }))
    }

    async fn delete_deployment(
        &self,
        call: Request<DeleteDeploymentRequest>,
    ) -> Answer<DeleteDeploymentResponse> {
        let existed = self.keeper.delete(&call.get_ref().name)?;
        Ok(Response::new(DeleteDeploymentResponse { existed }))
    }

    async fn list_deployments(
        &self,
        _: Request<ListDeploymentsRequest>,
    ) -> Answer<ListDeploymentsResponse> {
        Ok(Response::new(ListDeploymentsResponse { deployments: self.keeper.deployments() }))
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Answer<ListNodesResponse> {
        Ok(Response::new(ListNodesResponse { nodes: self.keeper.nodes() }))
    }

    async fn list_models(&self, _: Request<ListModelsRequest>) -> Answer<ListModelsResponse> {
        Ok(Response::new(ListModelsResponse { models: self.keeper.models() }))
    }

    async fn explain_route(
        &self,
        call: Request<ExplainRouteRequest>,
    ) -> Answer<ExplainRouteResponse> {
        let ExplainRouteRequest { path, body, weights, temperature } = call.into_inner();
        if !matches!(path.as_str(), "/v1/chat/completions" | "/v1/completions") {
            let message = format!("{path:?}: use /v1/chat/completions or /v1/completions");
            return Err(ControlError::BadRequest(message).into());
        }
        let weights = weights.map(weights::checked).transpose()?;
        if temperature.is_some_and(|t| !t.is_finite() || t < 0.0) {
            let message = "temperature: give a number, 0 or more".to_owned();
            return Err(ControlError::BadRequest(message).into());
        }
        let question = Question { path, body, weights, temperature };
        let explanation = self.planes.explain(question).await?;
        let explanation_json = serde_json::to_string(&explanation)
            .map_err(|error| ControlError::RouterRefused(error.to_string()))?;
        Ok(Response::new(ExplainRouteResponse { explanation_json }))
    }

    async fn set_route_weights(
        &self,
        call: Request<SetRouteWeightsRequest>,
    ) -> Answer<RouteWeights> {
        let asked = call.into_inner().weights.map(weights::checked).transpose()?;
        self.keeper.set_weights(asked)?;
        Ok(Response::new(RouteWeights { weights: asked.map(weights::to_api) }))
    }

    async fn get_route_weights(&self, _: Request<GetRouteWeightsRequest>) -> Answer<RouteWeights> {
        let weights = self.keeper.weights().map(weights::to_api);
        Ok(Response::new(RouteWeights { weights }))
    }
}
