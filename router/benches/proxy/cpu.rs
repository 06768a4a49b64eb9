//! CPU time and memory of a process and its children, as the kernel accounts them.

use std::fs;

/// CPU time of `pid` and everything below it, all threads, in nanoseconds (first field of
/// `/proc/PID/task/*/schedstat`).
pub fn used_ns(pid: u32) -> Result<u64, String> {
    let mut sum = threads_ns(pid)?;
    for child in children(pid) {
        // A child that ends between the two looks took its time with it; proxies keep theirs.
        sum += used_ns(child).unwrap_or(0);
    }
    Ok(sum)
}

fn threads_ns(pid: u32) -> Result<u64, String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_err(|e| format!("pid {pid}: {e}"))?;
    let mut sum = 0;
    for task in tasks.flatten() {
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        let field = text.split_whitespace().next().unwrap_or_default();
        sum += field.parse::<u64>().map_err(|e| format!("schedstat: {e}"))?;
    }
    Ok(sum)
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let words = |list: String| -> Vec<u32> {
        list.split_whitespace().filter_map(|child| child.parse().ok()).collect()
    };
    lists.flat_map(words).collect()
}

/// What a process holds in memory.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident set.
    pub rss_kib: u64,
    /// Its own share of it.
    pub pss_kib: u64,
}

/// `/proc/PID/smaps_rollup`. Socket buffers are the kernel's and not in it.
pub fn memory(pid: u32) -> Result<Memory, String> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
            .ok_or_else(|| format!("{path} has no {name}"))
    };
    Ok(Memory { rss_kib: field("Rss:")?, pss_kib: field("Pss:")? })
}
