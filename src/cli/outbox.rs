//! `topic-bridge outbox`: shows what is in the outbox, and lets an operator retry, drop, export, import and replay it,
//! beside a running bridge or without one.

mod act;
mod agent;
mod bridge;
mod check;
mod export;
mod import;
mod kept;
mod list;
mod salvage;
mod selection;
mod show;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::runtime::Builder;

use crate::outbox::{List, Reader};
use crate::settings::Settings;

pub const EXAMPLES: &str = "\
Examples:
  What waits, and what the broker has refused:
    topic-bridge outbox status --config bridge.toml
    topic-bridge outbox list --config bridge.toml --dead

  Deliver what was refused, once its cause is mended:
    topic-bridge outbox retry --config bridge.toml --dry-run
    topic-bridge outbox retry --config bridge.toml

  Deliver the last hour once more:
    topic-bridge outbox replay --config bridge.toml --since 1h";

#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// Show how much is pending, dead or quarantined, and how large the outbox is.
    Status {
        #[command(flatten)]
        outbox: OutboxArgs,
    },
    /// List events, one a line, oldest first.
    List {
        #[command(flatten)]
        outbox: OutboxArgs,
        #[command(flatten)]
        rows: Rows,
        /// Begin after this position (or number, of a quarantined callback).
        #[arg(long, value_name = "POSITION", default_value_t = 0)]
        after: u64,
        /// At most so many events.
        #[arg(long, value_name = "NUMBER", default_value_t = 100)]
        limit: usize,
    },
    /// Show one event in full, or one quarantined callback.
    Show {
        #[command(flatten)]
        outbox: OutboxArgs,
        /// The event's position or its id; with --quarantined, the callback's number.
        #[arg(value_name = "POSITION|ID")]
        which: String,
        /// Show the quarantined callback with this number.
        #[arg(long)]
        quarantined: bool,
    },
    /// Queue dead letters again, under their ids and in order; or let today's parser try quarantined bodies.
    Retry(act::RetryArgs),
    /// Delete dead letters or quarantined bodies, with --yes.
    Drop(act::DropArgs),
    /// Print events as CloudEvents, or quarantined bodies whole, one a line: all that is kept, or only some.
    Export(export::ExportArgs),
    /// Queue the events of a file, under their own ids; those that this outbox knows are skipped.
    Import(import::ImportArgs),
    /// Deliver events of the history once more, under their own ids, to the sink in force.
    Replay(act::ReplayArgs),
    /// Show what is damaged, and where; the exit code is 1 if anything is. Changes nothing.
    Check {
        #[command(flatten)]
        outbox: OutboxArgs,
    },
    /// Save what can be read of a damaged outbox into a new one; the damaged one stays as it is.
    Salvage {
        #[command(flatten)]
        outbox: OutboxArgs,
        /// The new outbox: a file that does not exist yet, on a disk with room for two copies.
        #[arg(value_name = "OUT")]
        new: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
pub struct OutboxArgs {
    /// The outbox file, if not the configuration's outbox.path.
    #[arg(long, value_name = "FILE")]
    path: Option<PathBuf>,
    /// Print JSON, one object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct Rows {
    /// Only events that are not delivered yet.
    #[arg(long)]
    pending: bool,
    /// Only dead letters: what the sink refused for good.
    #[arg(long)]
    dead: bool,
    /// Only quarantined callbacks: authentic, but not understood.
    #[arg(long)]
    quarantined: bool,
}

impl Rows {
    fn list(&self) -> List {
        match self {
            Rows { pending: true, .. } => List::Pending,
            Rows { dead: true, .. } => List::DeadLetters,
            Rows { quarantined: true, .. } => List::Quarantined,
            _ => List::All,
        }
    }
}

pub fn run(args: &Args, file: Option<PathBuf>, set: &[String]) -> anyhow::Result<ExitCode> {
    let settings = || Settings::for_outbox(file.clone(), set);
    match args {
        Args::Retry(args) => act::retry(args, settings()?),
        Args::Drop(args) => act::drop(args, settings()?),
        Args::Replay(args) => act::replay(args, settings()?),
        Args::Import(args) => import::run(args, settings()?),
        Args::Export(args) => export::run(args, &reader(args.path.as_ref(), file, set)?),
        Args::Check { outbox } => {
            check::run(&path_of(outbox.path.as_ref(), file, set)?, outbox.json)
        }
        Args::Salvage { outbox, new } => {
            let path = path_of(outbox.path.as_ref(), file, set)?;
            salvage::run(&path, new, outbox.json).map(|()| ExitCode::SUCCESS)
        }
        Args::Status { outbox } | Args::List { outbox, .. } | Args::Show { outbox, .. } => {
            let reader = reader(outbox.path.as_ref(), file, set)?;
            look(args, &reader).map(|()| ExitCode::SUCCESS)
        }
    }
}

fn path_of(
    path: Option<&PathBuf>,
    file: Option<PathBuf>,
    set: &[String],
) -> anyhow::Result<PathBuf> {
    Ok(match path {
        Some(path) => path.clone(),
        None => Settings::outbox_path(file, set)?,
    })
}

fn reader(path: Option<&PathBuf>, file: Option<PathBuf>, set: &[String]) -> anyhow::Result<Reader> {
    Ok(Reader::open(&path_of(path, file, set)?)?)
}

fn look(args: &Args, reader: &Reader) -> anyhow::Result<()> {
    match args {
        Args::Status { outbox } => status::run(outbox, reader),
        Args::List { outbox, rows, after, limit } => {
            list::print_list(reader, rows.list(), *after, *limit, outbox.json)
        }
        Args::Show { outbox, which, quarantined } => {
            let found = show::find(reader, which, *quarantined)?;
            let text = if outbox.json { kept::line_of_json(&found) } else { kept::whole(&found) };
            super::print(&text)
        }
        _ => Ok(()), // they do more than look
    }
}

fn on_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(work)
}
