//! Files of version 1: limits, statistics, the freezer.

use super::Dir;
use anyhow::{bail, Context, Result};
use libcgroups::stats::{
    BlkioDeviceStat, BlkioStats, CpuStats, HugeTlbStats, MemoryData, MemoryStats, PidStats, Stats,
};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxHugepageLimit, LinuxMemory, LinuxResources, LinuxThrottleDevice,
};
use std::collections::HashMap;
use std::fs;
use std::io::{Error, ErrorKind};
use std::path::Path;
use std::time::{Duration, Instant};

/// What every container may do with devices of the host, as with runc: make nodes, and open those that all systems
/// have.
const ALLOWED_DEVICES: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
    "c 10:200 rwm",
];

/// Makes a new directory fit to have processes: a cpuset begins empty.
pub fn prepare(dir: &Dir) -> Result<()> {
    if !has(dir, "cpuset") {
        return Ok(());
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        inherit(&dir.path, file, 64).with_context(|| format!("{}/{file}", dir.path.display()))?;
    }
    Ok(())
}

/// Fills the file of `dir` with its parent's value, and the parent's first.
fn inherit(dir: &Path, file: &str, depth: usize) -> std::io::Result<()> {
    if !fs::read_to_string(dir.join(file))?.trim().is_empty() {
        return Ok(());
    }
    let (Some(parent), true) = (dir.parent(), depth > 0) else { return Err(ErrorKind::NotFound.into()) };
    inherit(parent, file, depth - 1)?;
    fs::write(dir.join(file), fs::read_to_string(parent.join(file))?)
}

fn has(dir: &Dir, controller: &str) -> bool {
    dir.controllers.iter().any(|c| c == controller)
}

fn find<'a>(dirs: &'a [Dir], controller: &str) -> Option<&'a Path> {
    dirs.iter().find(|dir| has(dir, controller)).map(|dir| dir.path.as_path())
}

/// The directory of a controller that a limit needs.
fn need<'a>(dirs: &'a [Dir], controller: &str) -> Result<&'a Path> {
    match find(dirs, controller) {
        Some(dir) => Ok(dir),
        None => bail!("resources need the cgroup controller {controller}, which is not mounted"),
    }
}

fn write(dir: &Path, file: &str, value: impl ToString) -> Result<()> {
    let value = value.to_string();
    fs::write(dir.join(file), &value).with_context(|| format!("writing {value:?} to {}/{file}", dir.display()))
}

/// Writes a value that was given.
fn set(dir: &Path, file: &str, value: Option<impl ToString>) -> Result<()> {
    value.map_or(Ok(()), |value| write(dir, file, value))
}

/// Writes two values of which the kernel takes the second only after the first, or the other way round, depending on
/// those before.
fn set_pair(dir: &Path, one: (&str, Option<i64>), other: (&str, Option<i64>)) -> Result<()> {
    let first = set(dir, one.0, one.1).and_then(|()| set(dir, other.0, other.1));
    if first.is_err() && one.1.is_some() && other.1.is_some() {
        return set(dir, other.0, other.1).and_then(|()| set(dir, one.0, one.1));
    }
    first
}

pub fn apply(dirs: &[Dir], resources: &LinuxResources) -> Result<()> {
    if let Some(rules) = resources.devices() {
        devices(dirs, rules)?;
    }
    if let Some(limits) = resources.memory() {
        memory(dirs, limits)?;
    }
    if let Some(limits) = resources.cpu() {
        cpu(dirs, limits)?;
    }
    if let Some(pids) = resources.pids() {
        let limit = if pids.limit() > 0 { pids.limit().to_string() } else { "max".to_string() };
        write(need(dirs, "pids")?, "pids.max", limit)?;
    }
    if let Some(limits) = resources.block_io() {
        block_io(dirs, limits)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        hugepages(need(dirs, "hugetlb")?, limit)?;
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id() {
            write(need(dirs, "net_cls")?, "net_cls.classid", class)?;
        }
        for entry in network.priorities().iter().flatten() {
            word(entry.name())?;
            write(need(dirs, "net_prio")?, "net_prio.ifpriomap", format!("{} {}", entry.name(), entry.priority()))?;
        }
    }
    for (device, limit) in resources.rdma().iter().flatten() {
        word(device)?;
        let number = |n: Option<u32>| n.map_or("max".to_string(), |n| n.to_string());
        let (handles, objects) = (number(limit.hca_handles()), number(limit.hca_objects()));
        write(need(dirs, "rdma")?, "rdma.max", format!("{device} hca_handle={handles} hca_object={objects}"))?;
    }
    if resources.unified().as_ref().is_some_and(|unified| !unified.is_empty()) {
        bail!("unified resources need a host with cgroups of version 2 alone");
    }
    Ok(())
}

/// Names that become part of a line, or of a file's name, must not become more.
fn word(text: &str) -> Result<()> {
    if text.is_empty()
        || text.starts_with('.')
        || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/')
    {
        bail!("resources: {text:?} is not a name");
    }
    Ok(())
}

fn memory(dirs: &[Dir], limits: &LinuxMemory) -> Result<()> {
    if *limits == LinuxMemory::default() {
        return Ok(());
    }
    let dir = need(dirs, "memory")?;
    let given = |value: Option<i64>| value.filter(|v| *v != 0);
    let limit = given(limits.limit());
    // No limit of memory alone makes no sense with one of memory and swap; where swap is not accounted for there is
    // none to lift.
    let memsw = "memory.memsw.limit_in_bytes";
    let lifted = if limit == Some(-1) && dir.join(memsw).exists() { Some(-1) } else { None };
    let swap = given(limits.swap()).or(lifted);
    set_pair(dir, ("memory.limit_in_bytes", limit), (memsw, swap))?;
    set(dir, "memory.soft_limit_in_bytes", given(limits.reservation()))?;
    set(dir, "memory.kmem.tcp.limit_in_bytes", given(limits.kernel_tcp()))?;
    #[allow(deprecated)]
    if limits.kernel().is_some() {
        log::warn!("memory.kernel has no effect: the kernel has no such limit any more");
    }
    if let Some(disable) = limits.disable_oom_killer() {
        write(dir, "memory.oom_control", u8::from(disable))?;
    }
    match limits.swappiness() {
        Some(value) if value > 100 => bail!("invalid swappiness value {value}: valid range is 0-100"),
        value => set(dir, "memory.swappiness", value),
    }
}

fn cpu(dirs: &[Dir], limits: &LinuxCpu) -> Result<()> {
    let positive = |value: Option<u64>| value.filter(|v| *v != 0);
    let nonzero = |value: Option<i64>| value.filter(|v| *v != 0);
    let signed = |value: Option<u64>| value.and_then(|v| i64::try_from(v).ok());
    let mut bare = limits.clone();
    bare.set_cpus(None).set_mems(None);
    if bare != LinuxCpu::default() {
        let dir = need(dirs, "cpu")?;
        set(dir, "cpu.shares", positive(limits.shares()))?;
        let period = ("cpu.cfs_period_us", signed(positive(limits.period())));
        set_pair(dir, period, ("cpu.cfs_quota_us", nonzero(limits.quota())))?;
        set(dir, "cpu.cfs_burst_us", limits.burst())?;
        let period = ("cpu.rt_period_us", signed(positive(limits.realtime_period())));
        set_pair(dir, period, ("cpu.rt_runtime_us", nonzero(limits.realtime_runtime())))?;
        set(dir, "cpu.idle", limits.idle())?;
    }
    for (file, value) in [("cpuset.cpus", limits.cpus()), ("cpuset.mems", limits.mems())] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            write(need(dirs, "cpuset")?, file, value)?;
        }
    }
    Ok(())
}

/// Rules for devices of the host. A guest cannot open any, so that they confine the sandbox's own processes; where the
/// caller may not set them (in a container, say), nothing is lost.
fn devices(dirs: &[Dir], rules: &[LinuxDeviceCgroup]) -> Result<()> {
    let Some(dir) = find(dirs, "devices") else { return Ok(()) };
    let lines = rules.iter().map(|rule| (rule.allow(), rule.to_string()));
    let lines = lines.chain(ALLOWED_DEVICES.map(|rule| (true, rule.to_string())));
    for (allow, rule) in lines {
        let file = if allow { "devices.allow" } else { "devices.deny" };
        match fs::write(dir.join(file), &rule) {
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                log::info!("rules for devices are not set: {e}");
                return Ok(());
            }
            r => r.with_context(|| format!("writing {rule:?} to {}/{file}", dir.display()))?,
        }
    }
    Ok(())
}

fn block_io(dirs: &[Dir], limits: &LinuxBlockIo) -> Result<()> {
    if *limits == LinuxBlockIo::default() {
        return Ok(());
    }
    let dir = need(dirs, "blkio")?;
    // The name depends on the I/O scheduler.
    let weight = |plain: &'static str, bfq: &'static str| if dir.join(plain).exists() { plain } else { bfq };
    set(dir, weight("blkio.weight", "blkio.bfq.weight"), limits.weight().filter(|w| *w != 0))?;
    set(dir, "blkio.leaf_weight", limits.leaf_weight().filter(|w| *w != 0))?;
    for device in limits.weight_device().iter().flatten() {
        let line = |value: u16| format!("{}:{} {value}", device.major(), device.minor());
        let file = weight("blkio.weight_device", "blkio.bfq.weight_device");
        set(dir, file, device.weight().map(line))?;
        set(dir, "blkio.leaf_weight_device", device.leaf_weight().map(line))?;
    }
    let throttle = |file: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        devices.iter().flatten().try_for_each(|d| write(dir, file, format!("{}:{} {}", d.major(), d.minor(), d.rate())))
    };
    throttle("blkio.throttle.read_bps_device", limits.throttle_read_bps_device())?;
    throttle("blkio.throttle.write_bps_device", limits.throttle_write_bps_device())?;
    throttle("blkio.throttle.read_iops_device", limits.throttle_read_iops_device())?;
    throttle("blkio.throttle.write_iops_device", limits.throttle_write_iops_device())
}

fn hugepages(dir: &Path, limit: &LinuxHugepageLimit) -> Result<()> {
    word(limit.page_size())?;
    write(dir, &format!("hugetlb.{}.limit_in_bytes", limit.page_size()), limit.limit())?;
    let reserved = format!("hugetlb.{}.rsvd.limit_in_bytes", limit.page_size());
    match dir.join(&reserved).exists() {
        true => write(dir, &reserved, limit.limit()),
        false => Ok(()),
    }
}

/// Stops or continues the processes of the freezer's directory, and waits until it is done.
pub fn freeze(dirs: &[Dir], frozen: bool) -> Result<()> {
    let dir = need(dirs, "freezer")?;
    let wanted = if frozen { "FROZEN" } else { "THAWED" };
    let start = Instant::now();
    loop {
        write(dir, "freezer.state", wanted)?;
        let state = fs::read_to_string(dir.join("freezer.state")).context("freezer.state")?;
        if state.trim() == wanted {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(2) {
            // Half frozen is the worst of all.
            write(dir, "freezer.state", "THAWED")?;
            bail!("the container's processes cannot be frozen");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn number(dir: &Path, file: &str) -> std::io::Result<u64> {
    let text = fs::read_to_string(dir.join(file))?;
    // Limits that are lifted may be negative or a word.
    Ok(text.trim().parse().unwrap_or(u64::MAX))
}

/// Lines of a name and a number.
fn table(dir: &Path, file: &str) -> std::io::Result<HashMap<String, u64>> {
    let text = fs::read_to_string(dir.join(file))?;
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs.filter_map(|(name, value)| Some((name.to_string(), value.trim().parse().ok()?))).collect())
}

pub fn stats(dirs: &[Dir]) -> Result<Stats> {
    let mut stats = Stats::default();
    let of = |controller: &str| find(dirs, controller);
    if let Some(dir) = of("cpuacct") {
        cpu_usage(dir, &mut stats.cpu).context("cpuacct")?;
    }
    if let Some(dir) = of("cpu") {
        let values = table(dir, "cpu.stat").context("cpu.stat")?;
        let value = |name: &str| values.get(name).copied().unwrap_or(0);
        stats.cpu.throttling.periods = value("nr_periods");
        stats.cpu.throttling.throttled_periods = value("nr_throttled");
        stats.cpu.throttling.throttled_time = value("throttled_time");
    }
    if let Some(dir) = of("pids") {
        let limit = number(dir, "pids.max").context("pids.max")?;
        let current = number(dir, "pids.current").context("pids.current")?;
        stats.pids = PidStats { current, limit: if limit == u64::MAX { 0 } else { limit } };
    }
    if let Some(dir) = of("memory") {
        stats.memory = memory_stats(dir).context("memory")?;
    }
    if let Some(dir) = of("blkio") {
        stats.blkio = block_io_stats(dir);
    }
    if let Some(dir) = of("hugetlb") {
        stats.hugetlb = hugepage_stats(dir);
    }
    Ok(stats)
}

fn cpu_usage(dir: &Path, cpu: &mut CpuStats) -> std::io::Result<()> {
    // In ticks of 10 ms, as all interfaces to user space have them.
    const TICK: u64 = 10_000_000;
    let usage = &mut cpu.usage;
    let values = table(dir, "cpuacct.stat")?;
    let ticks = |name: &str| values.get(name).copied().unwrap_or(0).saturating_mul(TICK);
    (usage.usage_user, usage.usage_kernel) = (ticks("user"), ticks("system"));
    usage.usage_total = number(dir, "cpuacct.usage")?;
    let cores = fs::read_to_string(dir.join("cpuacct.usage_percpu"))?;
    usage.per_core_usage_total = cores.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // A head, then a line for each core: its number, user, system.
    let all = fs::read_to_string(dir.join("cpuacct.usage_all")).unwrap_or_default();
    for line in all.lines().skip(1) {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        if let [_, user, system] = numbers[..] {
            usage.per_core_usage_user.push(user);
            usage.per_core_usage_kernel.push(system);
        }
    }
    Ok(())
}

fn memory_stats(dir: &Path) -> std::io::Result<MemoryStats> {
    let data = |prefix: &str| -> std::io::Result<MemoryData> {
        let value = |file: &str| number(dir, &format!("{prefix}.{file}"));
        Ok(MemoryData {
            usage: value("usage_in_bytes")?,
            max_usage: value("max_usage_in_bytes")?,
            fail_count: value("failcnt")?,
            limit: value("limit_in_bytes")?,
        })
    };
    // Kernels are built without some of these.
    let optional = |prefix: &str| match data(prefix) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(MemoryData::default()),
        r => r,
    };
    let stats = table(dir, "memory.stat")?;
    Ok(MemoryStats {
        memory: data("memory")?,
        memswap: optional("memory.memsw")?,
        kernel: optional("memory.kmem")?,
        kernel_tcp: optional("memory.kmem.tcp")?,
        cache: stats.get("cache").copied().unwrap_or(0),
        hierarchy: number(dir, "memory.use_hierarchy").is_ok_and(|n| n == 1),
        stats,
        ..MemoryStats::default()
    })
}

fn block_io_stats(dir: &Path) -> BlkioStats {
    let first = |files: [&str; 2]| {
        files.iter().map(|file| devices_table(dir, file)).find(|t| !t.is_empty()).unwrap_or_default()
    };
    BlkioStats {
        service_bytes: first(["blkio.bfq.io_service_bytes_recursive", "blkio.throttle.io_service_bytes_recursive"]),
        serviced: first(["blkio.bfq.io_serviced_recursive", "blkio.throttle.io_serviced_recursive"]),
        ..BlkioStats::default()
    }
}

/// Lines of `8:0 Read 4096`; the total at the end has no device.
fn devices_table(dir: &Path, file: &str) -> Vec<BlkioDeviceStat> {
    let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let rest: Vec<&str> = words.collect();
        let (op, value) = match rest[..] {
            [op, value] => (Some(op.to_string()), value),
            [value] => (None, value),
            _ => return None,
        };
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        Some(BlkioDeviceStat { major, minor, op_type: op, value: value.parse().ok()? })
    };
    text.lines().filter_map(line).collect()
}

fn hugepage_stats(dir: &Path) -> HashMap<String, HugeTlbStats> {
    let sizes = libcgroups::stats::supported_page_sizes().unwrap_or_default();
    let of = |size: &str| -> Result<HugeTlbStats, Error> {
        let value = |file: &str| number(dir, &format!("hugetlb.{size}.{file}"));
        Ok(HugeTlbStats {
            usage: value("usage_in_bytes")?,
            max_usage: value("max_usage_in_bytes")?,
            fail_count: value("failcnt")?,
        })
    };
    sizes.into_iter().filter_map(|size| of(&size).ok().map(|stats| (size, stats))).collect()
}
