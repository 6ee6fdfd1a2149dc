//! `state`, `list`, `ps`, `events`: what there is to be seen of containers.

use super::cli::{EventsArgs, Format, Globals, ListArgs, PsArgs};
use super::client::Client;
use super::lifecycle;
use super::state::{Container, OciState, Root, State, Status};
use super::{events, time};
use crate::control::protocol::{ProcessInfo, Reply, Request, Stats};
use anyhow::{bail, Result};
use nix::unistd::{Uid, User};
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

/// Prints to standard output; a reader that has gone is no mistake.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// `state`.
pub fn state(globals: &Globals, id: &str) -> Result<u8> {
    let container = Root::new(globals.root.as_deref())?.open(id)?;
    let state = container.load()?;
    let described = container.describe(&state, container.status(&state));
    print(&serde_json::to_string_pretty(&described)?)?;
    print("\n")?;
    Ok(0)
}

fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

/// `list`.
pub fn list(globals: &Globals, args: &ListArgs) -> Result<u8> {
    let mut all: Vec<OciState> = Vec::new();
    for container in Root::new(globals.root.as_deref())?.containers()? {
        // One may be on its way in or out.
        let Ok(state) = container.load() else { continue };
        if args.quiet {
            print(&format!("{}\n", container.id))?;
            continue;
        }
        let mut described = container.describe(&state, container.status(&state));
        described.owner = user_name(state.owner);
        all.push(described);
    }
    if args.quiet {
        return Ok(0);
    }
    match args.format {
        // As an empty list of Go's is.
        Format::Json if all.is_empty() => print("null")?,
        Format::Json => print(&serde_json::to_string(&all)?)?,
        Format::Table => {
            let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from)];
            rows.extend(all.into_iter().map(|c| {
                let bundle = c.bundle.display().to_string();
                [c.id, c.pid.to_string(), c.status.to_string(), bundle, c.created, c.owner]
            }));
            print(&table(&rows))?;
        }
    }
    Ok(0)
}

/// Columns of at least twelve, three blanks between them.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count() + 3).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(|i| width(i).max(12)).collect();
    let mut text = String::new();
    for row in rows {
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            match i + 1 == N {
                true => text.push_str(cell),
                false => text.push_str(&format!("{cell:width$}")),
            }
        }
        text.push('\n');
    }
    text
}

/// `ps`.
pub fn ps(globals: &Globals, args: &PsArgs) -> Result<u8> {
    let container = Root::new(globals.root.as_deref())?.open(&args.id)?;
    let state = container.load()?;
    let processes = match container.status(&state) {
        Status::Stopped | Status::Creating => Vec::new(),
        _ => match lifecycle::client(&container)?.call(&Request::Processes { container: container.id.clone() }, &[])? {
            Reply::Processes { processes } => processes,
            other => bail!("the Sentry answers {other:?} to a question for processes"),
        },
    };
    match args.format {
        Format::Json if processes.is_empty() => print("null\n")?,
        // Engines take these numbers for the host's, and look for them there: that is the monitor's.
        Format::Json => print(&format!("[{}]\n", state.monitor.pid))?,
        Format::Table => print(&process_table(&processes, &state))?,
    }
    Ok(0)
}

/// The columns of `ps -ef`.
fn process_table(processes: &[ProcessInfo], state: &State) -> String {
    let mut text = String::from("UID        PID  PPID  C STIME TTY          TIME CMD\n");
    let begin = created(state);
    for p in processes {
        let started = begin + Duration::from_nanos(p.started_ns);
        let lived = SystemTime::now().duration_since(started).unwrap_or_default().as_secs().max(1);
        let cpu = p.cpu_ns / 1_000_000_000;
        let share = (cpu * 100 / lived).min(99);
        let time = format!("{:02}:{:02}:{:02}", cpu / 3600, cpu / 60 % 60, cpu % 60);
        // What a guest calls itself is shown, but it moves no cursor.
        let printable = |text: &str| text.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
        let tty = p.tty.as_deref().map_or("?".into(), printable);
        let command = printable(&p.command.join(" "));
        let (user, clock) = (user_name(p.uid), time::clock(started));
        text.push_str(&format!(
            "{user:<8} {:>5} {:>5} {share:>2} {clock} {tty:<8} {time:>8} {command}\n",
            p.pid, p.ppid
        ));
    }
    text
}

/// When the sandbox was made: when its state was, to the nearest.
fn created(state: &State) -> SystemTime {
    let of_monitor = std::fs::metadata(format!("/proc/{}", state.monitor.pid)).and_then(|m| m.modified());
    of_monitor.unwrap_or_else(|_| SystemTime::now())
}

/// `events`.
pub fn events(globals: &Globals, args: &EventsArgs) -> Result<u8> {
    let container = Root::new(globals.root.as_deref())?.open(&args.id)?;
    let state = container.load()?;
    if container.status(&state) == Status::Stopped {
        bail!("container with id {} is not running", container.id);
    }
    let mut client = lifecycle::client(&container)?;
    let mut tell = || -> Result<()> {
        let stats = stats(&mut client, &container)?;
        print(&format!("{}\n", events::stats_line(&container.id, Some(&stats), state.cgroup.as_ref()).trim_end()))
    };
    if args.stats {
        tell()?;
        return Ok(0);
    }
    let Some(monitor) = state.monitor.open() else { return Ok(0) };
    loop {
        let mut fds = [nix::poll::PollFd::new(monitor.as_fd(), nix::poll::PollFlags::POLLIN)];
        let interval = nix::poll::PollTimeout::try_from(args.interval).unwrap_or(nix::poll::PollTimeout::MAX);
        match nix::poll::poll(&mut fds, interval) {
            Ok(0) => match tell() {
                Err(_) if !state.monitor.alive() => return Ok(0),
                other => other?,
            },
            Err(nix::errno::Errno::EINTR) => {}
            _ => return Ok(0),
        }
    }
}

fn stats(client: &mut Client, container: &Container) -> Result<Stats> {
    match client.call(&Request::Stats { container: container.id.clone() }, &[])? {
        Reply::Stats { stats } => Ok(*stats),
        other => bail!("the Sentry answers {other:?} to a question for figures"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_runcs() {
        let rows = [["ID", "PID", "OWNER"].map(String::from), ["a-longer-name", "7", "root"].map(String::from)];
        assert_eq!(table(&rows), "ID              PID         OWNER\na-longer-name   7           root\n");
    }
}
