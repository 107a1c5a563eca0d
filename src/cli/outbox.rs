//! `topic-bridge outbox`: shows what is in the outbox. It only reads, and works while a bridge is running.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::outbox::{Kept, List, Reader, Status};
use crate::settings::Settings;
use crate::time::Timestamp;

/// Rows read at a time: a long read would keep the bridge's log from being emptied.
const PAGE: usize = 500;

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
        Args::Status { outbox } => {
            let status = reader.run_here(|reading| reading.status())?;
            super::print(&status_text(&status, outbox.json))?;
        }
        Args::List { outbox, rows, after, limit } => {
            print_list(&reader, rows.list(), *after, *limit, outbox.json)?;
        }
        Args::Show { outbox, which, quarantined } => {
            let kept = find(&reader, which, *quarantined)?;
            super::print(&if outbox.json { line_of_json(&kept) } else { whole(&kept) })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn status_text(status: &Status, json: bool) -> String {
    if json {
        return serde_json::to_string(status).expect("numbers always encode") + "\n";
    }
    let age = match status.oldest_pending_at {
        Some(at) => {
            let seconds = Timestamp::now().since(at).as_secs();
            let age = humantime::format_duration(Duration::from_secs(seconds));
            format!(", the oldest for {age}")
        }
        None => String::new(),
    };
    let oldest = status.oldest_position.map_or("-".to_owned(), |oldest| oldest.to_string());
    format!(
        "events kept    {} (positions {oldest} to {})\npending        {}{age}\n  of these     {} deferred, \
         to be tried again by themselves\ndead letters   {}\nquarantined    {}\nin use         {}\n",
        status.events,
        status.newest_position,
        status.pending,
        status.deferred,
        status.dead_letters,
        status.quarantined,
        bytesize::ByteSize(status.bytes_in_use).display().iec(),
    )
}

fn print_list(
    reader: &Reader,
    list: List,
    mut after: u64,
    mut limit: usize,
    json: bool,
) -> anyhow::Result<()> {
    if !json {
        super::print(match list {
            List::Quarantined => {
                "NUMBER      RECEIVED                  APP          BYTES  REASON\n"
            }
            _ => "POSITION    ACCEPTED                  STATE      TOPIC  NAME  REASON\n",
        })?;
    }
    while limit > 0 {
        let rows = reader.run_here(|reading| reading.list(list, after, limit.min(PAGE)))?;
        let Some(last) = rows.last() else { break };
        after = last.position;
        limit -= rows.len();
        let line = if json { line_of_json } else { line_of_text };
        super::print(&rows.iter().map(line).collect::<String>())?;
    }
    Ok(())
}

fn line_of_text(kept: &Kept) -> String {
    let Kept { position, at, state, reason, sdk_app_id, content } = kept;
    let reason = reason.as_deref().unwrap_or_default();
    if let Some(app) = sdk_app_id {
        return format!("{position:<11} {at}  {app:<12} {:<6} {}\n", content.len(), plain(reason));
    }
    let event: Value = serde_json::from_slice(content).unwrap_or_default();
    let field = |name: &str| plain(event["data"][name].as_str().unwrap_or("?"));
    let (topic, name) = (field("topic_id"), field("topic_name"));
    format!("{position:<11} {at}  {state:<10} {topic}  {name:?}  {}\n", plain(reason))
}

/// Names are user input: characters that could move a terminal's cursor are escaped.
fn plain(text: &str) -> String {
    text.chars()
        .flat_map(
            |char| if char.is_control() { char.escape_default().collect() } else { vec![char] },
        )
        .collect()
}

fn line_of_json(kept: &Kept) -> String {
    let Kept { position, at, state, reason, sdk_app_id, content } = kept;
    let mut line = json!({ "state": state });
    let at = at.to_string();
    if let Some(reason) = reason {
        line["reason"] = json!(reason);
    }
    if let Some(app) = sdk_app_id {
        line["number"] = json!(position);
        line["received_at"] = json!(at);
        line["sdk_app_id"] = json!(app);
        line["body"] = match std::str::from_utf8(content) {
            Ok(text) => json!(text),
            Err(_) => json!({ "hex": hex::encode(content) }),
        };
        return format!("{line}\n");
    }
    line["position"] = json!(position);
    line["accepted_at"] = json!(at);
    let mut text = line.to_string();
    // The event is inserted exactly as stored.
    let event = std::str::from_utf8(content).ok().filter(|text| is_json(text)).unwrap_or("null");
    text.pop();
    let _ = writeln!(text, ",\"event\":{event}}}"); // writing to memory cannot fail
    text
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

fn find(reader: &Reader, which: &str, quarantined: bool) -> anyhow::Result<Kept> {
    let number = which.parse::<u64>();
    if quarantined {
        let number = number
            .with_context(|| format!("{which:?} is not the number of a quarantined callback"))?;
        let found = reader.run_here(|reading| reading.quarantined(number))?;
        return found.with_context(|| format!("there is no quarantined callback {number}"));
    }
    let position = match (number, Uuid::parse_str(which)) {
        (Ok(position), _) => position,
        (_, Ok(id)) => reader.run_here(|reading| reading.position_of(id))?.with_context(|| {
            format!("there is no event with the id {id}: it may be older than the history")
        })?,
        _ => bail!("{which:?} is neither a position nor an id"),
    };
    let found = reader.run_here(|reading| reading.at(position))?;
    found.with_context(|| {
        format!("there is no event at position {position}: it may be older than the history")
    })
}

fn whole(kept: &Kept) -> String {
    let Kept { position, at, state, reason, sdk_app_id, content } = kept;
    let mut text = String::new();
    let _ = match sdk_app_id {
        Some(app) => write!(text, "number    {position}\nreceived  {at}\napp       {app}\n"),
        None => write!(text, "position  {position}\naccepted  {at}\nstate     {state}\n"),
    };
    if let Some(reason) = reason {
        let _ = writeln!(text, "reason    {}", plain(reason));
    }
    let body = match (serde_json::from_slice::<Value>(content), std::str::from_utf8(content)) {
        (Ok(json), _) => format!("{json:#}"),
        (_, Ok(text)) => text.to_owned(),
        (_, Err(_)) => content.escape_ascii().to_string(),
    };
    for line in body.lines() {
        let _ = writeln!(text, "{}", plain(line));
    }
    text
}
