//! Arguments → one match over the subcommands → exit code. 0: asked to stop, or done; 1: failed; 2: usage
//! (from clap); 78: configuration.

use std::panic;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;
use topic_bridge::app::App;
use topic_bridge::cli::{self, Arguments, Command};
use topic_bridge::config::Faults;
use topic_bridge::log::Log;
use topic_bridge::reload::Reload;
use topic_bridge::settings::Settings;

/// `EX_CONFIG` of sysexits.h: tells a service manager that a restart will not help.
const CONFIGURATION: u8 = 78;

/// How long the usual report of a panic, with its backtrace, may take before the process ends without it.
const PANIC_REPORT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let Arguments { config, set, command } = Arguments::of_process();
    let result = match command.unwrap_or(Command::Serve) {
        Command::Serve => Settings::load(config, &set).map_err(Into::into).and_then(serve),
        Command::Check(args) => cli::check::run(&args, config, &set),
        Command::Send(args) => cli::send::run(*args),
        Command::Tail(args) => cli::tail::run(&args, config, &set),
        Command::Outbox(args) => cli::outbox::run(&args, config, &set),
        Command::Schema(args) => cli::schema::run(&args),
        Command::Completions(args) => cli::completions::run(&args),
        Command::Man(args) => cli::man::run(&args),
    };
    result.unwrap_or_else(|error| {
        cli::say(format_args!("topic-bridge: {error:#}"));
        exit_code(&error)
    })
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(if error.is::<Faults>() { CONFIGURATION } else { 1 })
}

fn serve(settings: Settings) -> anyhow::Result<ExitCode> {
    let log = settings.start_log();
    let result = run(settings, &log);
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "topic-bridge ends");
    }
    log.flush();
    Ok(result.map_or_else(|error| exit_code(&error), |()| ExitCode::SUCCESS)) // reported once, here
}

fn run(settings: Settings, log: &Log) -> anyhow::Result<()> {
    // The usual soft limit of 1024 is lower than ingress.max_connections; the hard limit is meant for
    // programs like this one.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    let panicked = watch_for_panics();
    let runtime = Builder::new_multi_thread()
        .worker_threads(settings.worker_threads())
        .thread_name("topic-bridge")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = stop_signal(panicked.clone(), log.clone())?; // before anything is opened: no signal is missed
        let hangups = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        let app = App::build(settings, log.clone()).await?;
        tokio::spawn(take_up(app.reload(), hangups));
        app.run(stop).await?;
        check(&panicked)
    })
}

/// Lets each panic be reported as usual, and the first one end the process: the part that panicked is gone, and
/// nothing else might notice.
fn watch_for_panics() -> watch::Receiver<Option<String>> {
    let (first, panicked) = watch::channel(None);
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("without a name");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let said = panic.payload_as_str().unwrap_or("no text");
        let reason = format!(
            "the thread {name:?} panicked at {place}: {said}: this is a bug in topic-bridge, please report it"
        );
        let (late, in_any_case) = (first.clone(), reason.clone());
        let _ = thread::Builder::new().spawn(move || {
            thread::sleep(PANIC_REPORT);
            note(&late, in_any_case);
        });
        usual(panic); // blocks while nobody reads stderr
        note(&first, reason);
    }));
    panicked
}

fn note(first: &watch::Sender<Option<String>>, reason: String) {
    first.send_if_modified(|first| first.is_none() && first.replace(reason).is_none());
}

/// Takes up at each SIGHUP what can be taken up without a restart.
async fn take_up(mut reload: Reload, mut hangups: Signal) {
    while let Some(()) = hangups.recv().await {
        let again = move || {
            reload.again();
            reload
        };
        let Ok(back) = spawn_blocking(again).await else { return };
        reload = back;
    }
}

fn check(panicked: &watch::Receiver<Option<String>>) -> anyhow::Result<()> {
    match &*panicked.borrow() {
        Some(panic) => bail!(panic.clone()),
        None => Ok(()),
    }
}

/// Completes at the first SIGTERM or SIGINT, or with the first panic; a second signal ends the process at
/// once.
fn stop_signal(
    mut panicked: watch::Receiver<Option<String>>,
    log: Log,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let (first, stop) = oneshot::channel();
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
                    log.flush();
                    std::process::exit(1);
                }
            }
        }
    });
    Ok(async move {
        tokio::select! {
            _ = stop => {} // the task lives as long as the runtime
            _ = panicked.wait_for(Option::is_some) => {}
        }
        check(&panicked)
    })
}
