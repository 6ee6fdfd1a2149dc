//! From the line of `events --stats` to the metrics that containerd passes on: those of a cgroup of version 1, which
//! every client reads.

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryStat, Metrics, PidsStat, Throttle,
};
use containerd_shim_protos::protobuf::MessageField;
use serde_json::Value;

/// `line`: the whole line, of type `stats`.
pub fn metrics(line: &Value) -> Metrics {
    let data = &line["data"];
    Metrics {
        pids: MessageField::some(PidsStat {
            current: number(&data["pids"]["current"]),
            limit: number(&data["pids"]["limit"]),
            ..Default::default()
        }),
        cpu: MessageField::some(cpu(&data["cpu"])),
        memory: MessageField::some(memory(&data["memory"])),
        blkio: MessageField::some(blkio(&data["blkio"])),
        hugetlb: hugetlb(&data["hugetlb"]),
        ..Default::default()
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn cpu(cpu: &Value) -> CPUStat {
    let (usage, throttling) = (&cpu["usage"], &cpu["throttling"]);
    CPUStat {
        usage: MessageField::some(CPUUsage {
            total: number(&usage["total"]),
            kernel: number(&usage["kernel"]),
            user: number(&usage["user"]),
            per_cpu: usage["percpu"].as_array().into_iter().flatten().map(number).collect(),
            ..Default::default()
        }),
        throttling: MessageField::some(Throttle {
            periods: number(&throttling["periods"]),
            throttled_periods: number(&throttling["throttledPeriods"]),
            throttled_time: number(&throttling["throttledTime"]),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory(memory: &Value) -> MemoryStat {
    let raw = |name: &str| number(&memory["raw"][name]);
    let entry = |name: &str| {
        let entry = &memory[name];
        MessageField::some(MemoryEntry {
            limit: number(&entry["limit"]),
            usage: number(&entry["usage"]),
            max: number(&entry["max"]),
            failcnt: number(&entry["failcnt"]),
            ..Default::default()
        })
    };
    MemoryStat {
        cache: raw("cache"),
        rss: raw("rss"),
        rss_huge: raw("rss_huge"),
        mapped_file: raw("mapped_file"),
        dirty: raw("dirty"),
        writeback: raw("writeback"),
        pg_pg_in: raw("pgpgin"),
        pg_pg_out: raw("pgpgout"),
        pg_fault: raw("pgfault"),
        pg_maj_fault: raw("pgmajfault"),
        inactive_anon: raw("inactive_anon"),
        active_anon: raw("active_anon"),
        inactive_file: raw("inactive_file"),
        active_file: raw("active_file"),
        unevictable: raw("unevictable"),
        hierarchical_memory_limit: raw("hierarchical_memory_limit"),
        hierarchical_swap_limit: raw("hierarchical_memsw_limit"),
        total_cache: raw("total_cache"),
        total_rss: raw("total_rss"),
        total_rss_huge: raw("total_rss_huge"),
        total_mapped_file: raw("total_mapped_file"),
        total_dirty: raw("total_dirty"),
        total_writeback: raw("total_writeback"),
        total_pg_pg_in: raw("total_pgpgin"),
        total_pg_pg_out: raw("total_pgpgout"),
        total_pg_fault: raw("total_pgfault"),
        total_pg_maj_fault: raw("total_pgmajfault"),
        total_inactive_anon: raw("total_inactive_anon"),
        total_active_anon: raw("total_active_anon"),
        total_inactive_file: raw("total_inactive_file"),
        total_active_file: raw("total_active_file"),
        total_unevictable: raw("total_unevictable"),
        usage: entry("usage"),
        swap: entry("swap"),
        kernel: entry("kernel"),
        kernel_tcp: entry("kernelTCP"),
        ..Default::default()
    }
}

fn blkio(blkio: &Value) -> BlkIOStat {
    let entries = |name: &str| {
        let entry = |e: &Value| BlkIOEntry {
            op: e["op"].as_str().unwrap_or_default().into(),
            major: number(&e["major"]),
            minor: number(&e["minor"]),
            value: number(&e["value"]),
            ..Default::default()
        };
        blkio[name].as_array().into_iter().flatten().map(entry).collect()
    };
    BlkIOStat {
        io_service_bytes_recursive: entries("ioServiceBytesRecursive"),
        io_serviced_recursive: entries("ioServicedRecursive"),
        io_queued_recursive: entries("ioQueueRecursive"),
        io_service_time_recursive: entries("ioServiceTimeRecursive"),
        io_wait_time_recursive: entries("ioWaitTimeRecursive"),
        io_merged_recursive: entries("ioMergedRecursive"),
        io_time_recursive: entries("ioTimeRecursive"),
        sectors_recursive: entries("sectorsRecursive"),
        ..Default::default()
    }
}

fn hugetlb(hugetlb: &Value) -> Vec<HugetlbStat> {
    let stat = |(size, stat): (&String, &Value)| HugetlbStat {
        usage: number(&stat["usage"]),
        max: number(&stat["max"]),
        failcnt: number(&stat["failcnt"]),
        pagesize: size.clone(),
        ..Default::default()
    };
    hugetlb.as_object().into_iter().flatten().map(stat).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_find_their_places() {
        let line = json!({ "type": "stats", "id": "x", "data": {
            "cpu": { "usage": { "total": 5, "percpu": [2, 3], "kernel": 1, "user": 4 }, "throttling": {} },
            "memory": { "usage": { "limit": 9, "usage": 7, "failcnt": 0 }, "raw": { "rss": 6 } },
            "pids": { "current": 2 },
            "hugetlb": { "2MB": { "usage": 1, "failcnt": 0 } },
        }});
        let m = metrics(&line);
        assert_eq!((m.cpu.usage.total, m.cpu.usage.per_cpu.len()), (5, 2));
        assert_eq!((m.memory.usage.usage, m.memory.rss, m.pids.current, m.hugetlb.len()), (7, 6, 2, 1));
        // Whatever it is, it is no panic.
        metrics(&json!([1, "x"]));
    }
}
