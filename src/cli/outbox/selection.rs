//! Which rows a command is about, as arguments.

use anyhow::{Context as _, bail};
use uuid::Uuid;

use crate::outbox::Filter;
use crate::time::Timestamp;

#[derive(Debug, clap::Args)]
pub(super) struct Selection {
    /// Only this event, or the quarantined body with this number.
    #[arg(value_name = "POSITION|ID", conflicts_with = "id")]
    which: Option<String>,
    /// Only what was accepted (a quarantined body: received) at this time or later: 2026-11-22T18:00:00Z,
    /// 2026-11-22, or 2h for two hours ago.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Only what was accepted (a quarantined body: received) before this time.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// Only the events with this id.
    #[arg(long)]
    id: Option<Uuid>,
    /// Only events of the topic with this id.
    #[arg(long, value_name = "TOPIC_ID")]
    topic: Option<String>,
    /// Only what has this text in its reason.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Selection {
    pub(super) fn filter(&self) -> anyhow::Result<Filter> {
        let Selection { which, since, until, id, topic, reason } = self;
        let (mut id, mut position) = (*id, None);
        if let Some(which) = which {
            match (which.parse(), Uuid::parse_str(which)) {
                (Ok(number), _) => position = Some(number),
                (_, Ok(named)) => id = Some(named),
                _ => bail!("{which:?} is neither a position nor an id"),
            }
        }
        let (topic, reason) = (topic.clone(), reason.clone());
        Ok(Filter { since: *since, until: *until, id, position, topic, reason })
    }
}

/// A time, a day, or how long ago.
fn moment(text: &str) -> anyhow::Result<Timestamp> {
    let time = Timestamp::parse_rfc3339(text).or_else(|_| {
        Timestamp::parse_rfc3339(&format!("{text}T00:00:00Z")) // the day's beginning
    });
    if let Ok(time) = time {
        return Ok(time);
    }
    let ago = humantime::parse_duration(text).ok().context(
        "expected a time such as 2026-11-22T18:00:00Z or 2026-11-22, or 2h for two hours ago",
    )?;
    Ok(Timestamp::now() - ago)
}
