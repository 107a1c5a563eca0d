//! The parts of the benchmark: what each is called, the shape of its table, and how it is measured
//! where no broker is needed. In each case the subjects take turns.

use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use super::brokers;
use super::readable::{Place, measure};
use super::report::Row;
use super::server::{Bench, Load};

const CONNECTIONS: [u32; 3] = [1, 64, 256];
pub(crate) const RATES: [u32; 2] = [100, 2000];

/// In the order in which they are measured; what each says of itself stands above its table.
#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
pub(crate) enum Part {
    /// One write of 4 KiB and its fdatasync, in ms: what no durable answer can beat
    Disk,
    /// Resident memory a second after the start, before any traffic, in MiB
    Idle,
    /// As fast as the answers come: callbacks a second, the server's CPU for one in µs, the
    /// answers' latency in ms, resident memory at the most in MiB
    Throughput,
    /// From sending a callback to its answer at a steady rate, in ms
    Latency,
    /// From a callback to its event on GET /events, in ms
    Readable,
    /// A backlog on its way out: events a second, CPU for one in µs, resident memory at the most in
    /// MiB, and the client library's best window
    Drain,
    /// From a callback to its event at a consumer of the broker, in ms
    Received,
    /// From sending a callback to its answer, with `ingress.answer` as durable and as delivered, in ms
    Answers,
    /// As fast as the answers come while the events go to a broker on the same cores: callbacks a
    /// second, the bridge's CPU from one to its delivery in µs, the share delivered meanwhile,
    /// resident memory at the most in MiB
    Saturation,
    /// Resident memory with a backlog while the broker is away, in MiB
    Outage,
    /// Smaller builds, on disk and idle in memory, in MiB; measured only when asked for, for each
    /// takes minutes to compile
    Build,
}

impl Part {
    pub(crate) fn needs_brokers(self) -> bool {
        matches!(
            self,
            Self::Drain | Self::Received | Self::Answers | Self::Saturation | Self::Outage
        )
    }

    pub(crate) async fn measure(self, bench: &Bench) -> anyhow::Result<Vec<Row>> {
        match self {
            Part::Disk => disk(bench),
            Part::Idle => idle(bench).await,
            Part::Throughput => throughput(bench).await,
            Part::Latency => latency(bench).await,
            Part::Readable => readable(bench).await,
            Part::Drain => brokers::drain(bench).await,
            Part::Received => brokers::received(bench).await,
            Part::Answers => brokers::answers(bench).await,
            Part::Saturation => brokers::saturation(bench).await,
            Part::Outage => brokers::outage(bench).await,
            Part::Build => brokers::build(bench).await,
        }
    }
}

fn disk(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    const TIMES: u64 = 200;
    let block = [0xa5; 4096];
    let file = tempfile::tempfile_in(&bench.folder)?;
    file.write_all_at(&block.repeat(TIMES as usize), 0)?;
    file.sync_all()?;
    let mut rows = Vec::new();
    for (case, first) in [("in place", 0), ("at the end of a growing file", TIMES)] {
        let mut times = Vec::new();
        for number in first..first + TIMES {
            let start = Instant::now();
            file.write_all_at(&block, number * block.len() as u64)?;
            file.sync_data()?;
            times.push(start.elapsed().as_secs_f64() * 1000.0);
        }
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[(share * (TIMES - 1) as f64).round() as usize];
        rows.push(Row::new(case, "", &[("p50", at(0.5)), ("p99", at(0.99))]));
    }
    Ok(rows)
}

async fn idle(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for subject in bench.subjects() {
        let server = bench.start(&subject, Vec::new()).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        rows.push(Row::new("", &subject.name, &server.memory()?[..1]));
    }
    Ok(rows)
}

async fn throughput(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        let load = Load { seconds: bench.seconds, connections, rate: None };
        for subject in bench.subjects() {
            let server = bench.start(&subject, Vec::new()).await?;
            bench.warm_up(&server, load).await?;
            server.wait_until_quiet().await?;
            let before = server.cpu_seconds()?;
            let sent = bench.send(&server, load).await?;
            server.wait_until_quiet().await?;
            let cpu = (server.cpu_seconds()? - before) / sent.answered * 1e6;
            let mut values = vec![("rate", sent.rate), ("CPU", cpu)];
            values.extend(sent.quantiles());
            values.push(server.memory()?[1]);
            rows.push(Row::new(format!("{connections} connections"), &subject.name, &values));
        }
    }
    Ok(rows)
}

async fn latency(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for rate in RATES {
        let load = bench.rated(rate);
        for subject in bench.subjects() {
            let server = bench.start(&subject, Vec::new()).await?;
            bench.warm_up(&server, load).await?;
            let quantiles = bench.send(&server, load).await?.quantiles();
            rows.push(Row::new(format!("{rate}/s"), &subject.name, &quantiles));
        }
    }
    Ok(rows)
}

async fn readable(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for rate in RATES {
        for subject in &bench.bridges {
            let server = bench.start(subject, Vec::new()).await?;
            bench.warm_up(&server, bench.rated(rate)).await?;
            let (place, case) = (Place::Bridge(server.admin.clone()), format!("{rate}/s"));
            rows.extend(measure(bench, &server, rate, place, &case, subject).await?);
        }
    }
    Ok(rows)
}
