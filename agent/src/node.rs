//! What the agent says of the machine it runs on: name, cores, memory.

/// Name of a node whose host name cannot be read.
const HOSTNAME_UNKNOWN: &str = "localhost";

/// The host name, as the kernel knows it.
pub fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => HOSTNAME_UNKNOWN.to_owned(),
        name => name.to_owned(),
    }
}

/// Cores this process may use.
pub fn cpu_cores() -> u32 {
    std::thread::available_parallelism()
        .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
}

/// Memory of the machine; 0 where it cannot be read.
pub fn memory_bytes() -> u64 {
    memory_total(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn memory_total(meminfo: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_kib() {
        assert_eq!(memory_total("MemTotal:        2048 kB\nMemFree: 1 kB\n"), 2048 * 1024);
        assert_eq!(memory_total("nothing"), 0);
        assert!(memory_bytes() > 0 && cpu_cores() > 0);
    }
}
