//! `GET /events`: the events in the outbox, so every one that is durable, whichever sink is in use.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use tokio::sync::watch;

use super::Admin;
use super::chunk::Chunk;
use super::feed::{Feed, Kept, Lines};
use crate::outbox::{OpenError, Outbox, ReadResult, Reader, Stored, position};

pub(super) async fn events(
    State(admin): State<Arc<Admin>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    admin.readers.show(&admin.events, query.as_deref(), &headers).await
}

#[derive(Clone)]
pub(crate) struct Events {
    outbox: Outbox,
    reader: Reader,
}

impl Events {
    pub(crate) fn of(outbox: &Outbox) -> Result<Self, OpenError> {
        Ok(Events { outbox: outbox.clone(), reader: outbox.reader()? })
    }

    /// The connection of all who read what is in the outbox.
    pub(super) fn reader(&self) -> Reader {
        self.reader.clone()
    }
}

impl Feed for Events {
    fn last(&self) -> watch::Receiver<u64> {
        self.outbox.last()
    }

    async fn kept(&self) -> ReadResult<Kept> {
        let kept = self.reader.run(|reading| {
            Ok(Kept { before_oldest: reading.before_oldest()?, newest: reading.newest()? })
        });
        kept.await
    }
}

impl Lines for Events {
    async fn fill(&self, mut chunk: Chunk) -> ReadResult<Chunk> {
        let filled = self.reader.run(move |reading| {
            let (after, limit) = (chunk.after(), chunk.limit());
            reading.each_after(after, limit, |slot| match slot {
                Ok(Stored { position, event, .. }) => chunk.push(position, &event.structured()),
                // The relay makes a damaged event a dead letter when it reaches it.
                Err(_) => chunk.skip(position(&slot)),
            })?;
            Ok(chunk)
        });
        filled.await
    }
}
