//! SIGKILL at varying moments to a command, the monitor, the Gofer or the Sentry: `delete --force` always works, and
//! nothing is left.

use crate::common::{alive, command_line, descendants, eventually, kill};
use crate::{Host, LIMIT};
use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

/// Lives; `RUNSC_RS_LIVES` for more.
const LIVES: u64 = 24;

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// The test's own descendants that belong to a sandbox, zombies left out.
fn ours() -> Vec<i32> {
    let own = std::process::id() as i32;
    descendants(own).into_iter().filter(|pid| alive(*pid)).collect()
}

/// Waits for children that were left to the test.
fn reap() {
    // SAFETY: no status is asked for.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

/// Cgroups of a container with this name.
fn cgroups(name: &str) -> Vec<String> {
    let mut all = Vec::new();
    for dir in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        for at in [dir.path().join(name), dir.path()] {
            if at.file_name().is_some_and(|n| n == name) && at.exists() {
                all.push(at.display().to_string());
            }
        }
    }
    all
}

#[test]
fn nothing_is_left_of_a_container_that_is_killed() {
    let host = Host::new("death");
    let name = format!("runsc-rs-death-{}", std::process::id());
    let bundle = host.bundle("bundle", &["sh", "-c", "while :; do sleep 0.01; done"], |spec| {
        spec["linux"]["cgroupsPath"] = serde_json::json!(format!("/{name}"));
    });
    let bundle = bundle.to_str().unwrap();
    let lives = std::env::var("RUNSC_RS_LIVES").ok().and_then(|n| n.parse().ok()).unwrap_or(LIVES);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for life in 0..lives {
        let commands: [&[&str]; 4] = [
            &["create", "--bundle", bundle, &name],
            &["start", &name],
            &["exec", &name, "sleep", "0.05"],
            &["delete", "--force", &name],
        ];
        // One of the commands is hit while it runs: itself, or a process of the sandbox.
        let hit = dice.below(commands.len() as u64) as usize;
        for (i, args) in commands.iter().enumerate() {
            let mut child = host.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            if i == hit {
                sleep(Duration::from_micros(dice.below(60_000)));
                let mut victims = ours();
                victims.retain(|pid| {
                    let line = command_line(*pid);
                    *pid == child.id() as i32 || line.contains("internal-") || line.contains(" create ")
                });
                if let Some(victim) = victims.get(dice.below(victims.len().max(1) as u64) as usize) {
                    kill(*victim, libc::SIGKILL);
                }
            }
            let mut ended = None;
            eventually(&format!("life {life}: {args:?} ends"), LIMIT, || {
                ended = child.try_wait()?;
                Ok(ended.is_some())
            });
        }
        host.good(&["delete", "--force", &name]);
        assert!(!host.state_of(&name).exists(), "life {life}: the state is left");
        eventually(&format!("life {life}: no process is left"), LIMIT, || {
            reap();
            Ok(ours().is_empty())
        });
        assert!(cgroups(&name).is_empty(), "life {life}: {:?} are left", cgroups(&name));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(host.dir.path()), "{mounts}");
}
