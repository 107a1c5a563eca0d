//! `GET /dead-letters` and `GET /quarantine`: what needs an operator, as lines of JSON, oldest first, a page at a time.
//! Both are numbered with gaps, and change when the operator acts, so there is no endless stream of them.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::json;

use super::Admin;
use super::chunk::Chunk;
use super::feed::Lines;
use crate::outbox::{self, List, ReadResult, Reader};

pub(super) async fn dead_letters(
    State(admin): State<Arc<Admin>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let kept = Kept { reader: admin.events.reader(), list: List::DeadLetters };
    admin.readers.list(&kept, query.as_deref(), &headers).await
}

pub(super) async fn quarantine(
    State(admin): State<Arc<Admin>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let kept = Kept { reader: admin.events.reader(), list: List::Quarantined };
    admin.readers.list(&kept, query.as_deref(), &headers).await
}

struct Kept {
    reader: Reader,
    list: List,
}

impl Lines for Kept {
    async fn fill(&self, mut chunk: Chunk) -> ReadResult<Chunk> {
        let list = self.list;
        let filled = self.reader.run(move |reading| {
            // One by one: a single row can be as large as a body may be.
            while let Some(row) = reading.list(list, chunk.after(), 1)?.pop() {
                if chunk.push(row.position, &line(&row)).is_break() {
                    break;
                }
            }
            Ok(chunk)
        });
        filled.await
    }
}

/// `content` is the event, or the body as it came; `hex` if that is not text.
fn line(row: &outbox::Kept) -> String {
    let outbox::Kept { position, at, reason, content, .. } = row;
    let mut line = json!({ "number": position, "at": at, "reason": reason });
    match std::str::from_utf8(content) {
        Ok(text) => line["content"] = json!(text),
        Err(_) => line["hex"] = json!(hex::encode(content)),
    }
    line.to_string()
}
