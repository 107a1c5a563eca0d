//! The parts that need brokers. Each broker is started for one measurement and thrown away after
//! it, alone on the machine but for the bridge and the load: all share its cores.

use std::time::Duration;

use anyhow::ensure;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::sleep;

use super::parts::RATES;
use super::raw;
use super::readable::{Place, measure};
use super::report::Row;
use super::server::{Bench, Load, Server, Settings, Subject, run, send};
use super::servers::{Broker, Kind, Way};

pub(crate) const KINDS: [Kind; 3] = [Kind::Kafka, Kind::Rabbitmq, Kind::Nats];
/// Messages unconfirmed at once; the best of them is each client library's raw rate.
const WINDOWS: [usize; 3] = [512, 1024, 4096];
const CONNECTIONS: [u32; 2] = [64, 256];
/// For a bridge with a backlog to have read what it reads at its start, and tried to deliver.
const SETTLED: Duration = Duration::from_secs(5);

fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Kafka => "Kafka",
        Kind::Rabbitmq => "RabbitMQ",
        Kind::Nats => "NATS JetStream",
    }
}

/// Of a bridge that publishes to this broker, or to one that does not answer.
fn sink(kind: Kind, broker: Option<&Broker>) -> Settings {
    let (name, nowhere) = match kind {
        Kind::Kafka => ("KAFKA__BROKERS", "127.0.0.1:1"),
        Kind::Rabbitmq => ("RABBITMQ__URL", "amqp://guest:guest@127.0.0.1:1/%2f"),
        Kind::Nats => ("NATS__SERVERS", "nats://127.0.0.1:1"),
    };
    let address = broker.map_or_else(|| nowhere.to_owned(), |broker| broker.address(Way::Plain));
    let address = if kind == Kind::Nats { format!("[\"{address}\"]") } else { address };
    vec![("SINK", kind.name().to_owned()), (name, address)]
}

/// A broker of its own, in which the bridge has created its topic, queue or stream.
async fn start(bench: &Bench, kind: Kind) -> anyhow::Result<Broker> {
    let broker = Broker::start(kind, &bench.folder)?;
    let server = bench.start(&bench.bridges[0], sink(kind, Some(&broker))).await?;
    send(&server, &[]).await?;
    server.wait_until_published(1.0).await?;
    Ok(broker)
}

/// Each to a broker just started, and as warm as for the other.
pub(crate) async fn drain(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &kind in &bench.kinds {
        let broker = start(bench, kind).await?;
        let window = best_window(bench, &broker, kind).await?;
        let raw = publish(bench, &broker, kind, bench.events, window).await?;
        let values = [("rate", raw.rate), ("CPU", raw.cpu), ("window", window as f64)];
        rows.push(Row::new(title(kind), "client library", &values));
        drop(broker);
        for bridge in &bench.bridges {
            let broker = start(bench, kind).await?;
            best_window(bench, &broker, kind).await?;
            let backlog = Backlog::take(bench, bridge).await?;
            let settings = [sink(kind, Some(&broker)), backlog.settings].concat();
            let server = bench.start(bridge, settings).await?;
            let (rate, cpu) = bench.watched("drain".into(), drained(bench, &server)).await?;
            let values = [("rate", rate), ("CPU", cpu), server.memory()?[1]];
            rows.push(Row::new(title(kind), &bridge.name, &values));
        }
    }
    Ok(rows)
}

/// An outbox full of events that no sink has taken, and what its bridge held meanwhile, in MiB.
struct Backlog {
    settings: Settings,
    memory: [(&'static str, f64); 2],
    _folder: TempDir,
}

impl Backlog {
    async fn take(bench: &Bench, bridge: &Subject) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir_in(&bench.folder)?;
        // Room for the events, and a stop that does not try to deliver them first.
        let settings = vec![
            ("OUTBOX__PATH", folder.path().join("outbox.db").display().to_string()),
            ("OUTBOX__MAX_BYTES", "4 GiB".to_owned()),
            ("RELAY__DRAIN_TIMEOUT", "0s".to_owned()),
        ];
        let server =
            bench.start(bridge, [sink(Kind::Nats, None), settings.clone()].concat()).await?;
        let count = format!("--count={}", bench.events);
        send(&server, &[count, "--concurrency=256".to_owned()]).await?;
        let memory = server.memory()?;
        drop(server);
        // Its pages on their way to the disk would slow down whatever comes next.
        run(&mut Command::new("sync")).await?;
        Ok(Self { settings, memory, _folder: folder })
    }
}

/// The rate and the CPU for one in µs, from the first event that is seen delivered to the last.
async fn drained(bench: &Bench, server: &Server) -> anyhow::Result<(f64, f64)> {
    let events = bench.events as f64;
    let (started, first, cpu) = server.wait_until_published(events).await?;
    let (seconds, count) = (started.elapsed().as_secs_f64(), events - first);
    ensure!(count >= events / 2.0, "{events} events are too few: the first look saw {first}");
    Ok((count / seconds, (server.cpu_seconds()? - cpu) / count * 1e6))
}

async fn publish(
    bench: &Bench,
    broker: &Broker,
    kind: Kind,
    count: u64,
    window: usize,
) -> anyhow::Result<raw::Published> {
    let url = broker.address(Way::Plain);
    let work = raw::Work { url, count, window };
    bench.watched(format!("raw {} {count}", kind.name()), raw::publish(kind, work)).await
}

/// The window with the highest raw rate, tried with a tenth of the events each.
async fn best_window(bench: &Bench, broker: &Broker, kind: Kind) -> anyhow::Result<usize> {
    let mut best = (0.0, WINDOWS[0]);
    for window in WINDOWS {
        let rate = publish(bench, broker, kind, bench.events / 10, window).await?.rate;
        if rate > best.0 {
            best = (rate, window);
        }
    }
    Ok(best.1)
}

pub(crate) async fn received(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &kind in &bench.kinds {
        for rate in RATES {
            for bridge in &bench.bridges {
                let broker = start(bench, kind).await?;
                let server = bench.start(bridge, sink(kind, Some(&broker))).await?;
                let warm = bench.warm_up(&server, bench.rated(rate)).await?;
                server.wait_until_published(warm.answered).await?;
                let place = Place::Broker(kind, broker.address(Way::Plain));
                let case = format!("{}, {rate}/s", title(kind));
                rows.extend(measure(bench, &server, rate, place, &case, bridge).await?);
            }
        }
    }
    Ok(rows)
}

/// What it costs an answer to wait for the broker.
pub(crate) async fn answers(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &kind in &bench.kinds {
        for rate in RATES {
            for answer in ["durable", "delivered"] {
                let broker = start(bench, kind).await?;
                let mut settings = sink(kind, Some(&broker));
                settings.push(("INGRESS__ANSWER", answer.to_owned()));
                let server = bench.start(&bench.bridges[0], settings).await?;
                let load = bench.rated(rate);
                let warm = bench.warm_up(&server, load).await?;
                server.wait_until_published(warm.answered).await?;
                let quantiles = bench.send(&server, load).await?.quantiles();
                rows.push(Row::new(format!("{}, {rate}/s", title(kind)), answer, &quantiles));
            }
        }
    }
    Ok(rows)
}

/// Beside the floor with the same broker idle.
pub(crate) async fn saturation(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &kind in &bench.kinds {
        for connections in CONNECTIONS {
            let load = Load { seconds: bench.seconds, connections, rate: None };
            let case = format!("{}, {connections} connections", title(kind));
            for subject in bench.subjects() {
                let broker = start(bench, kind).await?;
                let mut settings = sink(kind, Some(&broker));
                settings.push(("OUTBOX__MAX_BYTES", "4 GiB".to_owned()));
                let server = bench.start(&subject, settings).await?;
                let warm = bench.warm_up(&server, load).await?.answered;
                if subject.program.is_none() {
                    let rate = bench.send(&server, load).await?.rate;
                    rows.push(Row::new(&case, &subject.name, &[("rate", rate)]));
                    continue;
                }
                server.wait_until_published(warm).await?;
                let before = server.cpu_seconds()?;
                let sent = bench.send(&server, load).await?;
                let meanwhile = (server.published().await? - warm) / sent.answered;
                // What is left to deliver belongs to the callbacks' cost too.
                server.wait_until_published(warm + sent.answered).await?;
                let cpu = (server.cpu_seconds()? - before) / sent.answered * 1e6;
                let [rate, cpu] = [("rate", sent.rate), ("CPU", cpu)];
                let values = [rate, cpu, ("delivered", meanwhile), server.memory()?[1]];
                rows.push(Row::new(&case, &subject.name, &values));
            }
        }
    }
    Ok(rows)
}

/// A million events are an hour at 280 a second.
pub(crate) async fn outage(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for bridge in &bench.bridges {
        let backlog = Backlog::take(bench, bridge).await?;
        rows.push(Row::new("having taken it (NATS away)", &bridge.name, &backlog.memory));
        for &kind in &bench.kinds {
            let settings = [sink(kind, None), backlog.settings.clone()].concat();
            let server = bench.start(bridge, settings).await?;
            sleep(SETTLED).await;
            let case = format!("started with it, {} away", title(kind));
            rows.push(Row::new(case, &bridge.name, &server.memory()?));
        }
    }
    Ok(rows)
}

/// Smaller builds: what they weigh on disk and, with their broker connected, in memory.
pub(crate) async fn build(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut builds = vec![("all", KINDS.to_vec())];
    builds.extend(bench.kinds.iter().map(|&kind| (kind.name(), vec![kind])));
    builds.push(("none", Vec::new()));
    let target = bench.folder.join("build");
    for (name, kinds) in builds {
        let features: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        let mut command = Command::new(env!("CARGO"));
        command.args(["build", "--profile=dist", "--locked", "--no-default-features"]);
        command.args(["--bin=topic-bridge", "--features", &features.join(","), "--target-dir"]);
        command.arg(&target);
        run(&mut command).await?;
        let program = target.join("dist/topic-bridge");
        let stripped = target.join("stripped");
        run(Command::new("strip").arg("-o").args([&stripped, &program])).await?;
        let mib = |path| anyhow::Ok(std::fs::metadata(path)?.len() as f64 / f64::from(1 << 20));
        let bridge = Subject { name: name.to_owned(), program: Some(program.clone()) };
        let mut values = vec![("program", mib(&program)?), ("stripped", mib(&stripped)?)];
        values.push(("idle, embedded", idle(bench, &bridge, None).await?));
        for kind in KINDS {
            if kinds.contains(&kind) && bench.kinds.contains(&kind) {
                values.push((title(kind), idle(bench, &bridge, Some(kind)).await?));
            }
        }
        rows.push(Row::new(name, "", &values));
    }
    Ok(rows)
}

async fn idle(bench: &Bench, bridge: &Subject, kind: Option<Kind>) -> anyhow::Result<f64> {
    let broker = match kind {
        Some(kind) => Some((kind, start(bench, kind).await?)),
        None => None,
    };
    let settings = broker.as_ref().map(|(kind, broker)| sink(*kind, Some(broker)));
    let server = bench.start(bridge, settings.unwrap_or_default()).await?;
    server.wait_until_ready().await?;
    sleep(Duration::from_secs(1)).await;
    Ok(server.memory()?[0].1)
}
