//! Decides when each callback goes out. Everything but the alarms runs on one thread, so that what is
//! shared is a `Cell` and not a lock.
//!
//! Without a rate the loop is closed: each connection sends its next callback when the last one is
//! answered. With a rate it is open: callback n is due at the start plus n / rate, whatever became of
//! those before it, and the first connection that is free takes it. When all are waiting for answers,
//! the callback waits as well, and its latency counts from when it was due: a receiver that stalls
//! for a second is charged with every callback of that second, not with one for each connection. A
//! connection that was free all the time charges the receiver with nothing before the sending; if it
//! woke late, that was this program's timer.

use std::cell::{Cell, RefCell};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::future::try_join_all;
use http_body_util::Full;
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Request};
use indicatif::ProgressBar;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot};

use super::callback::{Bodies, Signer, now};
use super::connection::{Dialer, Line};
use super::report::{self, FailureKind, Outcome, Summary, Tally};
use crate::cli::print_while_read;

/// A run without an end, for arithmetic that must not overflow.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A callback that goes out later than this after it was due counts as late.
const LATE: Duration = Duration::from_millis(1);
/// How long a connection rests after it was refused, unless a rate sets the pace.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);

/// A checked order for a run.
pub(super) struct Load {
    pub(super) count: Option<u64>,
    pub(super) duration: Option<Duration>,
    /// Callbacks a second.
    pub(super) rate: Option<f64>,
    pub(super) concurrency: usize,
    pub(super) print_answers: bool,
    pub(super) timeout: Duration,
    pub(super) host: HeaderValue,
    pub(super) dialer: Dialer,
    pub(super) signer: RefCell<Signer>,
    pub(super) bodies: Bodies,
    pub(super) progress: ProgressBar,
}

impl Load {
    /// Sends until the count, the duration or an interrupt ends it. Blocks its thread.
    pub(super) fn run(self) -> anyhow::Result<Summary> {
        let runtime = Builder::new_current_thread().enable_all().build();
        runtime.context("cannot start a runtime to send from")?.block_on(drive(self))
    }
}

async fn drive(load: Load) -> anyhow::Result<Summary> {
    let start = Instant::now();
    let duration = load.duration.unwrap_or(FOREVER).min(FOREVER);
    let run = Run {
        start,
        end: start + duration,
        alarms: alarms()?,
        next: Cell::new(0),
        begun: Cell::new(0),
        stopped: Cell::new(false),
        stop: Notify::new(),
        tally: RefCell::new(Tally::default()),
        load,
    };
    let workers = try_join_all((0..run.load.concurrency).map(|_| run.work()));
    tokio::select! {
        biased;
        done = workers => drop(done?),
        interrupted = run.interrupted() => interrupted?,
    }
    let elapsed = start.elapsed();
    run.load.progress.finish_and_clear();
    // A callback that was due in a run that is over, and for which no connection was free.
    let due = run.load.rate.map_or(0, |rate| due_by(rate, elapsed.min(duration)));
    let begun = run.begun.get();
    let unsent = due.min(run.load.count.unwrap_or(u64::MAX)).saturating_sub(begun);
    Ok(run.tally.into_inner().summary(run.load.rate, elapsed, begun, unsent))
}

/// When a callback is due after the start, at so many a second.
fn due_after(rate: f64, number: u64) -> Duration {
    // Exact to a microsecond for 2^53 callbacks; a run of over ten years is cut to that.
    Duration::from_secs_f64((number as f64 / rate).min(FOREVER.as_secs_f64()))
}

/// How many callbacks are due in the first part of a run.
fn due_by(rate: f64, elapsed: Duration) -> u64 {
    (elapsed.as_secs_f64() * rate).ceil() as u64
}

/// Whom to wake, and when.
type Alarm = (Instant, oneshot::Sender<()>);

/// Takes alarms in the order of their times. It is a thread because tokio's timer goes by
/// milliseconds, while a thread is woken within some 60 µs, without spinning on a core that the
/// receiver may need.
fn alarms() -> anyhow::Result<mpsc::Sender<Alarm>> {
    let (sender, alarms) = mpsc::channel::<Alarm>();
    let wake_all = move || {
        for (due, wake) in alarms {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let _ = wake.send(()); // whoever does not wait any more was stopped
        }
    };
    let thread = thread::Builder::new().name("alarms".to_owned()).spawn(wake_all);
    thread.context("cannot start the alarms' thread")?;
    Ok(sender)
}

/// What the workers of a run share.
struct Run {
    load: Load,
    start: Instant,
    end: Instant,
    alarms: mpsc::Sender<Alarm>,
    /// The next callback's number.
    next: Cell<u64>,
    /// How many were sent, or were to be sent.
    begun: Cell<u64>,
    stopped: Cell<bool>,
    /// Wakes those who wait for a callback to be due.
    stop: Notify,
    tally: RefCell<Tally>,
}

/// A callback to send now.
struct Turn {
    number: u64,
    /// From when its latency counts.
    from: Instant,
    late: bool,
}

impl Run {
    /// Returns at the second interrupt; the first lets the callbacks under way be answered.
    async fn interrupted(&self) -> anyhow::Result<()> {
        let mut interrupts =
            signal(SignalKind::interrupt()).context("cannot listen for an interrupt")?;
        interrupts.recv().await;
        self.stop();
        interrupts.recv().await;
        Ok(())
    }

    /// Sends nothing more; the callbacks under way are still answered.
    fn stop(&self) {
        self.stopped.set(true);
        self.stop.notify_waiters();
    }

    /// Keeps one connection busy until the run is over.
    async fn work(&self) -> anyhow::Result<()> {
        let mut line = Line::new(&self.load.dialer, self.load.timeout);
        while let Some(turn) = self.turn().await {
            let outcome = line.exchange(self.request(turn.number)).await;
            self.settle(&turn, &outcome)?;
            // A receiver that is restarting is not to be hammered at the speed of the loopback.
            let refused = outcome.is_err_and(|failure| failure.kind == FailureKind::Refused);
            if refused && self.load.rate.is_none() {
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
        Ok(())
    }

    /// Takes the next callback and waits until it is due; `None` when the run is over.
    async fn turn(&self) -> Option<Turn> {
        let (number, asked) = (self.next.get(), Instant::now());
        if self.stopped.get() || self.load.count.is_some_and(|count| number >= count) {
            return None;
        }
        self.next.set(number + 1);
        let due = self.load.rate.map_or(asked, |rate| self.start + due_after(rate, number));
        let is_early = due > asked;
        if is_early {
            let (wake, woken) = oneshot::channel();
            self.alarms.send((due.min(self.end), wake)).expect("its thread ends with this sender");
            tokio::select! {
                _ = woken => {}
                () = self.stop.notified() => {}
            }
        }
        let now = Instant::now();
        if now >= self.end || self.stopped.get() {
            return None;
        }
        self.begun.set(self.begun.get() + 1);
        let late = now.saturating_duration_since(due) > LATE;
        Some(Turn { number, from: if is_early { now } else { due }, late })
    }

    fn request(&self, number: u64) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.load.bodies.body(number)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.load.signer.borrow_mut().uri(now());
        request.headers_mut().insert(HOST, self.load.host.clone());
        request
    }

    fn settle(&self, turn: &Turn, outcome: &Outcome) -> anyhow::Result<()> {
        let latency = turn.from.elapsed();
        self.tally.borrow_mut().count(outcome, latency, turn.late);
        self.load.progress.inc(1);
        if self.load.print_answers {
            let topic_id = self.load.bodies.topic_id(turn.number);
            let line = report::line(outcome, topic_id.as_deref(), latency);
            // One write for each line, so that a killed run has printed whatever was answered.
            if print_while_read(&line)?.is_break() {
                self.stop();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callbacks_are_due_at_even_distances_from_the_start() {
        let due = |number| due_after(4.0, number);
        assert_eq!([due(0), due(1), due(10)], [0, 250, 2500].map(Duration::from_millis));
        assert_eq!(due(u64::MAX), FOREVER);
        let due_by = |millis| due_by(4.0, Duration::from_millis(millis));
        assert_eq!([due_by(0), due_by(1), due_by(250), due_by(251)], [0, 1, 1, 2]);
    }
}
