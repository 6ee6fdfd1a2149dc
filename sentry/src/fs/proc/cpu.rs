//! `/proc/cpuinfo`, and how many processors there are.
//!
//! The Sentry cannot read the host's file, so the text is made from what `cpuid` says. Names and their order are those of Linux:
//! one bit of one register each.

use crate::error::Result;
use crate::fs::pseudo::Put;
use crate::kernel::Kernel;
use platform::cpuid::{cpuid, tsc};
use std::sync::OnceLock;

/// Processors of the sandbox.
pub fn count(_kernel: &Kernel) -> usize {
    crate::kernel::sched::cpu_count().max(1) as usize
}

/// Registers of `cpuid`.
const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Leaf, sub-leaf, register, and names from bit 0 on (`-`: not shown).
const WORDS: &[(u32, u32, usize, &str)] = &[
    (1, 0, EDX, "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe"),
    (0x8000_0001, 0, EDX, "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow"),
    (1, 0, ECX, "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c rdrand hypervisor"),
    (0x8000_0001, 0, ECX, "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx - -"),
    (7, 0, EBX, "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl"),
    (0xd, 1, EAX, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    (7, 1, EAX, "- - - - avx_vnni avx512_bf16 - cmpccxadd - - - - - - - - - - - - - amx_fp16 - avx_ifma - - lam"),
    (0x8000_0008, 0, EBX, "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd"),
    (6, 0, EAX, "dtherm ida arat - pln - pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req - - - - - - - hfi"),
    (7, 0, ECX, "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 - gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd"),
    (0x8000_0007, 0, EBX, "overflow_recov succor - smca"),
    (7, 0, EDX, "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect - md_clear - - - serialize - tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 - - flush_l1d arch_capabilities"),
];

fn has_leaf(leaf: u32) -> bool {
    cpuid(leaf & 0x8000_0000, 0)[EAX] >= leaf
}

/// The `flags` line.
fn flags(out: &mut Vec<u8>) {
    let tell = |out: &mut Vec<u8>, name: &str| {
        out.s(" ").s(name);
    };
    for (i, &(leaf, sub, reg, names)) in WORDS.iter().enumerate() {
        let word = if has_leaf(leaf) { cpuid(leaf, sub)[reg] } else { 0 };
        for (bit, name) in names.split(' ').enumerate() {
            if name != "-" && word >> bit & 1 != 0 {
                tell(out, name);
            }
        }
        // What Linux finds out by itself stands after the two words of the oldest flags.
        if i == 1 {
            let invariant = has_leaf(0x8000_0007) && cpuid(0x8000_0007, 0)[EDX] >> 8 & 1 != 0;
            if invariant {
                tell(out, "constant_tsc");
            }
            for name in ["rep_good", "nopl"] {
                tell(out, name);
            }
            if has_leaf(0xb) && cpuid(0xb, 0)[EBX] != 0 {
                tell(out, "xtopology");
            }
            if invariant {
                tell(out, "nonstop_tsc");
            }
            tell(out, "cpuid");
        }
    }
}

/// Text of three or four registers as characters.
fn text(regs: &[u32]) -> String {
    let bytes: Vec<u8> = regs.iter().flat_map(|r| r.to_le_bytes()).take_while(|&b| b != 0).collect();
    String::from_utf8_lossy(&bytes).trim().to_string()
}

/// Cycles per second of the time-stamp counter in kHz, against the host's clock since the first question (at start).
pub fn tsc_khz() -> u64 {
    static FIRST: OnceLock<(u64, u64)> = OnceLock::new();
    static FOUND: OnceLock<u64> = OnceLock::new();
    let &(t0, n0) = FIRST.get_or_init(|| (tsc(), platform::executor::now_ns()));
    let sample = || {
        let (t, n) = (tsc(), platform::executor::now_ns());
        let cycles = u128::from(t.saturating_sub(t0)) * 1_000_000;
        (cycles.checked_div(u128::from(n.saturating_sub(n0))).unwrap_or(0) as u64, n.saturating_sub(n0))
    };
    if let Some(&k) = FOUND.get() {
        return k;
    }
    // A hundredth of a second gives a figure good to a thousandth; what is asked sooner is less exact and not kept.
    match sample() {
        (k, span) if span > 10_000_000 => *FOUND.get_or_init(|| k),
        (k, _) => k,
    }
}

/// All but the number of the processor and its place, made once.
struct Fixed {
    head: Vec<u8>,
    tail: Vec<u8>,
}

fn fixed() -> Fixed {
    let id = cpuid(0, 0);
    let vendor = text(&[id[EBX], id[EDX], id[ECX]]);
    let sig = cpuid(1, 0);
    let (base_family, base_model) = (sig[EAX] >> 8 & 15, sig[EAX] >> 4 & 15);
    let family = if base_family == 15 { base_family + (sig[EAX] >> 20 & 0xff) } else { base_family };
    let model = if base_family >= 6 { base_model | (sig[EAX] >> 16 & 15) << 4 } else { base_model };
    let mut brand = Vec::new();
    if has_leaf(0x8000_0004) {
        for leaf in 0x8000_0002..=0x8000_0004u32 {
            brand.extend(cpuid(leaf, 0));
        }
    }
    let mut head = Vec::new();
    head.s("vendor_id\t: ").s(&vendor).s("\ncpu family\t: ").d(u64::from(family));
    head.s("\nmodel\t\t: ").d(u64::from(model)).s("\nmodel name\t: ").s(&text(&brand));
    head.s("\nstepping\t: ").d(u64::from(sig[EAX] & 15)).s("\nmicrocode\t: 0xffffffff\n");
    let mut tail = Vec::new();
    tail.s("fpu\t\t: yes\nfpu_exception\t: yes\ncpuid level\t: ").d(u64::from(id[EAX])).s("\nwp\t\t: yes\nflags\t\t:");
    flags(&mut tail);
    tail.s("\nbugs\t\t:\n");
    let mhz = tsc_khz();
    // bogomips is twice the frequency where the counter calibrates the delay loop.
    tail.s("bogomips\t: ").d(mhz * 2 / 1000).s(".").d(mhz * 2 / 100 % 10).d(mhz * 2 / 10 % 10).s("\n");
    tail.s("clflush size\t: ").d(u64::from(sig[EBX] >> 8 & 0xff) * 8);
    tail.s("\ncache_alignment\t: ").d(u64::from(sig[EBX] >> 8 & 0xff) * 8);
    let sizes = if has_leaf(0x8000_0008) { cpuid(0x8000_0008, 0)[EAX] } else { 0x3024 };
    tail.s("\naddress sizes\t: ").d(u64::from(sizes & 0xff)).s(" bits physical, ");
    tail.d(u64::from(sizes >> 8 & 0xff)).s(" bits virtual\npower management:\n\n");
    Fixed { head, tail }
}

/// One cache of a processor.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    pub level: u32,
    pub kind: &'static str,
    pub size: u64,
    pub line: u64,
    pub ways: u64,
    pub sets: u64,
}

/// The caches, as leaf 4 (Intel) or 0x8000001d (AMD) tells.
pub fn caches() -> Vec<Cache> {
    let leaf = if has_leaf(0x8000_001d) { 0x8000_001d } else { 4 };
    let mut out = Vec::new();
    for sub in 0..8 {
        let r = if has_leaf(leaf) { cpuid(leaf, sub) } else { [0; 4] };
        let kind = match r[EAX] & 31 {
            1 => "Data",
            2 => "Instruction",
            3 => "Unified",
            _ => break,
        };
        let ways = u64::from(r[EBX] >> 22) + 1;
        let parts = u64::from(r[EBX] >> 12 & 0x3ff) + 1;
        let line = u64::from(r[EBX] & 0xfff) + 1;
        let sets = u64::from(r[ECX]) + 1;
        out.push(Cache { level: r[EAX] >> 5 & 7, kind, size: ways * parts * line * sets, line, ways, sets });
    }
    out
}

/// What `cache size` shows, in KiB: level 2 on AMD, the last level on Intel.
fn cache_kb() -> u64 {
    if has_leaf(0x8000_001d) && has_leaf(0x8000_0006) {
        return u64::from(cpuid(0x8000_0006, 0)[ECX] >> 16);
    }
    caches().iter().map(|c| c.size >> 10).max().unwrap_or(0)
}

pub(super) fn cpuinfo(kernel: &Kernel, out: &mut Vec<u8>) -> Result<()> {
    static FIXED: OnceLock<Fixed> = OnceLock::new();
    let f = FIXED.get_or_init(fixed);
    let cpus = count(kernel) as u64;
    let (khz, cache) = (tsc_khz(), cache_kb());
    for n in 0..cpus {
        out.s("processor\t: ").d(n).s("\n").b(&f.head);
        out.s("cpu MHz\t\t: ").d(khz / 1000).s(".").d(khz / 100 % 10).d(khz / 10 % 10).d(khz % 10);
        out.s("\ncache size\t: ").d(cache).s(" KB\nphysical id\t: 0\nsiblings\t: ").d(cpus);
        out.s("\ncore id\t\t: ").d(n).s("\ncpu cores\t: ").d(cpus);
        out.s("\napicid\t\t: ").d(n).s("\ninitial apicid\t: ").d(n).s("\n").b(&f.tail);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every flag shown must be one that the host's own kernel shows (it may hide more than it has).
    #[test]
    fn flags_are_those_of_the_host() {
        let host = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let Some(line) = host.lines().find(|l| l.starts_with("flags")) else { return };
        let host: Vec<&str> = line.split_whitespace().collect();
        let mut out = Vec::new();
        flags(&mut out);
        let out = String::from_utf8(out).unwrap();
        let strange: Vec<&str> = out.split_whitespace().filter(|f| !host.contains(f)).collect();
        assert!(strange.len() <= 3, "not shown by the host: {strange:?}");
        for must in ["fpu", "sse2", "syscall", "lm", "nx"] {
            assert!(out.split_whitespace().any(|f| f == must), "{must}");
        }
    }
}
