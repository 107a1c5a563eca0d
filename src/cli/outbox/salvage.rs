//! `topic-bridge outbox salvage`: what can be read of a damaged outbox goes into a new one. The damaged file stays as
//! it is.

use std::fmt::Write as _;
use std::path::Path;

use crate::cli::print;
use crate::outbox::{Salvaged, salvage};

pub(super) fn run(damaged: &Path, new: &Path, is_json: bool) -> anyhow::Result<()> {
    let salvaged = salvage(damaged, new)?;
    if is_json {
        let line = serde_json::to_string(&salvaged).expect("numbers and names always encode");
        return print(&(line + "\n"));
    }
    print(&text(&salvaged, new))
}

fn text(salvaged: &Salvaged, new: &Path) -> String {
    let mut text = String::new();
    for table in &salvaged.tables {
        // Writing to memory cannot fail.
        let _ = write!(text, "{:<13} {} rows saved", table.table, table.saved);
        if table.altered > 0 {
            let _ = write!(text, ", {} of them altered by the disk", table.altered);
        }
        if table.left_out > 0 {
            let _ = write!(text, ", {} left out because they make no sense", table.left_out);
        }
        if !table.unreadable.is_empty() {
            let ranges = table.unreadable.iter().take(20);
            let ranges: Vec<_> = ranges.map(|(from, to)| format!("{from} to {to}")).collect();
            let more = if table.unreadable.len() > 20 { ", …" } else { "" };
            let _ = write!(text, "; numbers that cannot be read: {}{more}", ranges.join(", "));
        }
        text.push('\n');
    }
    let Salvaged { pending, missing, is_in_doubt, ids_rebuilt, .. } = salvaged;
    let doubt = if *is_in_doubt {
        ": how far it was delivered cannot be read, so all of it is delivered again, under the same ids"
    } else {
        ""
    };
    let _ = writeln!(
        text,
        "pending       {pending} events{doubt}\nmissing       {missing} positions, whose events are lost\n\
         ids           {ids_rebuilt} found again by their events\n\
         set outbox.path to {} and start the bridge; keep the damaged file until all is well",
        new.display()
    );
    text
}
