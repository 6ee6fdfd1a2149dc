//! Statistics of version 2. Each controller may be missing: a delegated cgroup has only some, and beside version 1
//! there are none.

use libcgroups::stats::{
    BlkioDeviceStat, BlkioStats, CpuStats, HugeTlbStats, MemoryData, MemoryStats, PidStats, Stats,
};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

pub fn stats(dir: &Path) -> Stats {
    Stats { cpu: cpu(dir), memory: memory(dir), pids: pids(dir), blkio: io(dir), hugetlb: hugepages(dir) }
}

fn read(dir: &Path, file: &str) -> String {
    fs::read_to_string(dir.join(file)).unwrap_or_default()
}

/// A number; `max` is the largest. `None`: there is no such file.
fn number(dir: &Path, file: &str) -> Option<u64> {
    let text = fs::read_to_string(dir.join(file)).ok()?;
    Some(text.trim().parse().unwrap_or(u64::MAX))
}

/// Lines of a name and a number.
fn table(dir: &Path, file: &str) -> HashMap<String, u64> {
    let text = read(dir, file);
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(name, value)| Some((name.to_string(), value.trim().parse().ok()?))).collect()
}

fn cpu(dir: &Path) -> CpuStats {
    let values = table(dir, "cpu.stat");
    let value = |name: &str| values.get(name).copied().unwrap_or(0);
    let ns = |name: &str| value(name).saturating_mul(1000);
    let mut cpu = CpuStats::default();
    cpu.usage.usage_total = ns("usage_usec");
    cpu.usage.usage_user = ns("user_usec");
    cpu.usage.usage_kernel = ns("system_usec");
    cpu.throttling.periods = value("nr_periods");
    cpu.throttling.throttled_periods = value("nr_throttled");
    cpu.throttling.throttled_time = ns("throttled_usec");
    cpu
}

fn memory(dir: &Path) -> MemoryStats {
    let data = |prefix: &str, failures: &str| MemoryData {
        usage: number(dir, &format!("{prefix}.current")).unwrap_or(0),
        max_usage: number(dir, &format!("{prefix}.peak")).unwrap_or(0),
        fail_count: table(dir, &format!("{prefix}.events")).get(failures).copied().unwrap_or(0),
        limit: number(dir, &format!("{prefix}.max")).unwrap_or(0),
    };
    let stats = table(dir, "memory.stat");
    MemoryStats {
        memory: data("memory", "max"),
        memswap: data("memory.swap", "fail"),
        cache: stats.get("file").copied().unwrap_or(0),
        hierarchy: true,
        stats,
        ..MemoryStats::default()
    }
}

fn pids(dir: &Path) -> PidStats {
    let limit = number(dir, "pids.max").filter(|limit| *limit != u64::MAX).unwrap_or(0);
    PidStats { current: number(dir, "pids.current").unwrap_or(0), limit }
}

/// Lines of `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn io(dir: &Path) -> BlkioStats {
    let mut stats = BlkioStats::default();
    for line in read(dir, "io.stat").lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match name {
                "rbytes" => (&mut stats.service_bytes, "Read"),
                "wbytes" => (&mut stats.service_bytes, "Write"),
                "rios" => (&mut stats.serviced, "Read"),
                "wios" => (&mut stats.serviced, "Write"),
                _ => continue,
            };
            if let Ok(value) = value.parse() {
                list.push(BlkioDeviceStat { major, minor, op_type: Some(op.to_string()), value });
            }
        }
    }
    stats
}

fn hugepages(dir: &Path) -> HashMap<String, HugeTlbStats> {
    let sizes = libcgroups::stats::supported_page_sizes().unwrap_or_default();
    let of = |size: &str| {
        let usage = number(dir, &format!("hugetlb.{size}.current"))?;
        let fail_count = table(dir, &format!("hugetlb.{size}.events")).get("max").copied().unwrap_or(0);
        Some(HugeTlbStats { usage, max_usage: 0, fail_count })
    };
    sizes.into_iter().filter_map(|size| of(&size).map(|stats| (size, stats))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files() {
        let dir = std::env::temp_dir().join(format!("runsc-rs-v2-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(stats(&dir).memory.memory, MemoryData::default());
        let write = |file: &str, text: &str| fs::write(dir.join(file), text).unwrap();
        write("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 1\n");
        write("memory.current", "4096\n");
        write("memory.max", "max\n");
        write("memory.stat", "anon 1\nfile 2\n");
        write("pids.current", "3\n");
        write("pids.max", "max\n");
        write("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5\nx\n");
        let all = stats(&dir);
        assert_eq!((all.cpu.usage.usage_total, all.cpu.throttling.periods), (5000, 1));
        assert_eq!((all.memory.memory.usage, all.memory.memory.limit, all.memory.cache), (4096, u64::MAX, 2));
        assert_eq!((all.pids.current, all.pids.limit), (3, 0));
        assert_eq!((all.blkio.service_bytes.len(), all.blkio.serviced[1].value), (2, 4));
        fs::remove_dir_all(&dir).unwrap();
    }
}
