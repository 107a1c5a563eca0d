//! A feed: numbered lines of JSON, either endless as server-sent events, or page by page as lines. A reader resumes
//! at a number without a gap or a repeat, and what it is shown is paid for from one budget for all readers: whoever
//! does not read keeps its share until its connection is closed, and the others wait.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::ask::{Asked, From, NDJSON};
use super::budget::Budget;
use super::chunk::{Chunk, Form, missed_events};
use super::refuse;
use crate::outbox::{ReadError, ReadResult};
use crate::server::{Phase, reached};

/// How long the endless stream may be silent before a comment shows that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Lines and bytes of a piece of the endless stream. Each of the connections that are allowed by default can hold
/// one within the default budget, so that none waits because of the others.
const STREAM_LINES: usize = 256;
const STREAM_BYTES: usize = 128 << 10;

/// A page is cut here, but has at least one line. As many events as may be asked for fit, if they are as large as
/// usual.
const PAGE_BYTES: usize = 8 << 20;

/// How long a page waits for its share of the budget, and then its reader before it asks again.
const PATIENCE: Duration = Duration::from_secs(5);

const NEXT_AFTER: HeaderName = HeaderName::from_static("next-after");
const MISSED_EVENTS: HeaderName = HeaderName::from_static("missed-events");

/// What is kept at the moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    /// The number before the oldest line.
    pub(super) before_oldest: u64,
    /// The newest number ever given, even if its line has been removed.
    pub(super) newest: u64,
}

/// Numbered lines.
pub(super) trait Lines {
    /// Pushes into the chunk the lines after [`Chunk::after`], at most [`Chunk::limit`], until it breaks.
    fn fill(&self, chunk: Chunk) -> impl Future<Output = ReadResult<Chunk>> + Send;
}

/// Lines numbered from 1 upwards without gaps, of which the oldest are removed over time.
pub(super) trait Feed: Lines + Clone + Send + Sync + 'static {
    /// The newest number that can be read.
    fn last(&self) -> watch::Receiver<u64>;

    fn kept(&self) -> impl Future<Output = ReadResult<Kept>> + Send;
}

/// What the readers of all feeds share.
#[derive(Clone)]
pub(crate) struct Readers {
    pub(crate) budget: Budget,
    /// The listener's phase: endless streams end when they have shown everything.
    pub(crate) phase: watch::Receiver<Phase>,
}

/// Where reading begins, and how many lines before that have already been removed.
#[derive(Debug, Clone, Copy)]
struct Start {
    after: u64,
    missed: u64,
}

impl Readers {
    pub(super) async fn show<F: Feed>(
        &self,
        feed: &F,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Response {
        let asked = match Asked::read(query.unwrap_or_default(), headers) {
            Ok(asked) => asked,
            Err(error) => return refuse(StatusCode::BAD_REQUEST, &error),
        };
        let result = async {
            let start = start(feed, asked.from).await?;
            if !asked.wants_page {
                return Ok(self.stream(feed, start));
            }
            let mut last = feed.last();
            let is_there = last.wait_for(|last| *last > start.after);
            let _ = timeout(asked.wait, is_there).await; // on timeout the page is empty
            let mut response = self.page(feed, start.after, asked.limit).await?;
            if start.missed > 0 {
                response.headers_mut().insert(MISSED_EVENTS, start.missed.into());
            }
            Ok(response)
        };
        result.await.unwrap_or_else(unreadable)
    }

    /// A page of lines that are not a feed, whatever form is asked for.
    pub(super) async fn list(
        &self,
        lines: &impl Lines,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Response {
        let asked = match Asked::read(query.unwrap_or_default(), headers) {
            Ok(asked) => asked,
            Err(error) => return refuse(StatusCode::BAD_REQUEST, &error),
        };
        let after = if let From::After(after) = asked.from { after } else { 0 };
        self.page(lines, after, asked.limit).await.unwrap_or_else(unreadable)
    }

    /// One page of lines, and where the next page begins.
    async fn page(&self, lines: &impl Lines, after: u64, limit: usize) -> ReadResult<Response> {
        let read = self.read(lines, Form::Page, after, limit);
        let Ok(read) = timeout(PATIENCE, read).await else {
            return Ok(busy());
        };
        let (lines, next) = read?;
        let mut response = ([(CONTENT_TYPE, NDJSON)], Body::from(lines)).into_response();
        let headers = response.headers_mut();
        headers.insert(NEXT_AFTER, next.into());
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    /// Endless server-sent events.
    fn stream<F: Feed>(&self, feed: &F, start: Start) -> Response {
        let follower = Follower {
            last: feed.last(),
            feed: feed.clone(),
            readers: self.clone(),
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

    /// Waits for a share of the budget, then reads no more than it pays for. Returns the text and the number of the
    /// last line that is in it.
    async fn read(
        &self,
        lines: &impl Lines,
        form: Form,
        after: u64,
        limit: usize,
    ) -> ReadResult<(Bytes, u64)> {
        let most = match form {
            Form::Stream => STREAM_BYTES,
            Form::Page => PAGE_BYTES,
        };
        let mut max_bytes = self.budget.at_most(most);
        loop {
            let share = self.budget.reserve(max_bytes).await;
            let chunk = Chunk::new(form, after, limit, max_bytes, share);
            match lines.fill(chunk).await?.finish() {
                Ok(read) => return Ok(read),
                Err(needed) => max_bytes = needed,
            }
        }
    }
}

async fn start(feed: &impl Feed, from: From) -> ReadResult<Start> {
    let last = *feed.last().borrow();
    let Kept { before_oldest, newest } = feed.kept().await?;
    Ok(match from {
        From::Now => Start { after: last, missed: 0 },
        From::Start => Start { after: before_oldest, missed: 0 },
        // A number past the newest one comes from another outbox: everything here is new to this reader.
        From::After(after) if after > newest => {
            Start { after: before_oldest, missed: before_oldest }
        }
        From::After(after) => {
            Start { after: after.max(before_oldest), missed: before_oldest.saturating_sub(after) }
        }
    })
}

fn unreadable(error: ReadError) -> Response {
    tracing::error!(%error, "cannot read events from the outbox");
    refuse(StatusCode::INTERNAL_SERVER_ERROR, "the outbox cannot be read, see the log")
}

fn busy() -> Response {
    let error = "other readers hold all of admin.max_buffer_bytes: ask again later";
    let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, error);
    response.headers_mut().insert(RETRY_AFTER, PATIENCE.as_secs().into());
    response
}

/// The start of a stream, so that its reader sees at once that it is open.
fn greeting(start: Start) -> Bytes {
    match start.missed {
        0 => Bytes::from_static(b": open\n\n"),
        missed => Bytes::from(missed_events(missed, start.after)),
    }
}

/// One reader of the endless stream.
struct Follower<F> {
    feed: F,
    readers: Readers,
    last: watch::Receiver<u64>,
    after: u64,
    greeting: Option<Bytes>,
}

impl<F: Feed> Follower<F> {
    /// The next piece of the stream, or its end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting);
        }
        let after = self.after;
        let idle = Some(Bytes::from_static(b": idle\n\n"));
        if *self.last.borrow() <= after {
            tokio::select! {
                new = timeout(KEEP_ALIVE, self.last.wait_for(|last| *last > after)) => match new {
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) => return None, // the feed is gone
                    Err(_) => return idle,
                },
                // Everything is shown, and no more will come.
                () = reached(&mut self.readers.phase, Phase::Closed) => return None,
            }
        }
        let read = self.readers.read(&self.feed, Form::Stream, after, STREAM_LINES);
        let Ok(read) = timeout(KEEP_ALIVE, read).await else {
            return idle; // other readers hold all of the budget
        };
        let (text, next) = read
            .inspect_err(|error| tracing::error!(%error, "cannot read events from the outbox"))
            .ok()?;
        if next == after {
            return None; // what was announced is gone, with the feed
        }
        self.after = next;
        Some(if text.is_empty() { Bytes::from_static(b": damaged\n\n") } else { text })
    }
}
