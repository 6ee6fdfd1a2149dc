//! Resources: what of them the Sentry enforces for a container.

use crate::control::protocol::Limits;
use anyhow::{bail, Result};
use oci_spec::runtime::LinuxResources;

/// Longest and shortest period of the processor's bandwidth control, in microseconds, as in Linux.
const PERIOD: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;

/// The limits that the Sentry enforces of a bundle's or an update's resources. `unified` (version 2's own files) wins
/// over the others.
pub fn limits(resources: &LinuxResources) -> Result<Limits> {
    // Zero means "not given" for memory and processor, and no limit for processes.
    let given = |value: Option<i64>| value.filter(|v| *v != 0).map(|v| v.max(-1));
    let cpu = resources.cpu().as_ref();
    let mut limits = Limits {
        memory: given(resources.memory().as_ref().and_then(|m| m.limit())),
        pids: resources.pids().as_ref().map(|p| if p.limit() > 0 { p.limit() } else { -1 }),
        cpu_quota: given(cpu.and_then(|c| c.quota())),
        cpu_period: cpu.and_then(|c| c.period()).filter(|p| *p != 0),
    };
    for (file, value) in resources.unified().iter().flatten() {
        unified(&mut limits, file, value)?;
    }
    if let Some(period) = limits.cpu_period.filter(|p| !PERIOD.contains(p)) {
        bail!("cpu period {period}: {} to {} microseconds are possible", PERIOD.start(), PERIOD.end());
    }
    if let Some(quota) = limits.cpu_quota.filter(|q| (1..1_000).contains(q)) {
        bail!("cpu quota {quota}: at least 1000 microseconds are needed");
    }
    Ok(limits)
}

fn unified(limits: &mut Limits, file: &str, value: &str) -> Result<()> {
    if file.contains('/') || file.contains('\0') || !file.contains('.') {
        bail!("unified resource {file:?} must be a file name of a controller");
    }
    let number = |text: &str| -> Result<i64> {
        match text.trim() {
            "max" => Ok(-1),
            text => match text.parse() {
                Ok(n) if n >= 0 => Ok(n),
                _ => bail!("unified resource {file:?}: {value:?} is no number and not \"max\""),
            },
        }
    };
    match file {
        "memory.max" => limits.memory = Some(number(value)?),
        "pids.max" => limits.pids = Some(number(value)?),
        "cpu.max" => {
            let mut words = value.split_whitespace();
            limits.cpu_quota = Some(number(words.next().unwrap_or_default())?);
            if let Some(period) = words.next() {
                limits.cpu_period = u64::try_from(number(period)?).ok();
            }
        }
        // The others are for the cgroup outside.
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(value: serde_json::Value) -> Result<Limits> {
        limits(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn limits_of_resources() {
        let all = of(json!({ "memory": { "limit": 1 << 20 }, "pids": { "limit": 5 },
            "cpu": { "quota": 50_000, "period": 100_000 } }));
        let want = Limits { memory: Some(1 << 20), pids: Some(5), cpu_quota: Some(50_000), cpu_period: Some(100_000) };
        assert_eq!(all.unwrap(), want);
        assert_eq!(of(json!({})).unwrap(), Limits::default());
        let lifted =
            of(json!({ "memory": { "limit": -1 }, "pids": { "limit": 0 }, "cpu": { "quota": -7, "period": 0 } }));
        assert_eq!(lifted.unwrap(), Limits { memory: Some(-1), pids: Some(-1), cpu_quota: Some(-1), cpu_period: None });
    }

    #[test]
    fn unified_files() {
        let u = of(
            json!({ "memory": { "limit": 5 }, "unified": { "memory.max": "max", "pids.max": "9", "cpu.max": "max 5000",
            "memory.high": "7" } }),
        );
        let want = Limits { memory: Some(-1), pids: Some(9), cpu_quota: Some(-1), cpu_period: Some(5000) };
        assert_eq!(u.unwrap(), want);
        for (file, value) in
            [("../x.y", "1"), ("cgroup", "1"), ("memory.max", "x"), ("pids.max", "-3"), ("cpu.max", "")]
        {
            assert!(of(json!({ "unified": { file: value } })).is_err(), "{file}");
        }
        assert!(of(json!({ "cpu": { "period": 7 } })).is_err());
        assert!(of(json!({ "cpu": { "quota": 7 } })).is_err());
    }
}
