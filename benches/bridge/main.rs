//! Measures the bridge beside the floor, on this machine, in one go: a bare HTTP handler that reads
//! the body and answers OK. The bridge checks signatures and syncs every event to disk
//! (`outbox.sync = "full"`, the embedded sink) before it answers. Both are loaded by `topic-bridge
//! send` over loopback, in turns within each run, each time as a fresh process with a fresh outbox.
//! Load and server share the machine's cores, so the ratios say more than the rates do.
//!
//! The tables go to stdout; every number of every run goes to `--out`. docs/performance.md says
//! what is measured. To measure something else, write a `Part`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the tables are what it is for")]

mod brokers;
mod floor;
mod machine;
mod parts;
mod raw;
mod readable;
mod report;
mod server;
#[path = "../../tests/servers/mod.rs"]
#[allow(dead_code, reason = "the tests do more with them")]
mod servers;

use std::cell::RefCell;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::{Parser as _, ValueEnum as _};
use parts::Part;
use serde_json::json;
use server::Bench;
use tokio::signal::unix::{SignalKind, signal};

/// Measure the bridge beside a bare HTTP handler and, with brokers, beside their client libraries
#[derive(Debug, clap::Parser)]
#[command(bin_name = "cargo bench --bench bridge --")]
struct Args {
    /// Runs of everything
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,

    /// Of each load
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,

    /// One run of a second each, to try it
    #[arg(long)]
    quick: bool,

    /// Where the outbox goes: the disk to measure
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,

    /// Where the raw numbers go
    #[arg(long, default_value = "target/bench/results.json")]
    out: PathBuf,

    /// Measure this part only; may be repeated
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,

    /// Another build of the bridge, measured in turns with this one
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,

    /// With this broker only; may be repeated
    #[arg(long, value_parser = ["kafka", "rabbitmq", "nats"])]
    broker: Vec<String>,

    /// Leave out the parts that need brokers
    #[arg(long)]
    no_brokers: bool,

    /// Of a backlog
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    events: u64,

    /// Be the floor, as a process of its own
    #[arg(long, hide = true)]
    floor: bool,

    /// Said by cargo bench, and not by cargo test --all-targets, which has nothing to do here
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let mut args = Args::parse();
    if args.floor {
        // A spawned task runs on the workers; what `main` polls itself does not.
        return tokio::spawn(floor::serve()).await?;
    }
    if !args.bench {
        return Ok(());
    }
    if args.quick {
        (args.runs, args.seconds, args.events) = (1, 1.0, args.events.min(50_000));
    }
    // Whatever ends it, servers and brokers are stopped as they go out of scope.
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        measured = measure(args) => measured,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        _ = terminated.recv() => anyhow::bail!("terminated"),
    }
}

async fn measure(args: Args) -> anyhow::Result<()> {
    ensure!(args.seconds > 0.0, "--seconds must be above 0");
    std::fs::create_dir_all(&args.dir)?;
    let folder = args.dir.canonicalize()?;
    let about = machine::about(&folder)?;
    if about["file_system"] == "tmpfs" {
        eprintln!("warning: {} is in memory, where a sync costs nothing", folder.display());
    }
    let is_named = |part: &Part| match args.only.is_empty() {
        true => *part != Part::Build,
        false => args.only.contains(part),
    };
    let is_chosen = |part: &Part| is_named(part) && !(args.no_brokers && part.needs_brokers());
    let parts: Vec<Part> = Part::value_variants().iter().copied().filter(is_chosen).collect();
    let mut kinds = brokers::KINDS.to_vec();
    kinds.retain(|kind| args.broker.is_empty() || args.broker.contains(&kind.name().to_owned()));
    let bridges = Bench::bridges(args.against.clone());
    let (seconds, events, disturbances) = (args.seconds, args.events, RefCell::default());
    let bench = Bench { folder, seconds, events, kinds, bridges, disturbances };
    let mut runs = Vec::new();
    for number in 1..=args.runs {
        let mut run = Vec::new();
        for part in &parts {
            eprintln!("run {number} of {}: {part:?}", args.runs);
            let rows = part.measure(&bench).await;
            run.push(rows.with_context(|| format!("{part:?} failed"))?);
        }
        runs.push(run);
    }
    let disturbances = bench.disturbances.take();
    let [cpu, kernel, disk] =
        ["cpu", "kernel", "file_system"].map(|key| about[key].as_str().unwrap_or_default());
    println!("{} cores of {cpu}, Linux {kernel}, {disk};", about["cores"]);
    println!("{} run(s) of {} s, median (least–most).\n", args.runs, args.seconds);
    // In the tables' own text, so that such numbers cannot be published without it.
    if let Some(warning) = machine::warning(&disturbances) {
        println!("{warning}\n");
    }
    for (index, part) in parts.iter().enumerate() {
        let rows: Vec<_> = runs.iter().map(|run| &run[index]).collect();
        println!("{}", report::table(*part, &rows));
    }
    let parts: Vec<String> = parts.iter().map(|part| format!("{part:?}").to_lowercase()).collect();
    let whole = json!({
        "machine": about,
        "settings": format!("{args:?}"),
        "parts": parts,
        "runs": runs,
        "disturbances": disturbances,
    });
    std::fs::write(&args.out, format!("{whole:#}\n"))
        .with_context(|| format!("cannot write {}", args.out.display()))
}
