//! The last requests at the public listener, in memory, and why they were refused: for whoever connects the
//! platform for the first time. They show which check failed and by how much, and never a token, a signature,
//! a body, or a user's id.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::mem;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use humantime::format_duration;
use serde::Serialize;
use tokio::sync::watch;

use crate::time::Timestamp;
use crate::trace::TraceContext;

/// How many are kept.
pub(crate) const KEPT: usize = 1000;

/// A command in a URL is anything that a stranger likes to send: more of it is cut off.
const MAX_COMMAND: usize = 64;

/// One request. What is unknown is `null`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Request {
    pub(crate) at: Timestamp,
    pub(crate) peer: Option<SocketAddr>,
    /// The URL's `CallbackCommand`.
    pub(crate) command: Option<Cow<'static, str>>,
    pub(crate) sdk_app_id: Option<u64>,
    /// The label of `callbacks_total`; `not_found` and `method_not_allowed`, which are no callbacks; `null`
    /// if the client hung up before its answer.
    pub(crate) outcome: Option<&'static str>,
    /// Which check failed, and by how much; or what else the outcome does not say.
    pub(crate) reason: Option<Cow<'static, str>>,
    pub(crate) answer_ms: f64,
    /// How much of the body came.
    pub(crate) body_bytes: u64,
}

/// The last [`KEPT`] requests, numbered from 1.
pub(crate) struct Requests {
    kept: Mutex<VecDeque<Request>>,
    last: watch::Sender<u64>,
}

impl Requests {
    pub(crate) fn new() -> Self {
        Requests { kept: Mutex::new(VecDeque::with_capacity(KEPT)), last: watch::Sender::new(0) }
    }

    /// Notes a request that has arrived; it is recorded when the entry is dropped.
    pub(crate) fn enter(&self, at: Timestamp, peer: Option<SocketAddr>) -> Entry<'_> {
        let request = Request { at, peer, ..Request::default() };
        Entry { requests: self, arrived: Instant::now(), announced: None, trace: None, request }
    }

    fn record(&self, request: Request) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(request);
        self.last.send_modify(|last| *last += 1);
    }

    /// The number of the last one; a change wakes those who wait for more.
    pub(crate) fn last(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// The number before the oldest that is kept.
    pub(crate) fn before_oldest(&self) -> u64 {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        *self.last.borrow() - kept.len() as u64
    }

    /// At most `limit` of those after this number, each with its own.
    pub(crate) fn after(&self, after: u64, limit: usize) -> Vec<(u64, Request)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let before_oldest = *self.last.borrow() - kept.len() as u64;
        let skip = usize::try_from(after.saturating_sub(before_oldest)).unwrap_or(usize::MAX);
        let numbered = (before_oldest + 1..).zip(kept.iter());
        numbered.skip(skip).take(limit).map(|(number, request)| (number, request.clone())).collect()
    }
}

/// A request that is being answered.
pub(crate) struct Entry<'r> {
    requests: &'r Requests,
    arrived: Instant,
    /// The length of the body, as its head says.
    announced: Option<u64>,
    trace: Option<TraceContext>,
    request: Request,
}

impl Entry<'_> {
    /// What its URL asks for.
    pub(crate) fn asks(&mut self, command: Option<Cow<'static, str>>, sdk_app_id: Option<u64>) {
        self.request.sdk_app_id = sdk_app_id;
        self.request.command = command.map(|command| match command {
            Cow::Owned(text) if text.len() > MAX_COMMAND => {
                text.chars().take(MAX_COMMAND).collect()
            }
            short => short,
        });
    }

    pub(crate) fn announces(&mut self, length: Option<u64>) {
        self.announced = length;
    }

    /// How much of the body came in the time for it.
    pub(crate) fn of_body(&self, time: Duration) -> String {
        let (came, time) = (self.request.body_bytes, format_duration(time));
        match self.announced {
            Some(length) => format!("{came} of {length} bytes of the body came within {time}"),
            None => format!("{came} bytes of a body in chunks came within {time}, and not its end"),
        }
    }

    pub(crate) fn has_body(&mut self, bytes: u64) {
        self.request.body_bytes = bytes;
    }

    /// The trace that it belongs to.
    pub(crate) fn belongs_to(&mut self, trace: Option<TraceContext>) {
        self.trace = trace;
    }

    pub(crate) fn trace(&self) -> Option<TraceContext> {
        self.trace
    }

    pub(crate) fn command(&self) -> Option<&str> {
        self.request.command.as_deref()
    }

    pub(crate) fn outcome(&self) -> Option<&'static str> {
        self.request.outcome
    }

    /// Why it ended as it did; nothing where the outcome says it all.
    pub(crate) fn reason(&self) -> &str {
        self.request.reason.as_deref().unwrap_or_default()
    }

    pub(crate) fn ends(&mut self, outcome: &'static str, reason: Option<Cow<'static, str>>) {
        (self.request.outcome, self.request.reason) = (Some(outcome), reason);
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut request = mem::take(&mut self.request);
        request.answer_ms = (self.arrived.elapsed().as_secs_f64() * 10_000.0).round() / 10.0;
        if request.outcome.is_none() {
            request.reason = Some("the client hung up before its answer".into());
        }
        self.requests.record(request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_thousand_are_kept_and_numbered() {
        let requests = Requests::new();
        let numbers = |after: u64, limit: usize| {
            let found = requests.after(after, limit).into_iter();
            found.map(|(number, request)| (number, request.body_bytes)).collect::<Vec<_>>()
        };
        assert_eq!((numbers(0, 10), requests.before_oldest()), (vec![], 0));
        for number in 1..=1002 {
            requests.enter(Timestamp::default(), None).has_body(number);
        }
        assert_eq!((*requests.last().borrow(), requests.before_oldest()), (1002, 2));
        assert_eq!(numbers(0, 2), [(3, 3), (4, 4)]);
        assert_eq!(numbers(3, 1), [(4, 4)]);
        assert_eq!(numbers(1000, 10), [(1001, 1001), (1002, 1002)]);
        assert_eq!((numbers(1002, 10), numbers(9999, 10)), (vec![], vec![]));
        assert_eq!(numbers(0, 9999).len(), KEPT);
    }

    #[test]
    fn an_entry_is_recorded_however_it_ends() {
        let requests = Requests::new();
        let mut answered = requests.enter(Timestamp::default(), None);
        answered.asks(Some("x".repeat(1000).into()), Some(7));
        answered.ends("accepted", None);
        drop(answered);
        drop(requests.enter(Timestamp::default(), None));
        let [(_, answered), (_, gone)] = &requests.after(0, 10)[..] else {
            panic!("there are two")
        };
        assert_eq!((answered.outcome, answered.sdk_app_id), (Some("accepted"), Some(7)));
        assert_eq!(answered.command.as_deref(), Some(&*"x".repeat(64)));
        assert_eq!(gone.outcome, None);
        assert_eq!(gone.reason.as_deref(), Some("the client hung up before its answer"));
    }
}
