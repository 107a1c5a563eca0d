//! Whether the backend can be reached. The first callback that finds it cannot pays for that with a connect
//! timeout; those after it are not forwarded until a probe has connected again.

use std::error::Error;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::Context as _;
use hyper::Uri;
use tokio::time::{sleep, timeout};
use tower_service::Service as _;

use super::Connector;

/// How long the probe waits between two attempts, doubled from the first to the second.
const PROBE_MIN: Duration = Duration::from_millis(250);
const PROBE_MAX: Duration = Duration::from_secs(2);

/// How long a connection may take, with its TLS.
const MAX_CONNECT: Duration = Duration::from_secs(2);

pub(super) struct Circuit {
    connector: Connector,
    backend: Uri,
    shown: String,
    /// Why it is open.
    fault: Mutex<Option<String>>,
}

impl Circuit {
    pub(super) fn new(connector: Connector, backend: Uri, shown: String) -> Arc<Self> {
        Arc::new(Circuit { connector, backend, shown, fault: Mutex::new(None) })
    }

    /// Why callbacks should not be forwarded now.
    pub(super) fn is_open(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The backend cannot be reached: nobody tries until the probe has connected.
    pub(super) fn open(self: &Arc<Self>, reason: &str) {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if fault.replace(reason.to_owned()).is_some() {
            return;
        }
        tracing::warn!(
            backend = self.shown,
            reason,
            "the backend behind the passthrough cannot be reached: callbacks of other commands are answered OK \
             and not forwarded until it can; is it running?"
        );
        tokio::spawn(probe(Arc::downgrade(self)));
    }

    fn close(&self) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
        tracing::info!(
            backend = self.shown,
            "the backend behind the passthrough can be reached again"
        );
    }
}

/// Connects again and again, for as long as somebody is interested.
async fn probe(circuit: Weak<Circuit>) {
    let mut pause = PROBE_MIN;
    loop {
        sleep(pause).await;
        pause = (pause * 2).min(PROBE_MAX);
        let Some(circuit) = circuit.upgrade() else { return };
        if connect(&mut circuit.connector.clone(), circuit.backend.clone()).await.is_ok() {
            circuit.close();
            return;
        }
    }
}

/// Opens a connection, with TLS if there is any, and closes it again.
pub(super) async fn connect(connector: &mut Connector, backend: Uri) -> anyhow::Result<()> {
    let explained = |error: Box<dyn Error + Send + Sync>| anyhow::anyhow!(explain(&*error));
    let connects = async {
        poll_fn(|context| connector.poll_ready(context)).await.map_err(explained)?;
        connector.call(backend).await.map(drop).map_err(explained)
    };
    let in_time = timeout(MAX_CONNECT, connects).await;
    in_time.with_context(|| format!("no connection within {MAX_CONNECT:?}"))?
}

/// An error with its causes, which the client leaves out of its own text.
pub(super) fn explain(error: &(dyn Error + 'static)) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if causes.last().is_none_or(|last| !last.contains(&text)) {
            causes.push(text);
        }
        next = error.source();
    }
    causes.join(": ")
}
