//! Arguments → one match over the subcommands → exit code. 0: asked to stop, or done; 1: failed;
//! 2: usage (clap's own); 78: configuration.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use topic_bridge::app::App;
use topic_bridge::cli::{self, Arguments, Command};
use topic_bridge::config::{Config, Faults};

/// `EX_CONFIG` of sysexits.h: a service manager can tell a fault that a restart will not mend.
const CONFIGURATION: u8 = 78;

fn main() -> ExitCode {
    let Arguments { config, set, command } = Arguments::parse();
    let result = match command.unwrap_or(Command::Serve) {
        Command::Serve => Config::load(config, &set).map_err(Into::into).and_then(serve),
        Command::Check(args) => cli::check::run(&args, config, &set),
        Command::Send(args) => cli::send::run(*args),
        Command::Tail(args) => cli::tail::run(&args, config, &set),
        Command::Outbox(args) => cli::outbox::run(&args, config, &set),
    };
    result.unwrap_or_else(|error| {
        eprintln!("topic-bridge: {error:#}");
        exit_code(&error)
    })
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(if error.is::<Faults>() { CONFIGURATION } else { 1 })
}

fn serve(config: Config) -> anyhow::Result<ExitCode> {
    topic_bridge::log::start(&config);
    // The usual soft limit of 1024 is less than ingress.max_connections; the hard one is meant for us.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(config.worker_threads())
        .thread_name("topic-bridge")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let stop = stop_signal()?; // before anything is opened, so that no signal finds us unprepared
        App::build(config).await?.run(stop).await
    });
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "topic-bridge ends");
        return Ok(exit_code(error)); // reported once, here
    }
    Ok(ExitCode::SUCCESS)
}

/// Completes at the first SIGTERM or SIGINT; a second one ends the process at once.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let (first, stop) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut first = Some(first);
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            match first.take() {
                Some(first) => drop(first.send(())),
                None => {
                    tracing::warn!("ended at once by a second signal");
                    std::process::exit(1);
                }
            }
        }
    });
    Ok(async {
        let _ = stop.await; // the task lives as long as the runtime
    })
}
