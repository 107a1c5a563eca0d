//! Who carries out an act: the bridge that uses the outbox, or else this command itself, which then holds the outbox's
//! lock meanwhile.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use super::bridge::Bridge;
use crate::event;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::outbox::{
    Act, Import, Limits, OpenError, Order, Outbox, Reader, Tally, Workers, identity,
};
use crate::settings::ForOutbox;
use crate::time::Clock;

/// Bytes of an import that are read at a time.
const PIECE: usize = 64 << 10;

/// Nothing arrives meanwhile.
const LIMITS: Limits =
    Limits { max_queued: 1, slow: Duration::from_secs(3600), history_gives_way: false };

#[derive(Debug, clap::Args)]
pub(super) struct AgentArgs {
    /// The outbox file, if not the configuration's outbox.path.
    #[arg(long, value_name = "FILE")]
    path: Option<PathBuf>,
    /// Have the bridge with this private listener do it. Without this, the bridge at the configuration's admin.listen
    /// does it if it uses the outbox, and otherwise this command.
    #[arg(long, value_name = "URL", conflicts_with = "path")]
    admin: Option<String>,
    /// Print the counts as one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    /// Only count what matches; change nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
}

pub(super) enum Agent {
    Here { outbox: Outbox, workers: Workers, naming: event::Config, is_embedded: bool, log: Log },
    Bridge(Bridge),
}

impl Agent {
    /// Must be called inside a tokio runtime.
    pub(super) fn find(args: &AgentArgs, settings: ForOutbox) -> anyhow::Result<Self> {
        let token_file = settings.admin.token_file.clone();
        if let Some(url) = &args.admin {
            return Ok(Agent::Bridge(Bridge::at(url, token_file)?));
        }
        let path = args.path.as_ref().unwrap_or(&settings.outbox.path);
        drop(Reader::open(path)?); // nothing is created, nor anything foreign touched
        let (outbox, is_embedded) =
            (settings.outbox.keeping_all(path), settings.is_embedded(args.path.is_some()));
        let metrics = Arc::new(Metrics::new(settings.sink.name()));
        let log = settings.start_log();
        match Outbox::open(&outbox, LIMITS, metrics, Clock::system()) {
            Ok((outbox, workers)) => {
                let naming = settings.event;
                Ok(Agent::Here { outbox, workers, naming, is_embedded, log })
            }
            Err(in_use @ OpenError::InUse { .. }) => {
                let bridge = Bridge::listening(settings.admin.listen, token_file);
                let bridge = bridge.with_context(|| asking(&in_use))?;
                Ok(Agent::Bridge(bridge.with_outbox(identity_of(path)?, in_use)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Carries it out, or only counts.
    pub(super) async fn perform(&self, act: Act, order: &Order) -> anyhow::Result<Tally> {
        match self {
            Agent::Bridge(bridge) => bridge.perform(act, order).await,
            Agent::Here { outbox, naming, .. } => {
                let tally = outbox.perform(act, order, naming).await;
                if !order.dry_run {
                    tally.log(act.name(), order.of, &order.filter, &whoever());
                }
                Ok(tally)
            }
        }
    }

    /// What is wrong with an order, as far as it shows here.
    pub(super) fn fault(&self, act: Act, order: &Order) -> Option<&'static str> {
        match self {
            Agent::Bridge(_) => order.fault(act, false), // it knows its sink itself
            Agent::Here { is_embedded, .. } => order.fault(act, *is_embedded),
        }
    }

    /// Imports the rest of a file.
    pub(super) async fn import(&self, file: File, is_rehearsal: bool) -> anyhow::Result<Tally> {
        let outbox = match self {
            Agent::Bridge(bridge) => return bridge.import(file, is_rehearsal).await,
            Agent::Here { outbox, .. } => outbox,
        };
        let import =
            Import::into(outbox, is_rehearsal).await.map_err(|stopped| anyhow!(stopped))?;
        let tally = take_in(import, file).await;
        if !is_rehearsal {
            tally.log("import", None, &Default::default(), &whoever());
        }
        Ok(tally)
    }

    pub(super) async fn close(self) -> anyhow::Result<()> {
        let Agent::Here { outbox, workers, log, .. } = self else { return Ok(()) };
        drop(outbox);
        let closed = tokio::task::spawn_blocking(|| workers.close()).await;
        log.flush();
        closed.context("closing the outbox")
    }
}

async fn take_in(mut import: Import, mut file: File) -> Tally {
    let mut piece = vec![0; PIECE];
    loop {
        let result = match file.read(&mut piece) {
            Ok(0) => return import.end(Ok(())).await,
            Ok(read) => import.push(&piece[..read]).await,
            Err(error) => Err(format!("cannot read any more of it: {error}")),
        };
        if let Err(stopped) = result {
            return import.end(Err(stopped)).await;
        }
    }
}

pub(super) fn asking(in_use: &OpenError) -> String {
    format!("{in_use}; or let that one do it, over its private listener")
}

fn identity_of(path: &Path) -> anyhow::Result<String> {
    identity(path).with_context(|| format!("cannot look at {}", path.display()))
}

/// Who runs this command.
fn whoever() -> String {
    format!("offline, user {}", rustix::process::getuid().as_raw())
}
