//! What SIGHUP takes up without a restart: the apps with their tokens, and the log's level, from the whole
//! configuration. A faulty one changes nothing. What changed is logged by name, never by value.

use std::sync::Arc;

use crate::ingress::Apps;
use crate::log::Log;
use crate::settings::Settings;

/// What can change while a bridge runs.
pub struct Reload {
    settings: Settings,
    apps: Arc<Apps>,
    log: Log,
}

impl Reload {
    pub(crate) fn new(settings: Settings, apps: Arc<Apps>, log: Log) -> Self {
        Reload { settings, apps, log }
    }

    /// Reads the configuration again, and takes up what can be. Blocks.
    pub fn again(&mut self) {
        let settings = match self.settings.again() {
            Ok(settings) => settings,
            Err(faults) => {
                let faults = faults.to_string();
                tracing::error!(
                    faults,
                    "the configuration is not taken up: the old one stays in force"
                );
                return;
            }
        };
        let mut changes = match self.apps.replace(settings.ingress.apps.clone()) {
            Ok(changes) => changes,
            Err(reason) => {
                tracing::error!(reason, "the apps are not taken up: the old ones stay in force");
                return;
            }
        };
        let level = settings.log.level();
        if level != self.settings.log.level() {
            self.log.set_level(&settings.log);
            self.settings.log = settings.log.clone();
            changes.push(format!("log.level is now {level}"));
        }
        let is_taken_up = |key: &String| key == "apps" || key == "log.level";
        let differences = self.settings.differences(&settings);
        let need_restart: Vec<_> =
            differences.into_iter().filter(|key| !is_taken_up(key)).collect();
        if changes.is_empty() {
            tracing::info!("read the configuration again: no app, token or log.level has changed");
        } else {
            tracing::info!(changes = changes.join("; "), "took up the configuration");
        }
        if !need_restart.is_empty() {
            let keys = need_restart.join(", ");
            tracing::warn!(keys, "these have changed, too, and take a restart");
        }
    }
}
