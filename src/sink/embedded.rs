//! The sink without a broker: the outbox's own history is the stream, and consumers read it over the
//! private listener. Whatever the relay has read back from the outbox is already in the stream, durably.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;

use super::subscribed;
use crate::outbox::{self, Reader};

/// How often `tail` looks for new events.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Events that `tail` reads at a time.
const PAGE: usize = 1000;

/// Reads the file, with or without a running bridge.
pub(super) async fn tail(
    outbox: &Path,
    from_start: bool,
    lines: mpsc::Sender<String>,
) -> anyhow::Result<()> {
    let reader = Reader::open(outbox)?;
    let mut position = reader
        .run(move |reading| if from_start { reading.before_oldest() } else { reading.newest() })
        .await
        .context("cannot read the outbox")?;
    subscribed(from_start);
    loop {
        let page = reader.run(move |reading| reading.after(position, PAGE)).await;
        let page = page.context("cannot read the outbox")?;
        if page.is_empty() {
            tokio::select! {
                () = lines.closed() => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        for slot in page {
            position = outbox::position(&slot);
            // A damaged event cannot be shown here; `outbox list` shows it.
            if let Ok(stored) = slot
                && lines.send(stored.event.structured()).await.is_err()
            {
                return Ok(());
            }
        }
    }
}
