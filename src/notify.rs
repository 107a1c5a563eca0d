//! What a service manager such as systemd is told (`sd_notify`): that the bridge serves, that it stops, and, where
//! it asks for a watchdog, that the bridge is alive. Without `NOTIFY_SOCKET` in the environment nothing is told.

use std::future;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

/// Callbacks are accepted from now on: what was ordered after the bridge may start.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("accepting callbacks")]);
}

pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("delivering what is left")]);
}

/// Tells it twice within the time after which the service manager takes the bridge for hung. Runs where callbacks are
/// served, so that it falls silent when these are not.
pub(crate) async fn keep_alive() -> anyhow::Result<()> {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return future::pending().await;
    };
    let mut beat = interval(limit / 2);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot reach the service manager at NOTIFY_SOCKET");
    }
}
