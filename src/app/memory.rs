//! How much memory this process may have.

/// Files that tell the limit of this process's control group, by version 2 and 1.
const GROUP_LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// Bytes of memory of this machine, or of the container where that has a limit; `None` where the system does not tell
/// (elsewhere than on Linux).
pub(super) fn bytes() -> Option<u64> {
    let read = |file: &str| std::fs::read_to_string(file).ok();
    let machine = read("/proc/meminfo").and_then(|text| total(&text));
    // "max", or a number beyond all memory, is no limit.
    let groups = GROUP_LIMITS.iter().filter_map(|file| read(file)?.trim().parse().ok());
    machine.into_iter().chain(groups).min()
}

/// `MemTotal` of /proc/meminfo, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_text_is_read() {
        let text = "MemFree:          123 kB\nMemTotal:       16384256 kB\n";
        assert_eq!(total(text), Some(16_384_256 * 1024));
        assert_eq!(total("MemTotal: much"), None);
        if cfg!(target_os = "linux") {
            assert!(bytes().is_some_and(|bytes| bytes > 1 << 26));
        }
    }
}
