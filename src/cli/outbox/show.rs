//! `topic-bridge outbox show`: one event whole, or one quarantined callback.

use anyhow::{Context as _, bail};
use uuid::Uuid;

use crate::outbox::{Kept, Reader};

pub(super) fn find(reader: &Reader, which: &str, quarantined: bool) -> anyhow::Result<Kept> {
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
