//! `[relay]`.

use std::time::Duration;

use crate::config::Keys;
use crate::config::value::{count, duration, positive_duration};

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
            batch: keys.read("relay.batch", count),
            retry_min: keys.read("relay.retry_min", positive_duration),
            retry_max: keys.read("relay.retry_max", positive_duration),
            confirm_timeout: keys.read("relay.confirm_timeout", positive_duration),
            drain_timeout: keys.read("relay.drain_timeout", duration),
        };
        if config.retry_min > config.retry_max {
            keys.reject("relay.retry_min: is longer than relay.retry_max");
        }
        config
    }
}
