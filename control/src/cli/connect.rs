//! The connection of `cgnctl` to the control port, and its calls with their failures turned into
//! [`Failure`]s.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::{Failure, Global};
use crate::api::control_client::ControlClient;
use crate::api::{
    DeleteDeploymentRequest, Deployment, DeploymentStatus, ExplainRouteRequest,
    GetRouteWeightsRequest, ListDeploymentsRequest, ListModelsRequest, ListNodesRequest, Model,
    Node, ScoreWeights, SetRouteWeightsRequest,
};

const ADDRESS: &str = "http://127.0.0.1:9090";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longer than control itself waits for a router.
const CALL_TIMEOUT: Duration = Duration::from_secs(65);

/// A connected control port.
pub(super) struct Control {
    client: ControlClient<Channel>,
    address: String,
}

impl Control {
    pub(super) async fn connect(global: &Global) -> Result<Control, Failure> {
        let given = global.control.clone().or_else(|| std::env::var("CGN_CONTROL").ok());
        let address = given.unwrap_or_else(|| ADDRESS.to_owned());
        let wrong = || {
            Failure::Usage(format!("--control {address}: not an address; write it like {ADDRESS}"))
        };
        if !address.starts_with("http://") {
            return Err(wrong());
        }
        let endpoint = Endpoint::from_shared(address.clone()).map_err(|_| wrong())?;
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT);
        match endpoint.connect().await {
            Ok(channel) => Ok(Control { client: ControlClient::new(channel), address }),
            Err(error) => Err(Failure::Unreachable { address, reason: root_cause(&error) }),
        }
    }

    pub(super) async fn nodes(&mut self) -> Result<Vec<Node>, Failure> {
        let answer = self.client.list_nodes(ListNodesRequest {}).await;
        Ok(answer.map_err(|status| self.failure(&status))?.into_inner().nodes)
    }

    pub(super) async fn deployments(&mut self) -> Result<Vec<DeploymentStatus>, Failure> {
        let answer = self.client.list_deployments(ListDeploymentsRequest {}).await;
        Ok(answer.map_err(|status| self.failure(&status))?.into_inner().deployments)
    }

    pub(super) async fn deployment(
        &mut self,
        name: &str,
    ) -> Result<Option<DeploymentStatus>, Failure> {
        let is_it = |status: &DeploymentStatus| {
            status.deployment.as_ref().is_some_and(|deployment| deployment.name == name)
        };
        Ok(self.deployments().await?.into_iter().find(is_it))
    }

    pub(super) async fn models(&mut self) -> Result<Vec<Model>, Failure> {
        let answer = self.client.list_models(ListModelsRequest {}).await;
        Ok(answer.map_err(|status| self.failure(&status))?.into_inner().models)
    }

    pub(super) async fn apply(&mut self, deployment: &Deployment) -> Result<(), Failure> {
        let answer = self.client.apply_deployment(deployment.clone()).await;
        answer.map(drop).map_err(|status| self.failure(&status))
    }

    /// Whether there was one of that name.
    pub(super) async fn delete(&mut self, name: &str) -> Result<bool, Failure> {
        let name = name.to_owned();
        let answer = self.client.delete_deployment(DeleteDeploymentRequest { name }).await;
        Ok(answer.map_err(|status| self.failure(&status))?.into_inner().existed)
    }

    pub(super) async fn explain(&mut self, call: ExplainRouteRequest) -> Result<String, Failure> {
        let answer = self.client.explain_route(call).await;
        Ok(answer.map_err(|status| self.failure(&status))?.into_inner().explanation_json)
    }

    /// Sets the weights of all routers, or resets them; gives what is set then.
    pub(super) async fn set_weights(
        &mut self,
        weights: Option<ScoreWeights>,
    ) -> Result<Option<ScoreWeights>, Failure> {
        let answer = self.client.set_route_weights(SetRouteWeightsRequest { weights }).await;
        Ok(answer.map_err(|status| self.failure(&status))?.into_inner().weights)
    }

    pub(super) async fn weights(&mut self) -> Result<Option<ScoreWeights>, Failure> {
        let answer = self.client.get_route_weights(GetRouteWeightsRequest {}).await;
        Ok(answer.map_err(|status| self.failure(&status))?.into_inner().weights)
    }

    fn failure(&self, status: &tonic::Status) -> Failure {
        Failure::of_status(&self.address, status)
    }
}

/// "transport error" alone helps nobody; its innermost cause does.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
