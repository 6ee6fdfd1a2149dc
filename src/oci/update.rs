//! `update`: limits of a container that runs.

use super::cli::{Globals, UpdateArgs};
use super::state::{Root, Status};
use super::{bundle, lifecycle, plan};
use crate::control::protocol::{Limits, Request};
use anyhow::{anyhow, bail, Context, Result};
use oci_spec::runtime::LinuxResources;
use serde_json::{json, Map, Value};

pub fn update(globals: &Globals, args: &UpdateArgs) -> Result<u8> {
    let container = Root::new(globals.root.as_deref())?.open(&args.id)?;
    let _lock = container.lock()?;
    let state = container.load()?;
    if matches!(container.status(&state), Status::Stopped | Status::Creating) {
        bail!("container not running");
    }
    let resources: LinuxResources = match &args.resources {
        Some(file) => bundle::load_json(file)?,
        None => serde_json::from_value(from_options(args)?).context("the options of update")?,
    };
    let limits = plan::limits(&resources)?;
    if let Some(cgroup) = &state.cgroup {
        cgroup.apply(&resources)?;
    }
    if limits != Limits::default() {
        lifecycle::client(&container)?.do_it(&Request::Update { container: container.id.clone(), limits })?;
    }
    Ok(0)
}

/// The resources that the options ask for, as `linux.resources` has them.
fn from_options(args: &UpdateArgs) -> Result<Value> {
    let mut all = Map::new();
    let mut put = |group: &str, name: &str, value: Option<Value>| {
        if let Some(value) = value {
            let group = all.entry(group).or_insert_with(|| json!({}));
            group[name] = value;
        }
    };
    let memory = |name: &str, text: &Option<String>| -> Result<Option<Value>> {
        let Some(text) = text else { return Ok(None) };
        Ok(Some(bytes(text).with_context(|| format!("invalid value for {name}"))?.into()))
    };
    put("memory", "limit", memory("memory", &args.memory)?);
    put("memory", "reservation", memory("memory-reservation", &args.memory_reservation)?);
    put("memory", "swap", memory("memory-swap", &args.memory_swap)?);
    put("cpu", "shares", args.cpu_share.map(Value::from));
    put("cpu", "quota", args.cpu_quota.map(Value::from));
    put("cpu", "period", args.cpu_period.map(Value::from));
    put("cpu", "realtimeRuntime", args.cpu_rt_runtime.map(Value::from));
    put("cpu", "realtimePeriod", args.cpu_rt_period.map(Value::from));
    put("cpu", "cpus", args.cpuset_cpus.as_deref().map(Value::from));
    put("cpu", "mems", args.cpuset_mems.as_deref().map(Value::from));
    put("blockIO", "weight", args.blkio_weight.map(Value::from));
    put("pids", "limit", args.pids_limit.map(Value::from));
    Ok(all.into())
}

/// A number of bytes: digits, perhaps with k, m, g or t, and `b` or `ib` after it; -1 for no limit.
fn bytes(text: &str) -> Result<i64> {
    if text == "-1" {
        return Ok(-1);
    }
    let mistake = || anyhow!("{text:?} is no size: write a number, perhaps with k, m or g");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text.get(digits.len()..).unwrap_or_default().trim().to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(mistake()),
    };
    let number: i64 = digits.parse().map_err(|_| mistake())?;
    number.checked_mul(1 << shift).filter(|n| *n >= 0).ok_or_else(mistake)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: UpdateArgs,
    }

    #[test]
    fn sizes() {
        for (text, n) in [("0", 0), ("-1", -1), ("4096", 4096), ("2k", 2048), ("1M", 1 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(bytes(text).unwrap(), n, "{text}");
        }
        for wrong in ["", "k", "-2", "1x", "9223372036854775807k", "1.5g"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn options_become_resources() {
        let words = ["update", "box", "--memory", "64m", "--pids-limit", "-1", "--cpu-quota", "5000"];
        let value = from_options(&Line::try_parse_from(words).map_err(|e| panic!("{e}")).unwrap().args).unwrap();
        assert_eq!(
            value,
            json!({ "memory": { "limit": 64 << 20 }, "cpu": { "quota": 5000 }, "pids": { "limit": -1 } })
        );
        assert!(serde_json::from_value::<LinuxResources>(value).is_ok());
    }
}
