//! `[relay]`.

use std::time::Duration;

use crate::config::Keys;
use crate::config::value::{DAY, HOUR, count, duration, positive_duration};

/// Four times as many events are in memory at once.
const MAX_BATCH: u64 = 10_000;

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) batch: usize,
    pub(crate) retry_min: Duration,
    pub(crate) retry_max: Duration,
    pub(crate) confirm_timeout: Duration,
    pub(crate) drain_timeout: Duration,
}

impl Config {
    pub(crate) fn read(keys: &mut Keys) -> Self {
        let config = Config {
            batch: keys.read("relay.batch", count(MAX_BATCH)),
            retry_min: keys.read("relay.retry_min", positive_duration(DAY)),
            retry_max: keys.read("relay.retry_max", positive_duration(DAY)),
            confirm_timeout: keys.read("relay.confirm_timeout", positive_duration(HOUR)),
            drain_timeout: keys.read("relay.drain_timeout", duration(DAY)),
        };
        if config.retry_min > config.retry_max {
            keys.reject("relay.retry_min: is longer than relay.retry_max");
        }
        config
    }
}
