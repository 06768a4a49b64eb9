//! Memory nodes: whether each shard's memory will lie beside its core.
//!
//! A shard makes its memory resident itself, and the kernel takes pages from the node that the asking
//! thread runs on, so all there is to do is to keep the thread there. It decides what to say of a
//! configuration that does not; it moves no memory and pins nothing.

/// Where the kernel lists the nodes that are there.
pub const ONLINE: &str = "/sys/devices/system/node/online";

/// What to warn of: shards that may wander between the `online` nodes, away from their memory.
pub fn warning(online: &str, cpus: &[usize]) -> Option<String> {
    let nodes = count(online)?;
    (nodes > 1 && cpus.is_empty()).then(|| {
        format!(
            "the machine has {nodes} memory nodes and kv.cpus is empty: shards may run far from their \
             memory; name a CPU for each core (lscpu lists the CPUs of each node)"
        )
    })
}

/// How many numbers a list such as `0-1,4` names; none if it is not such a list.
fn count(list: &str) -> Option<usize> {
    list.trim().split(',').try_fold(0, |count, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)?.checked_add(count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shards_that_may_wander_between_nodes_are_warned_of() {
        assert_eq!(warning("0\n", &[]), None);
        assert_eq!(warning("0-1\n", &[0, 32]), None);
        assert!(warning("0-1\n", &[]).is_some_and(|said| said.contains("2 memory nodes")));
        assert_eq!(warning("", &[]), None);
    }

    #[test]
    fn lists_of_the_kernel_are_counted_and_nothing_else_is() {
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("0-1,4,6-7"), Some(5));
        for wrong in ["", "a", "3-1", "0-", "-", "1,,2"] {
            assert_eq!(count(wrong), None, "{wrong}");
        }
    }
}
