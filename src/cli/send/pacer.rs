//! The clock of an open loop: when each callback is due, and a thread that says so in time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::Semaphore;

/// A run without an end, for arithmetic that must not overflow.
pub(super) const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// When each callback of an open loop is due.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    pub(super) start: Instant,
    /// Callbacks a second.
    pub(super) rate: f64,
}

impl Schedule {
    pub(super) fn due(&self, number: u64) -> Instant {
        // Exact to a microsecond for 2^53 callbacks; a run of over ten years is cut to that.
        let seconds = (number as f64 / self.rate).min(FOREVER.as_secs_f64());
        self.start + Duration::from_secs_f64(seconds)
    }

    /// How many callbacks are due in the first part of a run.
    pub(super) fn due_by(&self, elapsed: Duration) -> u64 {
        (elapsed.as_secs_f64() * self.rate).ceil() as u64
    }
}

/// Hands out a permit when a callback is due. It is a thread because tokio's timer goes by
/// milliseconds, while a thread is woken within some 60 µs, without spinning on a core that the
/// receiver may need.
pub(super) struct Pacer {
    /// A permit for each callback that is due and not taken.
    pub(super) due: Arc<Semaphore>,
    thread: JoinHandle<()>,
}

impl Pacer {
    pub(super) fn start(
        schedule: Schedule,
        end: Instant,
        count: Option<u64>,
        workers: usize,
        stop: &Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let due = Arc::new(Semaphore::new(0));
        let (permits, stop) = (Arc::clone(&due), Arc::clone(stop));
        let pace = move || {
            for number in 0..count.unwrap_or(u64::MAX) {
                if !sleep_until(schedule.due(number).min(end), &stop) || Instant::now() >= end {
                    break;
                }
                permits.add_permits(1);
            }
            // Nothing more is due: each worker is to wake once more and see that the run is over.
            permits.add_permits(workers);
        };
        let thread = thread::Builder::new().name("pacer".to_owned()).spawn(pace);
        Ok(Self { due, thread: thread.context("cannot start the pacer's thread")? })
    }

    /// Wakes the pacer to look at its stop signal.
    pub(super) fn wake(&self) {
        self.thread.thread().unpark();
    }

    pub(super) fn stop(self, stop: &AtomicBool) {
        stop.store(true, Relaxed);
        self.wake();
        self.thread.join().expect("the pacer only sleeps and counts");
    }
}

/// Sleeps, unless it is told to stop, in which case it returns false.
fn sleep_until(due: Instant, stop: &AtomicBool) -> bool {
    loop {
        if stop.load(Relaxed) {
            return false;
        }
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callbacks_are_due_at_even_distances_from_the_start() {
        let schedule = Schedule { start: Instant::now(), rate: 4.0 };
        let due = |number| schedule.due(number) - schedule.start;
        assert_eq!([due(0), due(1), due(10)], [0, 250, 2500].map(Duration::from_millis));
        assert_eq!(due(u64::MAX), FOREVER);
        let due_by = |millis| schedule.due_by(Duration::from_millis(millis));
        assert_eq!([due_by(0), due_by(1), due_by(250), due_by(251)], [0, 1, 1, 2]);
    }

    #[test]
    fn a_pacer_hands_out_the_count_and_a_last_call_for_each_worker() {
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let schedule = Schedule { start, rate: 1000.0 };
        let pacer = Pacer::start(schedule, start + FOREVER, Some(5), 3, &stop).unwrap();
        let due = Arc::clone(&pacer.due);
        pacer.thread.join().unwrap();
        assert_eq!(due.available_permits(), 5 + 3);
        assert!(start.elapsed() >= Duration::from_millis(4));
    }

    #[test]
    fn a_pacer_stops_in_the_middle_of_a_long_wait() {
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let schedule = Schedule { start, rate: 0.001 };
        let pacer = Pacer::start(schedule, start + FOREVER, None, 1, &stop).unwrap();
        pacer.stop(&stop);
        assert!(start.elapsed() < Duration::from_secs(60));
    }
}
