//! The apps in force, and their tokens: taken up again when a token file changes, and on SIGHUP. What changed
//! is logged by name, never by value. A faulty state keeps the old one.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::AppConfig;
use crate::signature::App;
use crate::watched::{LOOK, Stamp};

pub(crate) struct Apps {
    configured: Mutex<Vec<AppConfig>>,
    current: watch::Sender<Arc<[App]>>,
}

impl Apps {
    /// An error names the token file that cannot be read.
    pub(crate) fn new(configured: Vec<AppConfig>) -> Result<Arc<Self>, String> {
        let current = watch::Sender::new(load(&configured)?);
        Ok(Arc::new(Apps { configured: configured.into(), current }))
    }

    pub(super) fn current(&self) -> watch::Receiver<Arc<[App]>> {
        self.current.subscribe()
    }

    /// Takes up another configuration, and says what changed.
    pub(crate) fn replace(&self, configured: Vec<AppConfig>) -> Result<Vec<String>, String> {
        let apps = load(&configured)?;
        *self.configured.lock().unwrap_or_else(PoisonError::into_inner) = configured;
        Ok(self.take_up(apps))
    }

    fn take_up(&self, apps: Arc<[App]>) -> Vec<String> {
        let changes = changes(&self.current.borrow(), &apps);
        if !changes.is_empty() {
            self.current.send_replace(apps);
        }
        changes
    }

    /// Watches the token files for as long as the bridge runs.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut seen = Stamp::of(self.files().iter().map(PathBuf::as_path));
        let mut fault: Option<String> = None;
        loop {
            sleep(LOOK).await;
            if self.files().is_empty() {
                continue;
            }
            let (apps, before, must_load) = (self.clone(), seen.clone(), fault.is_some());
            let look = move || {
                let now = Stamp::of(apps.files().iter().map(PathBuf::as_path));
                let configured = apps.configured.lock().unwrap_or_else(PoisonError::into_inner);
                let loaded = (must_load || now != before).then(|| load(&configured));
                (now, loaded)
            };
            let Ok((now, loaded)) = spawn_blocking(look).await else {
                return; // the runtime is ending
            };
            seen = now;
            match loaded {
                None => {}
                Some(Ok(apps)) => {
                    fault = None;
                    for change in self.take_up(apps) {
                        tracing::info!(change, "took up a changed token file");
                    }
                }
                Some(Err(reason)) => {
                    if fault.as_ref() != Some(&reason) {
                        tracing::error!(
                            reason,
                            "a changed token file cannot be used: the old tokens stay in use until it is \
                             fixed"
                        );
                    }
                    fault = Some(reason);
                }
            }
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let configured = self.configured.lock().unwrap_or_else(PoisonError::into_inner);
        configured.iter().flat_map(|app| app.token_files.clone()).collect()
    }
}

fn load(configured: &[AppConfig]) -> Result<Arc<[App]>, String> {
    configured.iter().map(AppConfig::load).collect()
}

/// What is different, by name.
fn changes(old: &[App], new: &[App]) -> Vec<String> {
    let find = |apps: &'_ [App], id| apps.iter().position(|app| app.sdk_app_id == id);
    let mut changes = Vec::new();
    for app in new {
        let id = app.sdk_app_id;
        let Some(before) = find(old, id).map(|at| &old[at]) else {
            changes.push(format!("app {id} is new"));
            continue;
        };
        let has = |app: &App, token: &str| app.tokens.iter().any(|t| t.reveal() == token);
        let count = |of: &App, not_in: &App| {
            of.tokens.iter().filter(|token| !has(not_in, token.reveal())).count()
        };
        let (added, removed) = (count(app, before), count(before, app));
        if added + removed > 0 {
            changes.push(format!("app {id}: tokens added: {added}, removed: {removed}"));
        }
        if app.allow_unsigned != before.allow_unsigned {
            changes.push(format!("app {id}: allow_unsigned is now {}", app.allow_unsigned));
        }
    }
    let gone = old.iter().filter(|app| find(new, app.sdk_app_id).is_none());
    changes.extend(gone.map(|app| format!("app {} is gone", app.sdk_app_id)));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn changes_are_named_and_never_shown() {
        let app = |sdk_app_id, tokens: &[&str], allow_unsigned| App {
            sdk_app_id,
            tokens: tokens.iter().map(|token| Secret::new(*token)).collect(),
            allow_unsigned,
        };
        let old = [app(1, &["a", "b"], false), app(2, &["c"], false), app(3, &["d"], false)];
        let new = [app(2, &["c"], true), app(1, &["b", "e", "f"], false), app(4, &["d"], false)];
        let expected = [
            "app 2: allow_unsigned is now true",
            "app 1: tokens added: 2, removed: 1",
            "app 4 is new",
            "app 3 is gone",
        ];
        assert_eq!(changes(&old, &new), expected);
        assert_eq!(changes(&old, &old), [""; 0]);
    }
}
