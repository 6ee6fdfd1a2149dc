//! Programs are run by an interpreter and compared with what the profile says in plain words.

use super::*;
use crate::config::BpfProgram;
use oci_spec::runtime::LinuxSeccompOperator as Operator;
use proptest::prelude::*;
use serde_json::json;

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0;
const ERRNO: u32 = 0x5_0000;

fn profile(value: serde_json::Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

/// The program of a profile that has one, after the Sentry's own checks of it.
fn program(profile: &LinuxSeccomp) -> BpfProgram {
    let program = compile(profile).unwrap().remove(0).program;
    let insns = program.iter().map(|&(code, jt, jf, k)| sentry::kernel::seccomp::Insn { code, jt, jf, k }).collect();
    assert!(sentry::kernel::seccomp::Program::check(insns).is_ok());
    program
}

/// The few instructions that the generator uses.
fn interpret(program: &BpfProgram, arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = vec![nr, arch, 0, 0];
    data.extend(args.iter().flat_map(|a| [*a as u32, (*a >> 32) as u32]));
    let (mut pc, mut a) = (0, 0);
    loop {
        let (code, jt, jf, k) = program[pc];
        pc += 1;
        let taken = match code {
            0x20 => {
                a = data[k as usize / 4];
                continue;
            }
            0x54 => {
                a &= k;
                continue;
            }
            0x05 => {
                pc += k as usize;
                continue;
            }
            0x06 => return k,
            0x15 => a == k,
            0x25 => a > k,
            0x35 => a >= k,
            other => panic!("instruction {other:#x}"),
        };
        pc += usize::from(if taken { jt } else { jf });
    }
}

fn run(profile: &LinuxSeccomp, nr: u32, args: [u64; 6]) -> u32 {
    interpret(&program(profile), ARCH, nr, args)
}

#[test]
fn actions() {
    let all = [
        ("KILL", 0),
        ("KILL_THREAD", 0),
        ("KILL_PROCESS", 0x8000_0000),
        ("TRAP", 0x3_0000),
        ("ERRNO", ERRNO | 1),
        ("TRACE", 0x7ff0_0001),
        ("LOG", 0x7ffc_0000),
        ("NOTIFY", 0x7fc0_0000),
        ("ALLOW", ALLOW),
    ];
    for (name, value) in all {
        let default = if name == "ALLOW" { "SCMP_ACT_KILL_PROCESS" } else { "SCMP_ACT_ALLOW" };
        let p = profile(json!({
            "defaultAction": default, "listenerPath": "/l",
            "syscalls": [{ "names": ["chmod"], "action": format!("SCMP_ACT_{name}") }],
        }));
        assert_eq!(run(&p, 90, [0; 6]), value, "{name}");
        assert_eq!(run(&p, 89, [0; 6]) == ALLOW, name != "ALLOW", "{name}");
    }
}

#[test]
fn errnos() {
    let p = profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "syscalls": [
            { "names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13 },
            { "names": ["chown"], "action": "SCMP_ACT_ERRNO", "errnoRet": 100000 },
            { "names": ["getpid"], "action": "SCMP_ACT_ALLOW" },
        ],
    }));
    assert_eq!(run(&p, 90, [0; 6]), ERRNO | 13);
    assert_eq!(run(&p, 92, [0; 6]), ERRNO | 4095);
    assert_eq!(run(&p, 39, [0; 6]), ALLOW);
    assert_eq!(run(&p, 0, [0; 6]), ERRNO | 38);
    assert_eq!(run(&p, 4000, [0; 6]), ERRNO | 38);
}

#[test]
fn newer_calls_are_unknown() {
    let p = profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{ "names": ["getpid", "openat2"], "action": "SCMP_ACT_ALLOW" }],
    }));
    assert_eq!(run(&p, 436, [0; 6]), ERRNO | 1);
    assert_eq!(run(&p, 438, [0; 6]), ERRNO | 38);
    assert_eq!(run(&p, X32 - 1, [0; 6]), ERRNO | 38);
}

#[test]
fn other_architectures() {
    let mut p = profile(json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["getpid"], "action": "SCMP_ACT_ERRNO" }],
    }));
    assert_eq!(interpret(&program(&p), 0x4000_0003, 20, [0; 6]), KILL);
    assert_eq!(run(&p, X32 | 1, [0; 6]), KILL);
    p.set_architectures(Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX32]));
    assert_eq!(run(&p, X32 | 1, [0; 6]), ALLOW);
}

#[test]
fn comparisons() {
    let values = [0, 1, 7, u64::from(u32::MAX), 1 << 32, (1 << 32) + 1, (7 << 32) + 7, u64::MAX - 1, u64::MAX];
    let all = [
        (Operator::ScmpCmpNe, (|a, b| a != b) as fn(u64, u64) -> bool),
        (Operator::ScmpCmpLt, |a, b| a < b),
        (Operator::ScmpCmpLe, |a, b| a <= b),
        (Operator::ScmpCmpEq, |a, b| a == b),
        (Operator::ScmpCmpGe, |a, b| a >= b),
        (Operator::ScmpCmpGt, |a, b| a > b),
    ];
    for (op, holds) in all {
        for wanted in values {
            for index in 0..6 {
                let p = profile(json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{ "names": ["ioctl"], "action": "SCMP_ACT_ERRNO",
                        "args": [{ "index": index, "value": wanted, "op": op }] }],
                }));
                let program = program(&p);
                for given in values {
                    let mut args = [wanted; 6];
                    args[index] = given;
                    let result = interpret(&program, ARCH, 16, args);
                    assert_eq!(result != ALLOW, holds(given, wanted), "{given:#x} {op:?} {wanted:#x}");
                }
            }
        }
    }
}

#[test]
fn masked_comparison() {
    // The flags of clone(2) that Docker's profile looks at.
    let p = profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{ "names": ["clone"], "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }] }],
    }));
    assert_eq!(run(&p, 56, [0x11, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(run(&p, 56, [0x1000_0011, 0, 0, 0, 0, 0]), ERRNO | 1);
    assert_eq!(run(&p, 56, [1 << 40, 0, 0, 0, 0, 0]), ALLOW);
}

#[test]
fn several_conditions_and_rules() {
    let p = profile(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            { "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22, "args": [
                { "index": 0, "value": 16, "op": "SCMP_CMP_EQ" }, { "index": 2, "value": 9, "op": "SCMP_CMP_EQ" }] },
            { "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97, "args": [
                { "index": 0, "value": 40, "op": "SCMP_CMP_EQ" }] },
            // One argument twice: either.
            { "names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [
                { "index": 0, "value": 3, "op": "SCMP_CMP_EQ" }, { "index": 0, "value": 8, "op": "SCMP_CMP_EQ" }] },
        ],
    }));
    assert_eq!(run(&p, 41, [16, 3, 9, 0, 0, 0]), ERRNO | 22);
    assert_eq!(run(&p, 41, [16, 3, 8, 0, 0, 0]), ALLOW);
    assert_eq!(run(&p, 41, [40, 1, 0, 0, 0, 0]), ERRNO | 97);
    assert_eq!(run(&p, 135, [3, 0, 0, 0, 0, 0]), ERRNO | 1);
    assert_eq!(run(&p, 135, [8, 0, 0, 0, 0, 0]), ERRNO | 1);
    assert_eq!(run(&p, 135, [9, 0, 0, 0, 0, 0]), ALLOW);
}

#[test]
fn what_is_left_out() {
    let compiled = |value| compile(&profile(value));
    assert_eq!(compiled(json!({ "defaultAction": "SCMP_ACT_ALLOW" })).unwrap(), vec![]);
    let unknown = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["no_such_call", "socketcall"], "action": "SCMP_ACT_KILL" }] });
    assert_eq!(compiled(unknown).unwrap(), vec![]);
    let flags = json!({ "defaultAction": "SCMP_ACT_ERRNO",
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"] });
    assert_eq!(compiled(flags).unwrap()[0].flags, 6);
}

#[test]
fn notification() {
    let with = |name: &str, default: &str| {
        json!({ "defaultAction": default, "listenerPath": "/run/l",
            "syscalls": [{ "names": [name], "action": "SCMP_ACT_NOTIFY" }] })
    };
    assert_eq!(compile(&profile(with("mkdir", "SCMP_ACT_ALLOW"))).unwrap()[0].flags, NEW_LISTENER);
    assert!(compile(&profile(with("write", "SCMP_ACT_ALLOW"))).is_err());
    assert!(compile(&profile(with("mkdir", "SCMP_ACT_NOTIFY"))).is_err());
    let mut unheard = profile(with("mkdir", "SCMP_ACT_ALLOW"));
    unheard.set_listener_path(None);
    assert!(compile(&unheard).is_err());
}

#[test]
fn too_large() {
    let args: Vec<_> = (0..6).map(|i| json!({ "index": i, "value": u64::MAX, "op": "SCMP_CMP_GT" })).collect();
    let rule = json!({ "names": ["ioctl"], "action": "SCMP_ACT_KILL", "args": args });
    let many = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": vec![rule; 200] });
    assert!(format!("{:#}", compile(&profile(many)).unwrap_err()).contains("takes"));
    let index = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["ioctl"],
        "action": "SCMP_ACT_KILL", "args": [{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }] }] });
    assert!(compile(&profile(index)).is_err());
}

/// What a profile means, rule by rule.
fn meaning(p: &LinuxSeccomp, nr: u32, args: [u64; 6]) -> u32 {
    let default = verdict(p.default_action(), p.default_errno_ret());
    let holds = |a: &LinuxSeccompArg| {
        let (given, wanted) = (args[a.index()], a.value());
        match a.op() {
            Operator::ScmpCmpNe => given != wanted,
            Operator::ScmpCmpLt => given < wanted,
            Operator::ScmpCmpLe => given <= wanted,
            Operator::ScmpCmpEq => given == wanted,
            Operator::ScmpCmpGe => given >= wanted,
            Operator::ScmpCmpGt => given > wanted,
            Operator::ScmpCmpMaskedEq => given & wanted == a.value_two().unwrap_or(0),
        }
    };
    let mut last = None;
    for entry in p.syscalls().iter().flatten() {
        let verdict = verdict(entry.action(), entry.errno_ret());
        if verdict == default || !entry.names().iter().any(|n| number(n) == Some(nr)) {
            continue;
        }
        let args = entry.args().as_deref().unwrap_or_default();
        if args.is_empty() {
            last = last.or(Some(verdict));
        } else if alternatives(args).any(|all| all.iter().all(holds)) {
            return verdict;
        }
    }
    last.unwrap_or(default)
}

fn any_arg() -> impl Strategy<Value = serde_json::Value> {
    let op = prop::sample::select(vec!["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]);
    let value = || prop_oneof![0u64..4, Just(1 << 32), Just(u64::MAX), any::<u64>()];
    (0usize..6, value(), value(), op)
        .prop_map(|(i, v, w, op)| json!({ "index": i, "value": v, "valueTwo": w, "op": format!("SCMP_CMP_{op}") }))
}

fn any_rule() -> impl Strategy<Value = serde_json::Value> {
    let names = ["read", "write", "open", "close", "stat", "ioctl", "clone", "getpid", "openat2", "nothing"];
    let action = prop::sample::select(vec!["ALLOW", "ERRNO", "KILL", "TRAP", "LOG", "TRACE"]);
    let names = prop::collection::vec(prop::sample::select(names.to_vec()), 1..4);
    (names, action, 0u32..5000, prop::collection::vec(any_arg(), 0..4)).prop_map(|(names, action, errno, args)| {
        json!({ "names": names, "action": format!("SCMP_ACT_{action}"), "errnoRet": errno, "args": args })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn programs_mean_what_profiles_say(
        rules in prop::collection::vec(any_rule(), 0..24),
        default in prop::sample::select(vec!["ALLOW", "LOG", "TRACE"]),
        calls in prop::collection::vec((0u32..64, any::<[u64; 6]>(), 0u64..4), 32),
    ) {
        let p = profile(json!({ "defaultAction": format!("SCMP_ACT_{default}"), "syscalls": rules }));
        if let Some(filter) = compile(&p).unwrap().first() {
            for (nr, mut args, small) in calls {
                args[small as usize] = small;
                for nr in [nr, 437] {
                    prop_assert_eq!(interpret(&filter.program, ARCH, nr, args), meaning(&p, nr, args));
                }
            }
        }
    }
}
