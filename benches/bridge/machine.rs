//! What the numbers depend on: the machine, and how much of it others took while a load was
//! measured.

use std::collections::HashMap;
use std::fs::read_to_string;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

/// More of the machine's time than this taken by others makes a load's numbers doubtful.
const MAX_DISTURBANCE: f64 = 0.05;
/// Linux counts for programs in hundredths of a second, whatever it does itself.
const TICKS_PER_SECOND: f64 = 100.0;

/// Ticks used so far.
pub(crate) struct Usage {
    busy: f64,
    /// Taken by the hypervisor.
    stolen: f64,
    total: f64,
    /// Of this process and all that it has started: load, bridge and broker.
    own: f64,
}

impl Usage {
    pub(crate) fn now() -> anyhow::Result<Self> {
        let stat = read_to_string("/proc/stat")?;
        let line = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
        let ticks: Vec<f64> = line.map(str::parse).collect::<Result<_, _>>()?;
        let [user, nice, system, idle, wait, irq, soft_irq, stolen] = ticks[..] else {
            anyhow::bail!("/proc/stat is not as expected: {stat}");
        };
        let busy = user + nice + system + irq + soft_irq;
        Ok(Self { busy, stolen, total: busy + idle + wait + stolen, own: own_ticks()? })
    }

    /// The shares of the machine's time since then that other processes and the hypervisor took.
    pub(crate) fn others_since(&self, before: &Self) -> (f64, f64) {
        let total = self.total - before.total;
        let others = (self.busy - before.busy) - (self.own - before.own);
        (others.max(0.0) / total, (self.stolen - before.stolen) / total)
    }
}

/// A process's parent, and the ticks of its own and of its children that have ended.
fn process(id: u32) -> anyhow::Result<(u32, f64, f64)> {
    let stat = read_to_string(format!("/proc/{id}/stat"))?;
    // The fields after the command's name, which is in brackets and may hold anything.
    let fields = stat.rsplit_once(')').context("no command in the process's status")?.1;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks =
        fields[11..15].iter().map(|field| field.parse()).collect::<Result<Vec<f64>, _>>()?;
    Ok((fields[1].parse()?, ticks[0] + ticks[1], ticks[2] + ticks[3]))
}

fn own_ticks() -> anyhow::Result<f64> {
    let ids = std::fs::read_dir("/proc")?.flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let all: HashMap<u32, _> = ids.filter_map(|id| Some((id, process(id).ok()?))).collect();
    let is_own = |id: &u32| {
        let ancestors = std::iter::successors(Some(*id), |id| Some(all.get(id)?.0));
        ancestors.take(all.len()).any(|id| id == std::process::id())
    };
    let own = all.iter().filter(|(id, _)| is_own(id));
    Ok(own.map(|(_, (_, ticks, of_children))| ticks + of_children).sum())
}

pub(crate) fn cpu_seconds(id: u32) -> anyhow::Result<f64> {
    Ok(process(id)?.1 / TICKS_PER_SECOND)
}

/// What the tables must say of loads that others disturbed.
pub(crate) fn warning(loads: &[Value]) -> Option<String> {
    let shares = loads.iter().filter_map(|l| Some(l["others"].as_f64()? + l["stolen"].as_f64()?));
    let disturbed: Vec<f64> = shares.filter(|share| *share > MAX_DISTURBANCE).collect();
    let worst = disturbed.iter().copied().max_by(f64::total_cmp)? * 100.0;
    let (count, all, limit) = (disturbed.len(), loads.len(), MAX_DISTURBANCE * 100.0);
    Some(format!(
        "**Disturbed:** during {count} of {all} loads other processes or the hypervisor took over {limit} % \
         of the machine, at worst {worst:.0} %. Measure again on a quiet machine."
    ))
}

pub(crate) fn about(directory: &Path) -> anyhow::Result<Value> {
    let info = read_to_string("/proc/cpuinfo")?;
    let model = info.lines().find(|line| line.starts_with("model name"));
    let mounts = read_to_string("/proc/self/mounts")?;
    let mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let holding = mounts.filter(|mount| directory.starts_with(mount[1]));
    let mount = holding.max_by_key(|mount| mount[1].len()).context("no file system")?;
    Ok(json!({
        "cpu": model.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, name)| name),
        "cores": std::thread::available_parallelism()?.get(),
        "kernel": read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "file_system": mount[2],
        "load_before": read_to_string("/proc/loadavg")?.split(' ').next(),
        "time": humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
    }))
}
