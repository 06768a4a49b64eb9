//! The configuration read again while the router runs (SIGHUP): what may change without a restart is
//! taken over, and what else changed is named.
//!
//! Taken over: `[router.score_weights]` and `temperature` and `session_affinity` of `[router.routing]`.
//! Keys and certificates have a look-out of their own. Reading the file and the signal are the process's.

use serde_json::Value;

use crate::cluster::Cluster;
use crate::config::Config;
use crate::steering::Preset;

/// What a reload did.
#[derive(Clone, Debug, PartialEq)]
pub struct Reloaded {
    /// Whether anything in force is another now.
    pub has_changed: bool,
    /// Keys that changed and need a restart.
    pub need_restart: Vec<String>,
}

/// Takes over what may be taken over of `fresh`, and notes it in `running`.
pub fn take(cluster: &Cluster, running: &mut Config, fresh: &Config) -> Reloaded {
    let preset = Preset::of(&fresh.router);
    let has_changed = preset != Preset::of(&running.router);
    running.router.score_weights = preset.weights;
    running.router.routing.temperature = preset.temperature;
    running.router.routing.session_affinity = preset.affinity;
    cluster.set_preset(preset);
    Reloaded { has_changed, need_restart: differences(running, fresh) }
}

/// The keys in which two configurations differ, with their sections.
fn differences(one: &Config, other: &Config) -> Vec<String> {
    let mut found = Vec::new();
    let value = |config: &Config| serde_json::to_value(&config.router).unwrap_or_default();
    compare("router", &value(one), &value(other), &mut found);
    let lists = [
        ("workers", format!("{:?}", one.workers) != format!("{:?}", other.workers)),
        ("models", format!("{:?}", one.models) != format!("{:?}", other.models)),
        ("tenants", format!("{:?}", one.tenants) != format!("{:?}", other.tenants)),
    ];
    found.extend(lists.into_iter().filter(|(_, differ)| *differ).map(|(name, _)| name.to_owned()));
    found
}

fn compare(key: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let both = one.keys().chain(other.keys().filter(|name| !one.contains_key(*name)));
            for name in both {
                let of = |table: &serde_json::Map<String, Value>| {
                    table.get(name).cloned().unwrap_or_default()
                };
                compare(&format!("{key}.{name}"), &of(one), &of(other), found);
            }
        }
        _ if one == other => {}
        _ => found.push(key.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;

    const WORKER: &str = "[[workers]]\nurl = \"http://127.0.0.1:8001\"\nmodel = \"m\"\nkind = \"llama_cpp\"\nslots = 2\n";

    fn config(text: &str) -> Config {
        Config::from_text(Path::new("router.toml"), &format!("{text}\n{WORKER}")).unwrap()
    }

    #[test]
    fn rules_are_taken_over_and_the_rest_is_named() {
        let mut running = config("");
        let cluster = Cluster::new(&running.router, Arc::default());
        let same = take(&cluster, &mut running, &config(""));
        assert_eq!(same, Reloaded { has_changed: false, need_restart: Vec::new() });

        let weights = "[router.score_weights]\nkv = 1.0\nload = 0.0\npower = 0.0\ncapacity = 0.0\n";
        let rules = format!(
            "[router.routing]\ntemperature = 0.5\nsession_affinity = 0.0\nsessions_max = 9\n{weights}"
        );
        let mut fresh = config(&format!("[router]\ncores = 3\n{rules}"));
        fresh.workers[0].slots = 9;
        let taken = take(&cluster, &mut running, &fresh);
        assert!(taken.has_changed);
        let named = ["router.cores", "router.routing.sessions_max", "workers"];
        assert_eq!(taken.need_restart, named);
        let preset = cluster.preset();
        assert_eq!((preset.weights.kv, preset.temperature, preset.affinity), (1.0, 0.5, 0.0));
        // They still wait for the restart when it is read once more.
        let again = take(&cluster, &mut running, &fresh);
        assert_eq!((again.has_changed, again.need_restart.len()), (false, 3));
    }

    #[test]
    fn a_key_that_is_not_set_any_more_is_named_too() {
        let mut running = config("[router]\nhandover_socket = \"/run/h.sock\"");
        let cluster = Cluster::new(&running.router, Arc::default());
        let taken = take(&cluster, &mut running, &config(""));
        assert_eq!(taken.need_restart, ["router.handover_socket"]);
    }
}
