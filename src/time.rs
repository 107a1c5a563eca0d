//! Time: a [`Timestamp`], and the [`Clock`] as an argument. There are two kinds of time: wall-clock time,
//! for people and events, and steady time, for everything that is compared. Steady time advances evenly
//! even when the wall clock is set, and during a suspend.

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use serde::{Serialize, Serializer};

/// A point in time, in whole milliseconds since the Unix epoch. Shown as RFC 3339, in UTC:
/// `2026-11-22T18:00:00.123Z`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp(u64);

/// The last millisecond of the year 9999: there is no RFC 3339 text for a later one.
const LAST: u64 = 253_402_300_799_999;

impl Timestamp {
    pub(crate) const fn from_millis(milliseconds: u64) -> Self {
        Timestamp(milliseconds)
    }

    pub(crate) const fn as_millis(self) -> u64 {
        self.0
    }

    /// The current wall-clock time.
    pub(crate) fn now() -> Self {
        SystemTime::now().into()
    }

    /// The time from `earlier` to this; zero if `earlier` is the later one.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The time between the two, whichever comes first.
    pub(crate) fn distance(self, other: Self) -> Duration {
        Duration::from_millis(self.0.abs_diff(other.0))
    }

    pub(crate) fn parse_rfc3339(text: &str) -> Result<Self, humantime::TimestampError> {
        humantime::parse_rfc3339(text).map(Self::from)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Timestamp(milliseconds(time.duration_since(UNIX_EPOCH).unwrap_or_default()))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Timestamp(self.0.saturating_add(milliseconds(duration)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Timestamp(self.0.saturating_sub(milliseconds(duration)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let time = UNIX_EPOCH + Duration::from_millis(self.0.min(LAST));
        humantime::format_rfc3339_millis(time).fmt(formatter)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The wall-clock time as precisely as there is one, for a span.
pub(crate) fn precisely_now() -> SystemTime {
    SystemTime::now()
}

/// A duration in whole milliseconds.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Clone)]
pub(crate) struct Clock(Arc<Source>);

enum Source {
    /// The wall-clock time at the start, and the machine's uptime at that moment.
    System { started_at: Timestamp, uptime: Duration },
    #[cfg(test)]
    Script(std::sync::Mutex<(Timestamp, Timestamp)>),
}

impl Clock {
    pub(crate) fn system() -> Self {
        Clock(Arc::new(Source::System { started_at: Timestamp::now(), uptime: uptime() }))
    }

    /// The wall-clock time: it may be wrong, and may be set at any moment.
    pub(crate) fn wall(&self) -> Timestamp {
        match &*self.0 {
            Source::System { .. } => Timestamp::now(),
            #[cfg(test)]
            Source::Script(times) => times.lock().unwrap().0,
        }
    }

    /// The wall-clock time when this clock was created, plus the time that has passed since.
    pub(crate) fn steady(&self) -> Timestamp {
        match &*self.0 {
            Source::System { started_at, uptime: then } => {
                *started_at + uptime().saturating_sub(*then)
            }
            #[cfg(test)]
            Source::Script(times) => times.lock().unwrap().1,
        }
    }

    #[cfg(test)]
    pub(crate) fn scripted(now: Timestamp) -> Self {
        Clock(Arc::new(Source::Script((now, now).into())))
    }

    /// Sets both, as a restart with a different wall-clock time would.
    #[cfg(test)]
    pub(crate) fn set(&self, wall: Timestamp, steady: Timestamp) {
        if let Source::Script(times) = &*self.0 {
            *times.lock().unwrap() = (wall, steady);
        }
    }
}

/// Time since the machine was started, including suspends.
fn uptime() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_time_can_be_shown() {
        for (milliseconds, shown) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (LAST, "9999-12-31T23:59:59.999Z"),
            (u64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp::from_millis(milliseconds).to_string(), shown);
        }
    }

    #[test]
    fn both_times_begin_with_what_the_wall_says() {
        let clock = Clock::system();
        assert!(clock.wall().distance(clock.steady()) < Duration::from_secs(60));
        assert!(clock.steady().as_millis() > 1_700_000_000_000, "the year 2023 is past");
    }
}
