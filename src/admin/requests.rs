//! `GET /requests`: the last requests at the public listener, and why they were refused.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use tokio::sync::watch;

use super::Admin;
use super::chunk::Chunk;
use super::feed::{Feed, Kept, Lines};
use crate::outbox::ReadResult;
use crate::requests::Requests;

pub(super) async fn requests(
    State(admin): State<Arc<Admin>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    admin.readers.show(&admin.requests, query.as_deref(), &headers).await
}

impl Feed for Arc<Requests> {
    fn last(&self) -> watch::Receiver<u64> {
        Requests::last(self)
    }

    async fn kept(&self) -> ReadResult<Kept> {
        let newest = *Requests::last(self).borrow();
        Ok(Kept { before_oldest: self.before_oldest(), newest })
    }
}

impl Lines for Arc<Requests> {
    async fn fill(&self, mut chunk: Chunk) -> ReadResult<Chunk> {
        for (number, request) in self.after(chunk.after(), chunk.limit()) {
            let json = serde_json::to_string(&request).expect("texts and numbers always encode");
            if chunk.push(number, &json).is_break() {
                break;
            }
        }
        Ok(chunk)
    }
}
