//! `events`: what a container uses, in runc's form.

use super::cgroup::Cgroup;
use super::ordered::Json;
use crate::control::protocol::Stats;
use libcgroups::stats::{BlkioDeviceStat, BlkioStats, CpuStats, MemoryData, MemoryStats, Stats as Outside};
use std::fs;
use std::path::Path;

/// What runc shows for a limit that there is not: the largest number of whole pages.
const NO_LIMIT: u64 = 0x7fff_ffff_ffff_f000;

/// One line of `events --stats`: `{"type":"stats","id":…,"data":{…}}`. The processor time, memory and processes of the
/// container are the Sentry's figures where there are some; the rest are those of the sandbox's cgroup, if it has one.
pub fn stats_line(id: &str, inside: Option<&Stats>, cgroup: Option<&Cgroup>) -> String {
    let mut outside = match cgroup.map(Cgroup::stats) {
        Some(Ok(stats)) => stats,
        Some(Err(e)) => {
            log::warn!("{e:#}");
            Outside::default()
        }
        None => Outside::default(),
    };
    if let Some(inside) = inside {
        put(inside, &mut outside);
    }
    let cpuset = cgroup.and_then(|c| c.dirs().iter().find(|dir| dir.controllers.iter().any(|c| c == "cpuset")));
    line(id, "stats", Some(data(&outside, cpuset.map(|dir| dir.path.as_path()))))
}

/// The line for an event without data (`oom`).
pub fn event_line(id: &str, kind: &str) -> String {
    line(id, kind, None)
}

fn line(id: &str, kind: &str, data: Option<Json>) -> String {
    let mut fields = vec![("type".to_string(), kind.into()), ("id".to_string(), id.into())];
    fields.extend(data.map(|data| ("data".to_string(), data)));
    serde_json::to_string(&Json::Object(fields)).unwrap_or_default()
}

/// The container's own figures in place of the sandbox's. Those that are nought are not known.
fn put(inside: &Stats, outside: &mut Outside) {
    let total = inside.cpu_user_ns.saturating_add(inside.cpu_system_ns);
    if total > 0 {
        let usage = &mut outside.cpu.usage;
        (usage.usage_user, usage.usage_kernel) = (inside.cpu_user_ns, inside.cpu_system_ns);
        usage.usage_total = total;
        // Which core they were on is known of the sandbox alone.
        usage.per_core_usage_total.clear();
        usage.per_core_usage_user.clear();
        usage.per_core_usage_kernel.clear();
    }
    let memory = &mut outside.memory.memory;
    if inside.memory > 0 {
        memory.usage = inside.memory;
        memory.max_usage = memory.max_usage.max(inside.memory);
    }
    match inside.memory_limit {
        Some(limit) => memory.limit = limit,
        None if memory.limit == 0 => memory.limit = NO_LIMIT,
        None => {}
    }
    outside.pids.current = inside.pids;
    outside.pids.limit = inside.pids_limit.unwrap_or(0);
}

fn data(stats: &Outside, cpuset: Option<&Path>) -> Json {
    let mut pids = vec![("current", stats.pids.current.into())];
    if stats.pids.limit > 0 {
        pids.push(("limit", stats.pids.limit.into()));
    }
    let mut hugetlb: Vec<_> = stats.hugetlb.iter().collect();
    hugetlb.sort_by(|a, b| a.0.cmp(b.0));
    let hugetlb = hugetlb.into_iter().map(|(size, s)| {
        let fields = [("usage", s.usage.into()), ("max", s.max_usage.into()), ("failcnt", s.fail_count.into())];
        (size.clone(), Json::object(fields))
    });
    Json::object([
        ("cpu", cpu(&stats.cpu)),
        ("cpuset", cpuset.map_or(Json::Object(Vec::new()), self::cpuset)),
        ("memory", memory(&stats.memory)),
        ("pids", Json::fields(pids)),
        ("blkio", blkio(&stats.blkio)),
        ("hugetlb", Json::Object(hugetlb.collect())),
        ("intel_rdt", Json::Object(Vec::new())),
        ("network_interfaces", Json::Null),
    ])
}

fn numbers(list: &[u64]) -> Json {
    Json::Array(list.iter().map(|n| (*n).into()).collect())
}

fn cpu(cpu: &CpuStats) -> Json {
    let mut usage: Vec<(&str, Json)> = vec![("total", cpu.usage.usage_total.into())];
    let cores = [
        ("percpu", &cpu.usage.per_core_usage_total),
        ("percpu_kernel", &cpu.usage.per_core_usage_kernel),
        ("percpu_user", &cpu.usage.per_core_usage_user),
    ];
    usage.extend(cores.into_iter().filter(|c| !c.1.is_empty()).map(|(name, list)| (name, numbers(list))));
    usage.extend([("kernel", cpu.usage.usage_kernel.into()), ("user", cpu.usage.usage_user.into())]);
    let throttling = [
        ("periods", cpu.throttling.periods),
        ("throttledPeriods", cpu.throttling.throttled_periods),
        ("throttledTime", cpu.throttling.throttled_time),
    ];
    let throttling = throttling.into_iter().filter(|t| t.1 > 0).map(|(name, n)| (name, n.into()));
    Json::object([("usage", Json::fields(usage)), ("throttling", Json::fields(throttling.collect()))])
}

/// The cpuset of version 1.
fn cpuset(dir: &Path) -> Json {
    let text = |file: &str| fs::read_to_string(dir.join(format!("cpuset.{file}"))).unwrap_or_default();
    let number = |file: &str| Json::from(text(file).trim().parse::<i64>().unwrap_or(0));
    let list = |file: &str| numbers(&ranges(text(file).trim()));
    Json::object([
        ("cpus", list("cpus")),
        ("cpu_exclusive", number("cpu_exclusive")),
        ("mems", list("mems")),
        ("mem_hardwall", number("mem_hardwall")),
        ("mem_exclusive", number("mem_exclusive")),
        ("memory_migrate", number("memory_migrate")),
        ("memory_spread_page", number("memory_spread_page")),
        ("memory_spread_slab", number("memory_spread_slab")),
        ("memory_pressure", number("memory_pressure")),
        ("sched_load_balance", number("sched_load_balance")),
        ("sched_relax_domain_level", number("sched_relax_domain_level")),
    ])
}

/// `0-2,5` in single numbers; no machine has more than 64 Ki processors.
fn ranges(text: &str) -> Vec<u64> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            all.extend((first..=last).map(u64::from));
        }
    }
    all
}

fn memory(memory: &MemoryStats) -> Json {
    let data = |data: &MemoryData| {
        let mut fields: Vec<(&str, Json)> = vec![("limit", data.limit.into())];
        fields.extend((data.usage > 0).then(|| ("usage", data.usage.into())));
        fields.extend((data.max_usage > 0).then(|| ("max", data.max_usage.into())));
        fields.push(("failcnt", data.fail_count.into()));
        Json::fields(fields)
    };
    let mut raw: Vec<_> = memory.stats.iter().collect();
    raw.sort_by(|a, b| a.0.cmp(b.0));
    let raw = raw.into_iter().map(|(name, value)| (name.clone(), (*value).into()));
    let mut fields: Vec<(&str, Json)> = Vec::new();
    fields.extend((memory.cache > 0).then(|| ("cache", memory.cache.into())));
    fields.extend([
        ("usage", data(&memory.memory)),
        ("swap", data(&memory.memswap)),
        ("kernel", data(&memory.kernel)),
        ("kernelTCP", data(&memory.kernel_tcp)),
        ("raw", Json::Object(raw.collect())),
    ]);
    Json::fields(fields)
}

fn blkio(blkio: &BlkioStats) -> Json {
    let entry = |stat: &BlkioDeviceStat| {
        let op = stat.op_type.as_deref().unwrap_or_default();
        Json::object([
            ("major", stat.major.into()),
            ("minor", stat.minor.into()),
            ("op", op.into()),
            ("value", stat.value.into()),
        ])
    };
    let lists = [
        ("ioServiceBytesRecursive", &blkio.service_bytes),
        ("ioServicedRecursive", &blkio.serviced),
        ("ioQueueRecursive", &blkio.queued),
        ("ioServiceTimeRecursive", &blkio.service_time),
        ("ioWaitTimeRecursive", &blkio.wait_time),
        ("ioMergedRecursive", &blkio.merged),
        ("ioTimeRecursive", &blkio.time),
        ("sectorsRecursive", &blkio.sectors),
    ];
    let lists = lists.into_iter().filter(|list| !list.1.is_empty());
    Json::fields(lists.map(|(name, list)| (name, Json::Array(list.iter().map(entry).collect()))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{json, Value};

    #[test]
    fn in_runcs_form() {
        let inside =
            Stats { cpu_user_ns: 5, cpu_system_ns: 7, memory: 4096, memory_limit: None, pids: 2, pids_limit: Some(9) };
        let value: Value = serde_json::from_str(&stats_line("c", Some(&inside), None)).unwrap();
        let no_limit = NO_LIMIT;
        assert_eq!(
            value,
            json!({ "type": "stats", "id": "c", "data": {
                "cpu": { "usage": { "total": 12, "kernel": 7, "user": 5 }, "throttling": {} },
                "cpuset": {},
                "memory": {
                    "usage": { "limit": no_limit, "usage": 4096, "max": 4096, "failcnt": 0 },
                    "swap": { "limit": 0, "failcnt": 0 }, "kernel": { "limit": 0, "failcnt": 0 },
                    "kernelTCP": { "limit": 0, "failcnt": 0 }, "raw": {},
                },
                "pids": { "current": 2, "limit": 9 },
                "blkio": {}, "hugetlb": {}, "intel_rdt": {}, "network_interfaces": null,
            }})
        );
        assert_eq!(event_line("c", "oom"), r#"{"type":"oom","id":"c"}"#);
    }

    #[test]
    fn lists_of_numbers() {
        assert_eq!(ranges("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(ranges(""), [0u64; 0]);
        assert_eq!(ranges("x,3-1,99999999"), [0u64; 0]);
    }
}
