//! The clock, as an argument. Two times are told apart: the wall's, for people and events, and the
//! steady one, for everything that is compared: it goes on evenly when somebody sets the wall's, and
//! during a suspend. Both are in milliseconds since the epoch.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

#[derive(Clone)]
pub(crate) struct Clock(Arc<Source>);

enum Source {
    /// What the wall said at the start, and how long the machine was up then.
    System { started_at: u64, uptime: u64 },
    #[cfg(test)]
    Script { wall: std::sync::atomic::AtomicU64, steady: std::sync::atomic::AtomicU64 },
}

impl Clock {
    pub(crate) fn system() -> Self {
        Clock(Arc::new(Source::System { started_at: wall(), uptime: uptime() }))
    }

    /// What the wall's clock says: it may be wrong, and be set at any moment.
    pub(crate) fn wall(&self) -> u64 {
        match &*self.0 {
            Source::System { .. } => wall(),
            #[cfg(test)]
            Source::Script { wall, .. } => wall.load(std::sync::atomic::Ordering::Relaxed),
        }
    }

    /// The wall's time when this clock was made, and what has passed since.
    pub(crate) fn steady(&self) -> u64 {
        match &*self.0 {
            Source::System { started_at, uptime: then } => {
                started_at.saturating_add(uptime().saturating_sub(*then))
            }
            #[cfg(test)]
            Source::Script { steady, .. } => steady.load(std::sync::atomic::Ordering::Relaxed),
        }
    }

    #[cfg(test)]
    pub(crate) fn scripted(now: u64) -> Self {
        Clock(Arc::new(Source::Script { wall: now.into(), steady: now.into() }))
    }

    /// Sets both, as a restart with another time on the wall does.
    #[cfg(test)]
    pub(crate) fn set(&self, wall_now: u64, steady_now: u64) {
        if let Source::Script { wall, steady } = &*self.0 {
            wall.store(wall_now, std::sync::atomic::Ordering::Relaxed);
            steady.store(steady_now, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

fn wall() -> u64 {
    since_epoch(SystemTime::now())
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the epoch of a clock's time.
pub(crate) fn since_epoch(time: SystemTime) -> u64 {
    milliseconds(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Time since the machine was started, suspended or not.
fn uptime() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let milliseconds = time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000);
    u64::try_from(milliseconds).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_times_begin_with_what_the_wall_says() {
        let clock = Clock::system();
        assert!(clock.wall().abs_diff(clock.steady()) < 60_000);
        assert!(clock.steady() > 1_700_000_000_000, "the year 2023 is past");
    }
}
