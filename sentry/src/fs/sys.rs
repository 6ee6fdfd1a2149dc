//! A small sysfs: what programs look at to learn of processors, memory, and the loopback device.

use super::proc::cpu;
use super::pseudo::{Entries, Put, StaticDir, Super, Symlink, TextFile, SYSFS_MAGIC};
use super::types::Inode;
use crate::kernel::Kernel;
use std::collections::BTreeMap;
use std::sync::Arc;

enum Node {
    Text(String),
    Link(String),
    Dir,
}

/// Entries by path; directories above them come by themselves.
fn table(kernel: &Kernel) -> Vec<(String, Node)> {
    let mut t = Vec::new();
    let mut text = |path: &str, s: &str| t.push((path.to_string(), Node::Text(format!("{s}\n"))));
    let cpus = cpu::count(kernel);
    let all = if cpus == 1 { "0".to_string() } else { format!("0-{}", cpus - 1) };
    let mask = |bits: &mut dyn Iterator<Item = usize>| {
        let mut words = vec![0u64; cpus.div_ceil(32).max(1)];
        for b in bits {
            words[b / 32] |= 1 << (b % 32);
        }
        let mut out = Vec::new();
        for (i, w) in words.iter().enumerate().rev() {
            let digits = if i + 1 == words.len() { (cpus - i * 32).div_ceil(4) } else { 8 };
            out.x(*w, digits);
            if i > 0 {
                out.s(",");
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let every = mask(&mut (0..cpus));
    let cpu = "devices/system/cpu";
    for name in ["online", "possible", "present"] {
        text(&format!("{cpu}/{name}"), &all);
    }
    text(&format!("{cpu}/offline"), "");
    text(&format!("{cpu}/isolated"), "");
    text(&format!("{cpu}/kernel_max"), "8191");
    text(&format!("{cpu}/smt/active"), "0");
    text(&format!("{cpu}/smt/control"), "notsupported");
    for n in 0..cpus {
        let own = mask(&mut std::iter::once(n));
        let topology = format!("{cpu}/cpu{n}/topology");
        for (name, value) in [
            ("core_id", n.to_string()),
            ("physical_package_id", "0".into()),
            ("die_id", "0".into()),
            ("core_cpus", own.clone()),
            ("core_cpus_list", n.to_string()),
            ("thread_siblings", own.clone()),
            ("thread_siblings_list", n.to_string()),
            ("core_siblings", every.clone()),
            ("core_siblings_list", all.clone()),
            ("package_cpus", every.clone()),
            ("package_cpus_list", all.clone()),
            ("die_cpus", every.clone()),
            ("die_cpus_list", all.clone()),
        ] {
            text(&format!("{topology}/{name}"), &value);
        }
        if n > 0 {
            text(&format!("{cpu}/cpu{n}/online"), "1");
        }
        for (i, c) in cpu::caches().iter().enumerate() {
            let at = format!("{cpu}/cpu{n}/cache/index{i}");
            let shared = c.level >= 3;
            text(&format!("{at}/level"), &c.level.to_string());
            text(&format!("{at}/type"), c.kind);
            text(&format!("{at}/size"), &format!("{}K", c.size >> 10));
            text(&format!("{at}/coherency_line_size"), &c.line.to_string());
            text(&format!("{at}/ways_of_associativity"), &c.ways.to_string());
            text(&format!("{at}/number_of_sets"), &c.sets.to_string());
            text(&format!("{at}/shared_cpu_map"), if shared { &every } else { &own });
            text(&format!("{at}/shared_cpu_list"), if shared { all.clone() } else { n.to_string() }.as_str());
        }
    }
    let node = "devices/system/node";
    for name in ["online", "possible", "has_cpu", "has_memory", "has_normal_memory"] {
        text(&format!("{node}/{name}"), "0");
    }
    text(&format!("{node}/node0/cpulist"), &all);
    text(&format!("{node}/node0/cpumap"), &every);
    text(&format!("{node}/node0/distance"), "10");
    let thp = "kernel/mm/transparent_hugepage";
    text(&format!("{thp}/enabled"), "always [madvise] never");
    text(&format!("{thp}/defrag"), "always defer defer+madvise [madvise] never");
    text(&format!("{thp}/shmem_enabled"), "always within_size advise [never] deny force");
    text(&format!("{thp}/hpage_pmd_size"), "2097152");
    text(&format!("{thp}/use_zero_page"), "1");
    let lo = "devices/virtual/net/lo";
    for (name, value) in [
        ("address", "00:00:00:00:00:00"),
        ("broadcast", "00:00:00:00:00:00"),
        ("addr_len", "6"),
        ("carrier", "1"),
        ("dev_id", "0x0"),
        ("flags", "0x9"),
        ("ifindex", "1"),
        ("iflink", "1"),
        ("mtu", "65536"),
        ("operstate", "unknown"),
        ("tx_queue_len", "1000"),
        ("type", "772"),
        ("uevent", "INTERFACE=lo\nIFINDEX=1"),
    ] {
        text(&format!("{lo}/{name}"), value);
    }
    for name in
        ["rx_bytes", "rx_packets", "rx_errors", "rx_dropped", "tx_bytes", "tx_packets", "tx_errors", "tx_dropped"]
    {
        text(&format!("{lo}/statistics/{name}"), "0");
    }
    t.push(("class/net/lo".into(), Node::Link("../../devices/virtual/net/lo".into())));
    for dir in [
        "block",
        "bus",
        "dev/block",
        "dev/char",
        "firmware",
        "fs/cgroup",
        "kernel/debug",
        "module",
        "power",
        "class/tty",
    ] {
        t.push((dir.into(), Node::Dir));
    }
    t
}

fn entries(sup: &Arc<Super>, rows: Vec<(String, Node)>) -> Entries {
    let mut below: BTreeMap<String, Vec<(String, Node)>> = BTreeMap::new();
    let mut entries: BTreeMap<Vec<u8>, Arc<dyn Inode>> = BTreeMap::new();
    for (path, node) in rows {
        match path.split_once('/') {
            Some((name, rest)) => below.entry(name.into()).or_default().push((rest.into(), node)),
            None => {
                let inode = match node {
                    Node::Text(t) => TextFile::fixed(sup, 0o444, t),
                    Node::Link(to) => Symlink::make(sup, to),
                    Node::Dir => StaticDir::with_mode(sup, 0o755, Vec::new()),
                };
                entries.insert(path.into(), inode);
            }
        }
    }
    for (name, rows) in below {
        let of = sup.clone();
        entries.insert(name.into(), StaticDir::lazy(sup, 0o755, move || self::entries(&of, rows)));
    }
    entries.into_iter().collect()
}

/// The sysfs of a sandbox.
pub fn new(kernel: &Arc<Kernel>) -> Arc<dyn Inode> {
    let sup = Super::new(kernel, SYSFS_MAGIC, 4096, 1);
    let of = sup.clone();
    // The table asks the processor for its caches, each question of which takes a virtual machine microseconds.
    StaticDir::lazy(&sup, 0o755, move || entries(&of, table(&of.kernel)))
}
