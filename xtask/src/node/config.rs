//! The four configuration files of a node, as `up` writes them.

use std::fs;
use std::path::{Path, PathBuf};

use super::Ports;
use crate::cache::Cache;
use crate::failure::Failure;

/// Seconds the router may take to finish requests when the node goes down.
const DRAIN_S_MAX: u32 = 5;

/// RAM of the KV daemon: enough for the states of a few conversations with the small model, and little beside
/// a desktop's.
const KV_RAM_GIB: f32 = 0.5;
/// Its largest block: it must fit into that several times.
const KV_BLOCK_MIB_MAX: u32 = 64;

/// The KV daemon's native door.
pub fn kv_socket(cache: &Cache) -> PathBuf {
    cache.run.join("kvcached.sock")
}

/// Control's Unix socket.
pub fn socket(cache: &Cache) -> PathBuf {
    cache.run.join("control.sock")
}

/// Writes `control.toml`, `agent.toml`, `kvcached.toml` and `router.toml` into the run folder. `engine` is the key in
/// `[engines]` and the program of a real one.
pub fn write(cache: &Cache, ports: Ports, engine: Option<&(&str, PathBuf)>) -> Result<(), Failure> {
    let files = [
        ("control.toml", control(cache, ports)),
        ("agent.toml", agent(cache, ports, engine)),
        ("kvcached.toml", kvcached(cache, ports)),
        ("router.toml", router(cache, ports)),
    ];
    for (name, text) in files {
        let path = cache.run.join(name);
        fs::write(&path, text).map_err(|error| Failure::at(&path, "write", &error))?;
    }
    Ok(())
}

fn control(cache: &Cache, ports: Ports) -> String {
    format!(
        "[control]\nlisten = \"127.0.0.1:{}\"\ndata_dir = {}\nsocket = {}\n",
        ports.control,
        quoted(&cache.run.join("control-state")),
        quoted(&socket(cache)),
    )
}

fn agent(cache: &Cache, ports: Ports, engine: Option<&(&str, PathBuf)>) -> String {
    let engine = engine.map(|(key, program)| format!("{key} = {}\n", quoted(program)));
    format!(
        "[agent]\ncontrol = \"http://127.0.0.1:{}\"\nmetrics_listen = \"127.0.0.1:{}\"\n\
         events_listen = {}\nkv_socket = {}\nstate_dir = {}\nlog_dir = {}\nmodel_dir = {}\n\
         engine_port_min = {}\nengine_port_max = {}\n\n\
         [engines]\n{}sim = {}\n",
        ports.control,
        ports.agent,
        quoted(Path::new(&format!("unix:{}", cache.run.join("kv.sock").display()))),
        quoted(&kv_socket(cache)),
        quoted(&cache.run.join("agent-state")),
        quoted(&cache.run.join("logs/engines")),
        quoted(&cache.root.join("models")),
        ports.engine_min,
        ports.engine_max,
        engine.unwrap_or_default(),
        quoted(&cache.binary("cgn-sim-engine")),
    )
}

fn kvcached(cache: &Cache, ports: Ports) -> String {
    format!(
        "[kv]\nram_gib = {KV_RAM_GIB:?}\nhuge_pages = \"never\"\nuds = {}\n\
         metrics_listen = \"127.0.0.1:{}\"\nresp_listen = \"127.0.0.1:{}\"\n\n\
         [kv.limits]\nblock_mib_max = {KV_BLOCK_MIB_MAX}\n",
        quoted(&kv_socket(cache)),
        ports.kvcached,
        ports.resp,
    )
}

fn router(cache: &Cache, ports: Ports) -> String {
    format!(
        "[router]\nlisten_http = \"127.0.0.1:{}\"\nlisten_admin = \"127.0.0.1:{}\"\n\
         control_socket = {}\n\n[router.limits]\ndrain_s_max = {DRAIN_S_MAX}\n",
        ports.http,
        ports.admin,
        quoted(&socket(cache)),
    )
}

/// A path as a TOML basic string.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_paths_reach_the_files() {
        let cache = Cache {
            repository: "/clone".into(),
            root: "/cache".into(),
            target: "/cache/target".into(),
            run: "/run \"x\"".into(),
        };
        let ports = Ports::at(1000);
        let text = router(&cache, ports);
        assert!(text.contains("listen_http = \"127.0.0.1:9080\""), "{text}");
        assert!(text.contains(r#"control_socket = "/run \"x\"/control.sock""#), "{text}");
        let text = agent(&cache, ports, Some(&("llama_cpp", "/e/llama-server".into())));
        assert!(text.contains("llama_cpp = \"/e/llama-server\"\n"), "{text}");
        assert!(text.contains("engine_port_min = 19100\n"), "{text}");
        assert!(text.contains(r#"kv_socket = "/run \"x\"/kvcached.sock""#), "{text}");
        let daemon = kvcached(&cache, ports);
        assert!(daemon.contains(r#"uds = "/run \"x\"/kvcached.sock""#), "{daemon}");
        assert!(daemon.contains("ram_gib = 0.5\n"), "{daemon}");
        assert!(daemon.contains("metrics_listen = \"127.0.0.1:10092\""), "{daemon}");
        assert!(text.contains("sim = \"/cache/target/release/cgn-sim-engine\""), "{text}");
    }
}
