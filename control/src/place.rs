//! Which node runs which replica. A pure function: equal arguments give equal placements.
//!
//! * A replica stays where it is while its node is attached or was lost only a moment ago.
//! * Others go to attached nodes: first where fewest replicas of the same deployment are, then
//!   where fewest replicas of all are, then where it is seen running already, then by name.
//! * Nothing moves for the sake of balance: a moved replica has lost its KV cache.

use std::collections::BTreeMap;

/// One replica of one deployment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaKey {
    /// Name of the deployment.
    pub deployment: String,
    /// Counted from 0.
    pub replica: u32,
}

/// Where each placed replica is: the value names a node.
pub type Placement = BTreeMap<ReplicaKey, String>;

/// Whether a node may be given replicas or only keep them. A node lost for longer has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Reports; may be given replicas.
    Attached,
    /// Lost a moment ago; keeps what it has.
    Missed,
}

/// The new placement of `wanted` (deployment → replicas) on `nodes`, given the one `before`.
///
/// `is_running(node, key)` says whether the node was seen running that replica.
pub fn place(
    wanted: &BTreeMap<String, u32>,
    nodes: &BTreeMap<String, Standing>,
    before: &Placement,
    is_running: impl Fn(&str, &ReplicaKey) -> bool,
) -> Placement {
    let is_wanted =
        |key: &ReplicaKey| wanted.get(&key.deployment).is_some_and(|n| key.replica < *n);
    let mut placement: Placement = before
        .iter()
        .filter(|(key, node)| is_wanted(key) && nodes.contains_key(*node))
        .map(|(key, node)| (key.clone(), node.clone()))
        .collect();
    let mut load: BTreeMap<&str, u32> = BTreeMap::new();
    let mut load_of: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for (key, node) in before.iter().filter(|(key, _)| placement.contains_key(*key)) {
        *load.entry(node).or_default() += 1;
        *load_of.entry((node, &key.deployment)).or_default() += 1;
    }
    for (deployment, replicas) in wanted {
        for replica in 0..*replicas {
            let key = ReplicaKey { deployment: deployment.clone(), replica };
            if placement.contains_key(&key) {
                continue;
            }
            let attached = nodes.iter().filter(|(_, standing)| **standing == Standing::Attached);
            let Some((node, _)) = attached.min_by_key(|(node, _)| {
                let same = load_of.get(&(node.as_str(), deployment.as_str())).copied();
                let all = load.get(node.as_str()).copied();
                (same.unwrap_or(0), all.unwrap_or(0), !is_running(node, &key))
            }) else {
                return placement;
            };
            *load.entry(node).or_default() += 1;
            *load_of.entry((node, deployment)).or_default() += 1;
            placement.insert(key, node.clone());
        }
    }
    placement
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted() -> impl Strategy<Value = BTreeMap<String, u32>> {
        prop::collection::btree_map("[a-d]", 0u32..9, 0..4)
    }

    fn nodes() -> impl Strategy<Value = BTreeMap<String, Standing>> {
        let standing = prop_oneof![Just(Standing::Attached), Just(Standing::Missed)];
        prop::collection::btree_map("n[1-5]", standing, 0..5)
    }

    fn count(placement: &Placement, node: &str, deployment: &str) -> usize {
        placement.iter().filter(|(key, at)| *at == node && key.deployment == deployment).count()
    }

    fn fresh(wanted: &BTreeMap<String, u32>, nodes: &BTreeMap<String, Standing>) -> Placement {
        place(wanted, nodes, &Placement::new(), |_, _| false)
    }

    proptest! {
        #[test]
        fn each_wanted_replica_is_placed_once_if_any_node_is_attached(
            first in wanted(), then in wanted(), old in nodes(), new in nodes(),
        ) {
            let before = fresh(&first, &old);
            let after = place(&then, &new, &before, |_, _| false);
            for (key, node) in &after {
                prop_assert!(key.replica < then.get(&key.deployment).copied().unwrap_or(0));
                prop_assert!(new.contains_key(node));
            }
            if new.values().any(|standing| *standing == Standing::Attached) {
                prop_assert_eq!(after.len(), then.values().sum::<u32>() as usize);
            }
        }

        #[test]
        fn a_replica_stays_while_its_node_is_attached_or_only_missed(
            first in wanted(), then in wanted(), old in nodes(), new in nodes(),
        ) {
            let before = fresh(&first, &old);
            let after = place(&then, &new, &before, |_, _| true);
            for (key, node) in &before {
                if key.replica < then.get(&key.deployment).copied().unwrap_or(0)
                    && new.contains_key(node)
                {
                    prop_assert_eq!(after.get(key), Some(node));
                }
            }
        }

        #[test]
        fn a_fresh_placement_is_even_for_each_deployment(wanted in wanted(), nodes in nodes()) {
            let placement = fresh(&wanted, &nodes);
            for deployment in wanted.keys() {
                let counts = nodes
                    .iter()
                    .filter(|(_, standing)| **standing == Standing::Attached)
                    .map(|(node, _)| count(&placement, node, deployment));
                let counts: Vec<usize> = counts.collect();
                let (least, most) = (counts.iter().min(), counts.iter().max());
                prop_assert!(most.copied().unwrap_or(0) - least.copied().unwrap_or(0) <= 1);
            }
        }

        #[test]
        fn a_missed_node_is_given_nothing_new(wanted in wanted(), nodes in nodes()) {
            for node in fresh(&wanted, &nodes).values() {
                prop_assert_eq!(nodes[node], Standing::Attached);
            }
        }

        #[test]
        fn placing_again_changes_nothing(wanted in wanted(), nodes in nodes()) {
            let placement = fresh(&wanted, &nodes);
            prop_assert_eq!(place(&wanted, &nodes, &placement, |_, _| true), placement);
        }
    }

    #[test]
    fn single_replicas_of_many_deployments_spread_over_the_nodes() {
        let wanted =
            BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1), ("c".to_owned(), 2)]);
        let nodes = BTreeMap::from([
            ("n1".to_owned(), Standing::Attached),
            ("n2".to_owned(), Standing::Attached),
        ]);
        let placement = fresh(&wanted, &nodes);
        for node in nodes.keys() {
            assert_eq!(placement.values().filter(|at| *at == node).count(), 2);
        }
    }

    #[test]
    fn among_equals_the_node_that_runs_it_already_gets_it() {
        let wanted = BTreeMap::from([("a".to_owned(), 1)]);
        let nodes = BTreeMap::from([
            ("n1".to_owned(), Standing::Attached),
            ("n2".to_owned(), Standing::Attached),
        ]);
        let placement = place(&wanted, &nodes, &Placement::new(), |node, _| node == "n2");
        assert_eq!(placement.values().next().map(String::as_str), Some("n2"));
    }
}
