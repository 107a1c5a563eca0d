//! `topic-bridge tail`: prints what comes out of the configured sink, one event per line; or what arrives at the
//! public listener.

mod requests;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{print_while_read, reader_gone};
use crate::settings::Settings;
use crate::sink;

/// Lines that may wait to be written.
const AHEAD: usize = 256;

const EXAMPLES: &str = "\
Examples:
  topic-bridge tail --config bridge.toml
  topic-bridge tail --config bridge.toml --from-start --count 10
  topic-bridge tail --config bridge.toml --requests";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Begin with the oldest event that the sink still has (with --requests: the oldest request that the bridge still
    /// knows), not with the next one.
    #[arg(long)]
    from_start: bool,
    /// Print the requests that arrive at the running bridge, and why they are refused, in place of events.
    #[arg(long)]
    requests: bool,
    /// End after so many lines.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

pub fn run(args: &Args, file: Option<PathBuf>, set: &[String]) -> anyhow::Result<ExitCode> {
    let settings = Settings::load_for_reading(file, set)?;
    let log = settings.start_log();
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let (mut end, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            result = follow(args, &settings) => result.with_context(|| match args.requests {
                true => "tail of requests".to_owned(),
                false => format!("tail of {}", settings.sink.kind.name()),
            }),
            () = reader_gone() => Ok(()),
            _ = end.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    });
    log.flush();
    runtime.shutdown_background(); // a client's thread may still wait for its broker
    result.map(|()| ExitCode::SUCCESS)
}

async fn follow(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let (sender, mut lines) = mpsc::channel(AHEAD);
    let terms = settings.terms();
    let from_start = args.from_start;
    let tail = async {
        match args.requests {
            true => requests::follow(settings.admin.listen, from_start, sender).await,
            false => sink::tail(&settings.sink, &terms, from_start, sender).await,
        }
    };
    let mut tail = std::pin::pin!(tail);
    let mut shown = 0;
    while args.count.is_none_or(|count| shown < count) {
        let line: String = tokio::select! {
            biased; // show what has arrived before reporting the end
            Some(line) = lines.recv() => line,
            ended = &mut tail => {
                ended?;
                break;
            }
        };
        if print_while_read(&(line + "\n"))?.is_break() {
            break;
        }
        shown += 1;
    }
    Ok(())
}
