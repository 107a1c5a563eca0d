//! `topic-bridge outbox status`: counts and sizes.

use std::time::Duration;

use super::OutboxArgs;
use crate::cli::print;
use crate::outbox::{Reader, Status};
use crate::time::Timestamp;

pub(super) fn run(outbox: &OutboxArgs, reader: &Reader) -> anyhow::Result<()> {
    let status = reader.run_here(|reading| reading.status())?;
    print(&status_text(&status, outbox.json))
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
