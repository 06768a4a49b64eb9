//! Who stands on whom: the workspace's own edges, and what the data planes may never reach.
//!
//! The picture is fixed here; a new edge is a change of architecture and of this table. Normal, dev-
//! and build-dependencies count alike. The checks are plain functions over what `cargo metadata`
//! says, tried on tables with a forbidden edge too.
#![expect(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Each package of the workspace and those of ours it may depend on.
const ALLOWED: &[(&str, &[&str])] = &[
    ("dataplane", &[]),
    ("rdma", &["dataplane"]),
    ("tuning", &["dataplane"]),
    ("router", &["dataplane"]),
    // The daemon's tests speak to it with its own client; the client stands on the wire alone.
    ("kvstore", &["dataplane", "rdma", "kvclient"]),
    ("kvclient", &["dataplane"]),
    ("control", &["dataplane", "tuning"]),
    // The agent keeps llama.cpp's slots in the daemon as any client does; the client stands on the wire
    // alone, so nothing of the store comes with it.
    ("agent", &["dataplane", "tuning", "control", "kvclient"]),
    ("xtask", &[]),
];

/// Packages below the floor where an async runtime for many small tasks lives.
const DATA_PLANES: &[&str] = &["dataplane", "rdma", "tuning", "router", "kvstore", "kvclient"];
/// What those may not reach by normal dependencies, however far down.
const RUNTIMES: &[&str] = &["tokio", "tonic", "hyper"];
/// Who may use tokio below that floor: HTTP/2 is `h2`, which reads and writes through tokio's I/O traits
/// and starts nothing. A data plane that feeds it names the same traits, and no feature of tokio.
const IO_TRAIT_USERS: &[&str] = &["h2", "tokio-util"];
/// Who else may: quinn runs on tokio and on no runtime of ours. In kvstore it has a thread of its own, with
/// a runtime for that one thread, and the shards never see it.
const QUIC: &str = "quinn";
/// The only files of a data plane that may name more of tokio than its I/O traits: that thread's.
const QUIC_FILES: &[&str] = &["kvstore/src/peer.rs", "kvstore/src/peer/"];
/// The only module of `control` that `agent` may name.
const CONTROL_API: &str = "control::api";

/// From a package to those it depends on.
type Edges = BTreeMap<String, BTreeSet<String>>;

/// Every edge between packages of ours that the table lacks, and every package it does not know.
fn forbidden_edges(edges: &Edges) -> Vec<String> {
    let mut found = Vec::new();
    for (from, all_to) in edges {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| name == from) else {
            found.push(format!("{from} is not in the table"));
            continue;
        };
        let wrong = all_to.iter().filter(|to| !allowed.contains(&to.as_str()));
        found.extend(wrong.map(|to| format!("{from} -> {to}")));
    }
    found
}

/// A way from a data plane to a runtime, for each pair that has one.
fn runtime_paths(edges: &Edges) -> Vec<String> {
    let mut found = Vec::new();
    for from in DATA_PLANES {
        for to in RUNTIMES {
            if let Some(path) = path(edges, from, to) {
                found.push(path.join(" -> "));
            }
        }
    }
    found
}

/// A shortest way from `from` to `to`.
fn path(edges: &Edges, from: &str, to: &str) -> Option<Vec<String>> {
    let mut seen = BTreeSet::from([from.to_owned()]);
    let mut front = vec![vec![from.to_owned()]];
    while !front.is_empty() {
        let mut next = Vec::new();
        for path in front {
            let last = path.last()?.clone();
            if last == to {
                return Some(path);
            }
            for step in edges.get(&last).into_iter().flatten() {
                if seen.insert(step.clone()) {
                    next.push([path.as_slice(), std::slice::from_ref(step)].concat());
                }
            }
        }
        front = next;
    }
    None
}

/// Each line of `source` that names a module of `control` other than its API.
fn control_beyond_api(source: &str) -> Vec<String> {
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.filter(|line| {
        line.match_indices("control::").any(|(at, _)| {
            let is_word =
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            let is_api = line[at..]
                .strip_prefix(CONTROL_API)
                .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'));
            is_word && !is_api
        }) || line.trim() == "use control;"
    })
    .map(|line| line.trim().to_owned())
    .collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn metadata(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["metadata", "--format-version", "1"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The declared edges between packages of ours: those given by a path.
fn own_edges(metadata: &Value) -> Edges {
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap();
            let ours = dependencies.iter().filter(|dependency| dependency["path"].is_string());
            (name(package), ours.map(name).collect())
        })
        .collect()
}

/// The resolved graph of normal dependencies, by package name.
fn normal_edges(metadata: &Value) -> Edges {
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeMap<&str, String> =
        packages.iter().map(|package| (package["id"].as_str().unwrap(), name(package))).collect();
    let mut edges = Edges::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let from = names[node["id"].as_str().unwrap()].clone();
        let normal = node["deps"].as_array().unwrap().iter().filter(|dependency| {
            dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null())
        });
        let all_to = normal.map(|dependency| names[dependency["pkg"].as_str().unwrap()].clone());
        edges.entry(from).or_default().extend(all_to);
    }
    edges
}

fn name(package: &Value) -> String {
    package["name"].as_str().unwrap().to_owned()
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn the_workspace_has_only_the_edges_of_the_design() {
    let edges = own_edges(&metadata(&["--no-deps"]));
    assert_eq!(forbidden_edges(&edges), Vec::<String>::new());
    let known: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    let present: BTreeSet<&str> = edges.keys().map(String::as_str).collect();
    assert_eq!(present, known, "packages of the workspace against those of the table");
}

/// The packages of ours that take tokio without any of its features: its I/O traits.
fn users_of_io_traits(metadata: &Value) -> BTreeSet<String> {
    let is_bare = |dependency: &Value| {
        dependency["name"] == "tokio"
            && dependency["uses_default_features"] == false
            && dependency["features"].as_array().unwrap().is_empty()
    };
    let packages = metadata["packages"].as_array().unwrap();
    let bare = packages
        .iter()
        .filter(|package| package["dependencies"].as_array().unwrap().iter().any(is_bare));
    bare.map(name).collect()
}

#[test]
fn the_data_planes_reach_no_other_runtime() {
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut edges = normal_edges(&metadata(&["--filter-platform", &host]));
    assert!(path(&edges, "control", "tokio").is_some(), "the graph must hold what is looked for");
    let ours = users_of_io_traits(&metadata(&["--no-deps"]));
    for user in ours.iter().map(String::as_str).chain(IO_TRAIT_USERS.iter().copied()) {
        edges.get_mut(user).unwrap().remove("tokio");
    }
    assert!(edges[QUIC].contains("tokio") && edges["kvstore"].contains(QUIC));
    let quic = [QUIC, "kvstore"];
    for user in quic {
        edges.get_mut(user).unwrap().remove("tokio");
    }
    assert_eq!(runtime_paths(&edges), Vec::<String>::new());
}

#[test]
fn the_data_planes_name_nothing_of_tokio_but_its_io_traits() {
    let mut excepted = 0;
    for package in DATA_PLANES {
        // The client's folder is in the daemon's.
        let folder = if *package == "kvclient" { "kvstore/client" } else { package };
        let mut files = Vec::new();
        rust_files(&root().join(folder).join("src"), &mut files);
        for file in files {
            let source = std::fs::read_to_string(&file).unwrap();
            let name = file.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            let named = beyond_io_traits(&source);
            if QUIC_FILES.iter().any(|excepted| name.starts_with(excepted)) {
                excepted += usize::from(named.is_some());
                continue;
            }
            assert_eq!(named, None, "{name}");
        }
    }
    assert!(excepted > 0, "the exception for QUIC is of use no more");
}

/// The first place where `source` names tokio or quinn, but for tokio's I/O traits.
fn beyond_io_traits(source: &str) -> Option<usize> {
    let tokio = source
        .match_indices("tokio::")
        .find(|(at, _)| !source[*at..].starts_with("tokio::io::{AsyncRead, AsyncWrite, ReadBuf}"));
    tokio.or_else(|| source.match_indices("quinn::").next()).map(|(at, _)| at)
}

#[test]
fn a_runtime_named_outside_its_files_is_found() {
    assert_eq!(beyond_io_traits("use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};"), None);
    assert_eq!(beyond_io_traits("use tokio::net::UdpSocket;"), Some(4));
    assert_eq!(beyond_io_traits("quinn::Endpoint"), Some(0));
}

#[test]
fn the_agent_knows_nothing_of_control_but_its_api() {
    let mut files = Vec::new();
    rust_files(&root().join("agent"), &mut files);
    assert!(files.len() > 3, "{files:?}");
    for file in files {
        let found = control_beyond_api(&std::fs::read_to_string(&file).unwrap());
        assert!(found.is_empty(), "{}: {found:?}", file.display());
    }
}

fn edges(pairs: &[(&str, &str)]) -> Edges {
    let mut edges = Edges::new();
    for (from, to) in pairs {
        edges.entry((*from).to_owned()).or_default().insert((*to).to_owned());
    }
    edges
}

#[test]
fn an_added_edge_is_found() {
    let mut real = own_edges(&metadata(&["--no-deps"]));
    assert_eq!(forbidden_edges(&real), Vec::<String>::new());
    real.get_mut("router").unwrap().insert("control".to_owned());
    assert_eq!(forbidden_edges(&real), ["router -> control"]);
    for (from, to) in [
        ("router", "kvstore"),
        ("kvstore", "router"),
        ("dataplane", "rdma"),
        ("control", "agent"),
        ("router", "rdma"),
        ("xtask", "dataplane"),
    ] {
        assert_eq!(forbidden_edges(&edges(&[(from, to)])), [format!("{from} -> {to}")]);
    }
    assert_eq!(forbidden_edges(&edges(&[("common", "dataplane")])), ["common is not in the table"]);
}

#[test]
fn a_runtime_reached_through_others_is_found() {
    let indirect = edges(&[("router", "a"), ("a", "b"), ("b", "tokio"), ("agent", "hyper")]);
    assert_eq!(runtime_paths(&indirect), ["router -> a -> b -> tokio"]);
    assert_eq!(runtime_paths(&edges(&[("a", "b"), ("b", "a"), ("router", "a")])), [""; 0]);
}

#[test]
fn a_path_into_control_is_found() {
    assert!(control_beyond_api("use control::api::Deployment;\n// control::store\n").is_empty());
    assert!(control_beyond_api("use crate::control::thing;").is_empty());
    assert_eq!(control_beyond_api("    control::store::open();"), ["control::store::open();"]);
    assert_eq!(control_beyond_api("use control::{api, store};"), ["use control::{api, store};"]);
    assert_eq!(control_beyond_api("use control::api_v2;"), ["use control::api_v2;"]);
}
