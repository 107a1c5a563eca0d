//! `topic-bridge outbox`: shows what is in the outbox. It only reads, and works while a bridge is running.

mod kept;
mod list;
mod show;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::outbox::{List, Reader};
use crate::settings::Settings;

#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// How much is accepted, pending, dead, quarantined, and how large the outbox is.
    Status {
        #[command(flatten)]
        outbox: OutboxArgs,
    },
    /// A line for each event, oldest first.
    List {
        #[command(flatten)]
        outbox: OutboxArgs,
        #[command(flatten)]
        rows: Rows,
        /// Begin after this position (or number, of a quarantined callback).
        #[arg(long, value_name = "POSITION", default_value_t = 0)]
        after: u64,
        /// At most so many lines.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// One event whole, or one quarantined callback.
    Show {
        #[command(flatten)]
        outbox: OutboxArgs,
        /// The event's position or its id.
        #[arg(value_name = "POSITION|ID")]
        which: String,
        /// The number is that of a quarantined callback.
        #[arg(long)]
        quarantined: bool,
    },
}

#[derive(Debug, clap::Args)]
pub struct OutboxArgs {
    /// The outbox file, if not the configuration's outbox.path.
    #[arg(long, value_name = "FILE")]
    path: Option<PathBuf>,
    /// Print JSON, a line each.
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
    let (Args::Status { outbox } | Args::List { outbox, .. } | Args::Show { outbox, .. }) = args;
    let path = match &outbox.path {
        Some(path) => path.clone(),
        None => Settings::outbox_path(file, set)?,
    };
    let reader = Reader::open(&path)?;
    match args {
        Args::Status { outbox } => status::run(outbox, &reader)?,
        Args::List { outbox, rows, after, limit } => {
            list::print_list(&reader, rows.list(), *after, *limit, outbox.json)?;
        }
        Args::Show { outbox, which, quarantined } => {
            let found = show::find(&reader, which, *quarantined)?;
            let text = if outbox.json { kept::line_of_json(&found) } else { kept::whole(&found) };
            super::print(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
