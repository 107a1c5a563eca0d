//! `topic-bridge outbox list`: a line for each event or quarantined callback.

use super::kept::{line_of_json, line_of_text};
use crate::cli::{print, print_while_read};
use crate::outbox::{List, Reader};

/// Rows read at a time: a long read would keep the bridge's log from being emptied.
const PAGE: usize = 500;

pub(super) fn print_list(
    reader: &Reader,
    list: List,
    mut after: u64,
    mut limit: usize,
    json: bool,
) -> anyhow::Result<()> {
    if !json {
        print(match list {
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
        if print_while_read(&rows.iter().map(line).collect::<String>())?.is_break() {
            break;
        }
    }
    Ok(())
}
