//! What a connection is doing, and since when: sending a request's head, being answered, idle, or keeping
//! an answer waiting. From that follows when its time is up.
//!
//! hyper's own timer for a request's head also runs while a kept-alive connection is idle, so the two
//! could not have different limits; and it has none for an answer that nobody takes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::Limits;

/// How long a closed connection still reads: closing with unread data would lose the last answer.
const LAST_READS: Duration = Duration::from_millis(500);

/// Instead of milliseconds: it is not so.
const NOT: u64 = u64::MAX;

/// All times are in milliseconds from `opened`.
pub(super) struct Activity {
    opened: Instant,
    /// Whether data between two requests is the start of a head: not if it may also be a ping.
    has_heads: AtomicBool,
    /// Requests that are being answered.
    answering: AtomicUsize,
    is_in_head: AtomicBool,
    /// The last change between being in a head, being answered and being idle.
    since: AtomicU64,
    /// Since when the socket has taken nothing of what there is to send.
    full_since: AtomicU64,
    /// Answers of HTTP/2 of which a part is ready and the peer's window has no room, which the socket does
    /// not show: it still takes pings.
    held: AtomicUsize,
    held_since: AtomicU64,
    closed_since: AtomicU64,
}

impl Activity {
    /// A new connection starts out waiting for a head.
    pub(super) fn new() -> Self {
        Activity {
            opened: Instant::now(),
            has_heads: true.into(),
            answering: 0.into(),
            is_in_head: true.into(),
            since: 0.into(),
            full_since: NOT.into(),
            held: 0.into(),
            held_since: NOT.into(),
            closed_since: NOT.into(),
        }
    }

    /// From here on it is HTTP that is spoken.
    pub(super) fn begin(&self, is_http2: bool) {
        self.has_heads.store(!is_http2, Relaxed);
        self.since.store(self.now(), Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(NOT - 1)
    }

    pub(super) fn received(&self) {
        let is_idle = self.answering.load(Relaxed) == 0 && !self.is_in_head.load(Relaxed);
        if is_idle && self.has_heads.load(Relaxed) {
            self.is_in_head.store(true, Relaxed);
            self.since.store(self.now(), Relaxed);
        }
    }

    /// The socket has taken something, or cannot at present.
    pub(super) fn wrote(&self, is_full: bool) {
        match (is_full, self.is_full()) {
            (true, false) => self.full_since.store(self.now(), Relaxed),
            (false, true) => {
                self.full_since.store(NOT, Relaxed);
                self.since.store(self.now(), Relaxed);
            }
            _ => {}
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.full_since.load(Relaxed) != NOT
    }

    pub(super) fn closed(&self) {
        if self.closed_since.load(Relaxed) == NOT {
            self.closed_since.store(self.now(), Relaxed);
        }
    }

    /// When to check again, or, if in the past, to close. Answering has its own time limits, until there is
    /// something to send.
    pub(super) fn deadline(&self, limits: &Limits) -> Instant {
        let after = |since: &AtomicU64, limit: Duration| {
            let since = since.load(Relaxed);
            (since != NOT).then(|| self.opened + Duration::from_millis(since) + limit)
        };
        if let Some(closed) = after(&self.closed_since, LAST_READS) {
            return closed;
        }
        let full = after(&self.full_since, limits.write_timeout);
        // Of HTTP/1 an answer that is taken slowly is not held: its socket shows that it moves.
        let is_held = self.held.load(Relaxed) > 0 && !self.has_heads.load(Relaxed);
        let held = is_held.then(|| after(&self.held_since, limits.write_timeout)).flatten();
        if let Some(stuck) = full.into_iter().chain(held).min() {
            return stuck;
        }
        let limit = if self.answering.load(Relaxed) > 0 {
            let check = limits.header_timeout.min(limits.idle_timeout).min(limits.write_timeout);
            return Instant::now() + check;
        } else if self.is_in_head.load(Relaxed) {
            limits.header_timeout
        } else {
            limits.idle_timeout
        };
        self.opened + Duration::from_millis(self.since.load(Relaxed)) + limit
    }
}

/// Marks a request as being answered for as long as this value lives.
pub(super) struct Busy {
    activity: Arc<Activity>,
    is_held: bool,
}

impl Busy {
    pub(super) fn enter(activity: Arc<Activity>) -> Self {
        activity.answering.fetch_add(1, Relaxed);
        activity.is_in_head.store(false, Relaxed);
        Busy { activity, is_held: false }
    }

    /// Something of the answer is ready, and is the peer's to take.
    fn hold(&mut self) {
        if !std::mem::replace(&mut self.is_held, true)
            && self.activity.held.fetch_add(1, Relaxed) == 0
        {
            self.activity.held_since.store(self.activity.now(), Relaxed);
        }
    }

    fn release(&mut self) {
        if std::mem::take(&mut self.is_held) {
            self.activity.held_since.store(self.activity.now(), Relaxed);
            self.activity.held.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.release();
        self.activity.answering.fetch_sub(1, Relaxed);
        self.activity.since.store(self.activity.now(), Relaxed);
    }
}

/// An answer's body. A request counts as being answered until it is sent, and as held from the moment a part
/// of it is handed out until the next part is asked for.
pub(super) struct AnswerBody<B> {
    body: B,
    busy: Busy,
}

impl<B> AnswerBody<B> {
    pub(super) fn new(body: B, mut busy: Busy) -> Self {
        busy.hold(); // its head
        AnswerBody { body, busy }
    }
}

impl<B: Body + Unpin> Body for AnswerBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.busy.release();
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.busy.hold();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
