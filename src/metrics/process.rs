//! What every process shows: CPU time, memory, descriptors, threads, under the names that all programs have for them,
//! and therefore without our prefix.

use std::fmt;

use procfs::process::{LimitValue, Process as Proc};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Reads `/proc` each time it is asked. What cannot be read there is not shown.
#[derive(Debug)]
pub(super) struct Process {
    /// In Unix time.
    started_at: Option<u64>,
}

impl Process {
    pub(super) fn this() -> Self {
        let ticks = Proc::myself().and_then(|process| process.stat()).map(|stat| stat.starttime);
        // The boot is reckoned back from the wall clock: asked later, the start might have moved.
        let started_at = procfs::boot_time_secs()
            .and_then(|booted_at| Ok(booted_at + ticks? / procfs::ticks_per_second()));
        Process { started_at: started_at.ok() }
    }
}

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut show = Show(encoder);
        if let Some(started_at) = self.started_at {
            let help = "Start time of the process since unix epoch in seconds.";
            show.gauge("start_time", Some(Unit::Seconds), help, started_at)?;
        }
        let Ok(process) = Proc::myself() else { return Ok(()) };
        if let Ok(stat) = process.stat() {
            let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
            show.cpu_seconds(seconds)?;
            let memory = stat.rss * procfs::page_size();
            show.gauge(
                "resident_memory",
                Some(Unit::Bytes),
                "Resident memory size in bytes.",
                memory,
            )?;
            let memory = stat.vsize;
            show.gauge(
                "virtual_memory",
                Some(Unit::Bytes),
                "Virtual memory size in bytes.",
                memory,
            )?;
            let threads = stat.num_threads.unsigned_abs();
            show.gauge("threads", None, "Number of OS threads in the process.", threads)?;
        }
        if let Ok(open) = process.fd_count() {
            show.gauge("open_fds", None, "Number of open file descriptors.", open as u64)?;
        }
        match process.limits().map(|limits| limits.max_open_files.soft_limit) {
            Ok(LimitValue::Value(limit)) => {
                show.gauge("max_fds", None, "Maximum number of open file descriptors.", limit)
            }
            _ => Ok(()),
        }
    }
}

struct Show<'e>(DescriptorEncoder<'e>);

impl Show<'_> {
    fn cpu_seconds(&mut self, seconds: f64) -> fmt::Result {
        let counter = ConstCounter::new(seconds);
        let help = "Total user and system CPU time spent in seconds.";
        let unit = Some(&Unit::Seconds);
        counter.encode(self.0.encode_descriptor("cpu", help, unit, counter.metric_type())?)
    }

    fn gauge(&mut self, name: &str, unit: Option<Unit>, help: &str, value: u64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, unit.as_ref(), gauge.metric_type())?)
    }
}
