//! CPU time of a process as the kernel accounts it, in nanoseconds.

use std::fs;

/// Sum over all threads of `pid` (first field of `/proc/PID/task/*/schedstat`).
pub fn used_ns(pid: u32) -> Result<u64, String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_err(|e| format!("pid {pid}: {e}"))?;
    let mut sum = 0;
    for task in tasks.flatten() {
        let text = fs::read_to_string(task.path().join("schedstat")).map_err(|e| e.to_string())?;
        let field = text.split_whitespace().next().unwrap_or_default();
        sum += field.parse::<u64>().map_err(|e| format!("schedstat: {e}"))?;
    }
    Ok(sum)
}

/// The children of `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}
