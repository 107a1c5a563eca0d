//! `topic-bridge outbox export`: events as CloudEvents, quarantined bodies whole, one a line. It only reads.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;

use super::Rows;
use super::kept::{is_json, line_of_json};
use super::selection::Selection;
use crate::cli::{print_while_read, say};
use crate::outbox::{Act, List, Of, Order, Reader};

#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// The outbox file, if not the configuration's outbox.path.
    #[arg(long, value_name = "FILE")]
    pub(super) path: Option<PathBuf>,
    #[command(flatten)]
    rows: Rows,
    #[command(flatten)]
    selection: Selection,
}

pub(super) fn run(args: &ExportArgs, reader: &Reader) -> anyhow::Result<ExitCode> {
    let (list, filter) = (args.rows.list(), args.selection.filter()?);
    if list == List::Quarantined {
        let order = Order { of: Some(Of::Quarantined), filter: filter.clone(), ..Order::default() };
        if let Some(fault) = order.fault(Act::Drop, false) {
            bail!(fault);
        }
    }
    let (mut after, mut damaged) = (0, 0);
    loop {
        let page = reader.run_here(|reading| reading.matching(list, &filter, after))?;
        for position in page.matches {
            let found = reader.run_here(|reading| match list {
                List::Quarantined => reading.quarantined(position),
                _ => reading.at(position),
            })?;
            let Some(kept) = found else { continue }; // gone meanwhile
            let event = std::str::from_utf8(&kept.content).ok().filter(|text| is_json(text));
            let line = match (list, event) {
                (List::Quarantined, _) => line_of_json(&kept),
                (_, Some(event)) => format!("{event}\n"),
                (_, None) => {
                    damaged += 1;
                    continue;
                }
            };
            if print_while_read(&line)?.is_break() {
                return Ok(ExitCode::SUCCESS);
            }
        }
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    if damaged == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    say(format_args!(
        "topic-bridge: {damaged} events were left out, because they are damaged: see `topic-bridge outbox list`"
    ));
    Ok(ExitCode::FAILURE)
}
