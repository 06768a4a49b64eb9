//! `cgnctl cluster nodes`: the machines and what runs on them.

use serde::Serialize;

use super::connect::Control;
use super::output::{Engine, Table, engine_table, print};
use super::{Failure, Global};
use crate::api;

#[derive(Serialize)]
struct Listed {
    nodes: Vec<Node>,
}

#[derive(Serialize)]
struct Node {
    id: String,
    version: String,
    attached: bool,
    last_seen_ms_ago: u64,
    cpu_cores: u32,
    memory_bytes: u64,
    engines_ready: usize,
    engines: Vec<Engine>,
}

impl From<api::Node> for Node {
    fn from(node: api::Node) -> Node {
        let ready = node
            .engines
            .iter()
            .filter(|engine| engine.state() == api::engine::State::Ready)
            .count();
        Node {
            id: node.id,
            version: node.version,
            attached: node.attached,
            last_seen_ms_ago: node.last_seen_ms_ago,
            cpu_cores: node.cpu_cores,
            memory_bytes: node.memory_bytes,
            engines_ready: if node.attached { ready } else { 0 },
            engines: node.engines.into_iter().map(Engine::from).collect(),
        }
    }
}

/// Lists all nodes known.
pub(super) async fn ls(global: &Global) -> Result<(), Failure> {
    let nodes = Control::connect(global).await?.nodes().await?;
    let listed = Listed { nodes: nodes.into_iter().map(Node::from).collect() };
    print(global.output, &listed, |listed| {
        let mut table =
            Table::new(["NODE", "ATTACHED", "LAST SEEN", "CORES", "MEMORY", "READY", "VERSION"]);
        for node in &listed.nodes {
            table.row([
                node.id.clone(),
                if node.attached { "yes" } else { "no" }.to_owned(),
                format!("{} s ago", node.last_seen_ms_ago / 1000),
                node.cpu_cores.to_string(),
                format!("{} MiB", node.memory_bytes >> 20),
                format!("{}/{}", node.engines_ready, node.engines.len()),
                node.version.clone(),
            ]);
        }
        if table.is_empty() {
            return "no node has ever attached; start cgn-agent".to_owned();
        }
        let engines = engine_table(listed.nodes.iter().flat_map(|node| &node.engines));
        if engines.is_empty() { table.to_string() } else { format!("{table}\n{engines}") }
    })
}
