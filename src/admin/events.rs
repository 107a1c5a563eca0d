//! `GET /events`: the event stream, either endless as server-sent events, or page by page as lines. Both
//! read the outbox, so they show what is durable, and resume at a position without a gap or a repeat.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Admin, refuse};
use crate::callback::digits;
use crate::outbox::{ReadResult, Stored, position};
use crate::server::{Phase, reached};

/// Events read at a time for the endless stream.
const STREAM_PAGE: usize = 256;

/// How long the endless stream may be silent before a comment shows that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// For a page: the default of `limit`, its maximum, and that of `wait`.
const DEFAULT_LIMIT: usize = 1000;
const MAX_LIMIT: usize = 10_000;
const MAX_WAIT: Duration = Duration::from_secs(60);

const NDJSON: &str = "application/x-ndjson";
const NEXT_AFTER: HeaderName = HeaderName::from_static("next-after");
const MISSED_EVENTS: HeaderName = HeaderName::from_static("missed-events");

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq)]
enum From {
    Start,
    Now,
    After(u64),
}

#[derive(Debug, PartialEq)]
struct Asked {
    from: Option<From>,
    limit: usize,
    wait: Duration,
}

pub(super) async fn events(
    State(admin): State<Arc<Admin>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let asked = match ask(query.as_deref().unwrap_or_default(), &headers) {
        Ok(asked) => asked,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error),
    };
    let wants_page = headers
        .get_all(ACCEPT)
        .iter()
        .any(|accept| accept.to_str().is_ok_and(|accept| accept.contains(NDJSON)));
    let from = asked.from.unwrap_or(if wants_page { From::Start } else { From::Now });
    let result = async {
        let start = admin.start(from).await?;
        if wants_page { admin.page(start, &asked).await } else { Ok(admin.stream(start)) }
    };
    result.await.unwrap_or_else(|error| {
        tracing::error!(%error, "cannot read events from the outbox");
        refuse(StatusCode::INTERNAL_SERVER_ERROR, "the outbox cannot be read, see the log")
    })
}

/// Reads the query and `Last-Event-ID`. A reconnecting browser sends the latter, so it takes precedence
/// over the original query.
fn ask(query: &str, headers: &HeaderMap) -> Result<Asked, String> {
    let mut asked = Asked { from: None, limit: DEFAULT_LIMIT, wait: Duration::ZERO };
    let position = |name: &str, value: &str| {
        digits(value).ok_or_else(|| format!("{name} is {value:?}, expected a position: digits"))
    };
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "after" => asked.from = Some(From::After(position("after", &value)?)),
            "from" => match &*value {
                "start" => asked.from = Some(From::Start),
                "now" => asked.from = Some(From::Now),
                _ => return Err(format!("from is {value:?}, expected \"start\" or \"now\"")),
            },
            "limit" => match digits(&value).and_then(|limit| usize::try_from(limit).ok()) {
                Some(limit) if limit > 0 => asked.limit = limit.min(MAX_LIMIT),
                _ => return Err(format!("limit is {value:?}, expected a number of 1 or more")),
            },
            "wait" => match humantime::parse_duration(&value) {
                Ok(wait) => asked.wait = wait.min(MAX_WAIT),
                Err(_) => {
                    return Err(format!("wait is {value:?}, expected a duration such as 10s"));
                }
            },
            _ => {}
        }
    }
    if let Some(last) = headers.get("last-event-id").and_then(|last| last.to_str().ok()) {
        asked.from = Some(From::After(position("Last-Event-ID", last)?));
    }
    Ok(asked)
}

/// Where reading begins, and how many events before that have already been removed.
#[derive(Debug, Clone, Copy)]
struct Start {
    after: u64,
    missed: u64,
}

impl Admin {
    async fn start(&self, from: From) -> ReadResult<Start> {
        let last = *self.outbox.last().borrow();
        let (before_oldest, newest) =
            self.reader.run(|reading| Ok((reading.before_oldest()?, reading.newest()?))).await?;
        Ok(match from {
            From::Now => Start { after: last, missed: 0 },
            From::Start => Start { after: before_oldest, missed: 0 },
            // A position past the newest one comes from another outbox: everything here is new to this
            // reader.
            From::After(after) if after > newest => {
                Start { after: before_oldest, missed: before_oldest }
            }
            From::After(after) => Start {
                after: after.max(before_oldest),
                missed: before_oldest.saturating_sub(after),
            },
        })
    }

    /// One page of lines, and where the next page begins.
    async fn page(&self, start: Start, asked: &Asked) -> ReadResult<Response> {
        let mut last = self.outbox.last();
        let is_there = last.wait_for(|last| *last > start.after);
        let _ = timeout(asked.wait, is_there).await; // on timeout the page is empty
        let limit = asked.limit;
        let events = self.reader.run(move |reading| reading.after(start.after, limit)).await?;
        let next = events.last().map_or(start.after, position);
        let mut lines = String::new();
        for Stored { event, .. } in events.iter().flatten() {
            lines.push_str(&event.structured());
            lines.push('\n');
        }
        let mut response = ([(CONTENT_TYPE, NDJSON)], lines).into_response();
        let headers = response.headers_mut();
        headers.insert(NEXT_AFTER, next.into());
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if start.missed > 0 {
            headers.insert(MISSED_EVENTS, start.missed.into());
        }
        Ok(response)
    }

    /// Endless server-sent events.
    fn stream(self: &Arc<Self>, start: Start) -> Response {
        let follower = Follower {
            admin: self.clone(),
            last: self.outbox.last(),
            phase: self.phase.clone(),
            after: start.after,
            greeting: Some(greeting(start)),
        };
        let chunks = stream::unfold(follower, |mut follower| async move {
            let chunk = follower.next().await?;
            Some((Ok::<_, Infallible>(chunk), follower))
        });
        let headers = [
            (CONTENT_TYPE, "text/event-stream"),
            (CACHE_CONTROL, "no-store"),
            (HeaderName::from_static("x-accel-buffering"), "no"),
        ];
        (headers, Body::from_stream(chunks)).into_response()
    }
}

/// The start of a stream, so that its reader sees at once that it is open. Missed events are reported as
/// an event of a separate type, which readers that do not listen for it never see.
fn greeting(start: Start) -> Bytes {
    let Start { after, missed } = start;
    if missed == 0 {
        return Bytes::from_static(b": open\n\n");
    }
    Bytes::from(format!("event: missed\ndata: {{\"events\":{missed},\"next_after\":{after}}}\n\n"))
}

/// One reader of the endless stream.
struct Follower {
    admin: Arc<Admin>,
    last: watch::Receiver<u64>,
    phase: watch::Receiver<Phase>,
    after: u64,
    greeting: Option<Bytes>,
}

impl Follower {
    /// The next piece of the stream, or its end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting);
        }
        let after = self.after;
        if *self.last.borrow() <= after {
            tokio::select! {
                new = timeout(KEEP_ALIVE, self.last.wait_for(|last| *last > after)) => match new {
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) => return None, // the outbox is gone
                    Err(_) => return Some(Bytes::from_static(b": idle\n\n")),
                },
                // Everything is shown, and no more will come.
                () = reached(&mut self.phase, Phase::Closed) => return None,
            }
        }
        let page = self.admin.reader.run(move |reading| reading.after(after, STREAM_PAGE)).await;
        let events = page
            .inspect_err(|error| tracing::error!(%error, "cannot read events from the outbox"))
            .ok()?;
        let first = position(events.first()?);
        let mut text = String::new();
        if first > after + 1 {
            // The reader has fallen behind the oldest event in the history.
            let missed = Start { after: first - 1, missed: first - 1 - after };
            text.push_str(std::str::from_utf8(&greeting(missed)).unwrap_or_default());
        }
        for slot in &events {
            use std::fmt::Write as _;
            self.after = position(slot);
            // A damaged event cannot be shown; the relay makes it a dead letter when it reaches it.
            if let Ok(Stored { position, event, .. }) = slot {
                let event = event.structured();
                let _ = write!(text, "id: {position}\ndata: {event}\n\n"); // writing to memory cannot fail
            }
        }
        if text.is_empty() {
            text.push_str(": damaged\n\n");
        }
        Some(Bytes::from(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_read_and_nonsense_is_named() {
        let mut headers = HeaderMap::new();
        let asked = |query: &str, headers: &HeaderMap| ask(query, headers);
        let plain = asked("", &headers).unwrap();
        assert_eq!(plain, Asked { from: None, limit: 1000, wait: Duration::ZERO });
        let full = asked("after=7&limit=99999&wait=10s&x=y", &headers).unwrap();
        let wait = Duration::from_secs(10);
        assert_eq!(full, Asked { from: Some(From::After(7)), limit: 10_000, wait });
        assert_eq!(asked("from=start", &headers).unwrap().from, Some(From::Start));
        for wrong in ["after=x", "after=-1", "from=7", "limit=0", "limit=x", "wait=10"] {
            let name = wrong.split('=').next().unwrap();
            assert!(asked(wrong, &headers).unwrap_err().starts_with(name), "{wrong}");
        }
        headers.insert("last-event-id", "9".parse().unwrap());
        assert_eq!(asked("from=start", &headers).unwrap().from, Some(From::After(9)));
    }
}
