//! Decides when each callback goes out. Everything but the pacer runs on one thread, so that what is
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
use std::io::Write as _;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{HOST, HeaderValue};
use indicatif::ProgressBar;
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Sleep;

use super::answer::Outcome;
use super::callback::{Bodies, Signer};
use super::connection::{Dialer, Failure, Line};
use super::pacer::{FOREVER, Pacer, Schedule};
use super::report::{Summary, Tally};

/// A callback that goes out later than this after it was due counts as late.
const LATE: Duration = Duration::from_millis(1);
/// How long a connection rests after it was refused, unless a rate sets the pace.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// A checked order for a run.
pub(super) struct Load {
    pub(super) count: Option<u64>,
    pub(super) duration: Option<Duration>,
    /// Callbacks a second.
    pub(super) rate: Option<f64>,
    pub(super) concurrency: usize,
    pub(super) timeout: Duration,
    pub(super) print_answers: bool,
    pub(super) host: HeaderValue,
    pub(super) dialer: Dialer,
    pub(super) signer: Signer,
    pub(super) bodies: Bodies,
    pub(super) progress: Option<ProgressBar>,
}

impl Load {
    /// Sends until the count, the duration or an interrupt ends it. Blocks its thread.
    pub(super) fn run(self) -> anyhow::Result<Summary> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .context("cannot start a runtime to send from")?;
        runtime.block_on(drive(self))
    }
}

async fn drive(load: Load) -> anyhow::Result<Summary> {
    let start = Instant::now();
    let end = start + load.duration.unwrap_or(FOREVER).min(FOREVER);
    let stop = Arc::new(AtomicBool::new(false));
    let schedule = load.rate.map(|rate| Schedule { start, rate });
    let pacer = match schedule {
        Some(schedule) => Some(Pacer::start(schedule, end, load.count, load.concurrency, &stop)?),
        None => None,
    };
    let run = Rc::new(Run {
        end,
        schedule,
        count: load.count.unwrap_or(u64::MAX),
        timeout: load.timeout,
        print_answers: load.print_answers,
        host: load.host,
        bodies: load.bodies,
        stop,
        due: pacer.as_ref().map(|pacer| Arc::clone(&pacer.due)),
        next: Cell::new(0),
        signer: RefCell::new(load.signer),
        tally: RefCell::new(Tally::default()),
        broken_output: RefCell::new(None),
    });
    let mut workers = JoinSet::new();
    for _ in 0..load.concurrency {
        workers.spawn_local(work(Rc::clone(&run), Line::new(load.dialer.clone())));
    }
    watch(&run, &mut workers, pacer.as_ref(), load.progress.as_ref(), start).await?;
    workers.shutdown().await;
    let elapsed = start.elapsed();
    if let Some(pacer) = pacer {
        pacer.stop(&run.stop);
    }
    if let Some(bar) = load.progress {
        bar.finish_and_clear();
    }
    if let Some(error) = run.broken_output.take() {
        return Err(error).context("cannot write the answers to stdout");
    }
    // A callback that was due in a run that is over, and for which no connection was free.
    let due = schedule.map_or(0, |schedule| schedule.due_by(elapsed.min(end - start)));
    let unsent = due.min(run.count).saturating_sub(run.next.get());
    Ok(run.tally.take().summary(load.rate, elapsed, run.next.get(), unsent))
}

/// Waits for the workers, and meanwhile moves the progress bar and listens for interrupts: the first
/// one lets the callbacks under way be answered, the second does not.
async fn watch(
    run: &Run,
    workers: &mut JoinSet<()>,
    pacer: Option<&Pacer>,
    progress: Option<&ProgressBar>,
    start: Instant,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    let mut interrupts =
        signal(SignalKind::interrupt()).context("cannot listen for an interrupt")?;
    loop {
        tokio::select! {
            finished = workers.join_next() => match finished {
                Some(result) => result.context("a worker panicked")?,
                None => return Ok(()),
            },
            _ = interrupts.recv() => {
                if run.stop.swap(true, Relaxed) {
                    return Ok(());
                }
                if let Some(pacer) = pacer {
                    pacer.wake();
                }
            }
            _ = ticks.tick(), if progress.is_some() => {
                if let Some(bar) = progress {
                    show(bar, run, start.elapsed());
                }
            }
        }
    }
}

fn show(bar: &ProgressBar, run: &Run, elapsed: Duration) {
    if run.count == u64::MAX {
        bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        bar.set_message(format!("{} callbacks", run.next.get()));
    } else {
        bar.set_position(run.next.get());
    }
}

/// What the workers of a run share.
struct Run {
    end: Instant,
    schedule: Option<Schedule>,
    count: u64,
    timeout: Duration,
    print_answers: bool,
    host: HeaderValue,
    bodies: Bodies,
    stop: Arc<AtomicBool>,
    /// A permit for each callback that is due and not taken.
    due: Option<Arc<Semaphore>>,
    next: Cell<u64>,
    signer: RefCell<Signer>,
    tally: RefCell<Tally>,
    broken_output: RefCell<Option<std::io::Error>>,
}

/// A callback to send now.
struct Turn {
    number: u64,
    /// From when its latency counts.
    from: Instant,
    late: bool,
}

impl Run {
    /// Waits for the next callback that is due; `None` when the run is over.
    async fn turn(&self) -> Option<Turn> {
        let mut was_free = false;
        if let Some(due) = &self.due {
            was_free = match due.try_acquire() {
                Ok(permit) => {
                    permit.forget();
                    false
                }
                Err(_) => {
                    due.acquire().await.expect("the semaphore is never closed").forget();
                    true
                }
            };
        }
        let now = Instant::now();
        let number = self.next.get();
        if now >= self.end || number >= self.count || self.stop.load(Relaxed) {
            return None;
        }
        self.next.set(number + 1);
        let due = self.schedule.map_or(now, |schedule| schedule.due(number));
        let late = now.saturating_duration_since(due) > LATE;
        Some(Turn { number, from: if was_free { now } else { due }, late })
    }

    fn request(&self, number: u64) -> Request<Full<bytes::Bytes>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut request = Request::new(Full::new(self.bodies.body(number)));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = self.signer.borrow_mut().uri(now);
        request.headers_mut().insert(HOST, self.host.clone());
        request
    }

    fn settle(&self, turn: &Turn, outcome: &Outcome) {
        let latency = turn.from.elapsed();
        let mut tally = self.tally.borrow_mut();
        let answer = tally.count(outcome, latency, turn.late);
        if self.print_answers {
            let topic_id = self.bodies.topic_id(turn.number);
            let line = answer.line(topic_id.as_deref(), latency);
            // One write for each line, so that a killed run has printed whatever was answered.
            let mut stdout = std::io::stdout().lock();
            if let Err(error) = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()) {
                self.broken_output.replace(Some(error));
                self.stop.store(true, Relaxed);
            }
        }
    }
}

/// Keeps one connection busy until the run is over.
async fn work(run: Rc<Run>, mut line: Line) {
    let mut alarm = Alarm::new();
    while let Some(turn) = run.turn().await {
        let request = run.request(turn.number);
        let deadline = Instant::now() + run.timeout;
        let outcome = match alarm.before(deadline, line.exchange(request)).await {
            Some(outcome) => outcome,
            None => Err(line.give_up(run.timeout)),
        };
        run.settle(&turn, &outcome);
        // A receiver that is restarting is not to be hammered at the speed of the loopback.
        if matches!(outcome, Err(Failure::Refused(_))) && run.schedule.is_none() {
            tokio::time::sleep(REFUSED_PAUSE).await;
        }
    }
}

/// A deadline that moves with each callback and is set in the timer wheel only when it was reached,
/// since nearly all callbacks are answered long before.
struct Alarm {
    sleep: Pin<Box<Sleep>>,
}

impl Alarm {
    fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(Duration::ZERO)) }
    }

    async fn before<T>(&mut self, deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|context| {
            if let Poll::Ready(output) = work.as_mut().poll(context) {
                return Poll::Ready(Some(output));
            }
            while self.sleep.as_mut().poll(context).is_ready() {
                if Instant::now() >= deadline {
                    return Poll::Ready(None);
                }
                self.sleep.as_mut().reset(deadline.into());
            }
            Poll::Pending
        })
        .await
    }
}
