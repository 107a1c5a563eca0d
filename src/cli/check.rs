//! `topic-bridge check`: is the configuration right, what are the effective values, and (`--connect`)
//! does the sink accept events? With `--ready`: is the running bridge ready?

mod ready;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::runtime::Builder;

use super::{print, say};
use crate::passthrough::Passthrough;
use crate::settings::Settings;
use crate::sink::{Finding, Health, Sink};
use crate::spans::Spans;
use crate::time::Timestamp;
use crate::tls;

const AFTER_HELP: &str = "\
Exit status:
  0   good; with --ready, it is ready
  1   --connect or --ready has found that it does not work
  2   wrong usage
  78  wrong configuration

Examples:
  topic-bridge check --config bridge.toml --connect
  topic-bridge check --config bridge.toml --ready=delivering";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Print JSON instead of TOML. With --connect it holds "configuration" and "findings".
    #[arg(long)]
    json: bool,
    /// Also connect to the sink: is it there, does it let the bridge in, does it have what the bridge needs? And to the
    /// backend behind the passthrough. Changes nothing there, and fails if no event could be delivered, or no callback
    /// forwarded.
    #[arg(long)]
    connect: bool,
    /// Only ask the running bridge at admin.listen, as a container's health check does: fails unless it accepts
    /// callbacks, or (--ready=delivering) also delivers events.
    #[arg(
        long,
        value_name = "WHAT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "accepting",
        conflicts_with_all = ["json", "connect"]
    )]
    ready: Option<ready::Ready>,
}

pub fn run(args: &Args, file: Option<PathBuf>, set: &[String]) -> anyhow::Result<ExitCode> {
    if let Some(wanted) = args.ready {
        return ready::run(Settings::private_listener(file, set)?, wanted);
    }
    let settings = Settings::load(file, set)?;
    Sink::new(&settings.sink, &settings.terms(), Spans::off())?;
    let findings = if args.connect { examine(&settings)? } else { Vec::new() };
    let text = match (args.json, args.connect) {
        (false, _) => settings.effective_toml(),
        (true, false) => settings.effective_json() + "\n",
        (true, true) => {
            let findings: Vec<_> = findings.iter().map(json).collect();
            let findings = serde_json::Value::from(findings);
            let configuration = settings.effective_json();
            format!("{{\"configuration\": {configuration},\n\"findings\": {findings:#}}}\n")
        }
    };
    print(&text)?;
    let files = settings.ingress.tls.as_ref(); // that they can be used, is checked already
    let examine = |files| tls::examine(files, Timestamp::now()).ok().flatten();
    for warning in settings.warnings().into_iter().chain(files.and_then(examine)) {
        say(format_args!("{:<8} {warning}", name(Health::Doubtful)));
    }
    for Finding { point, verdict, text } in &findings {
        say(format_args!("{:<8} {point}: {text}", name(*verdict)));
    }
    match findings.iter().filter(|finding| finding.verdict == Health::Bad).count() {
        0 => say("the configuration is good"),
        bad => {
            say(format_args!(
                "the configuration can be read, but does not work: {bad} bad, see above"
            ));
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn examine(settings: &Settings) -> anyhow::Result<Vec<Finding>> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let findings = runtime.block_on(async {
        let mut findings = Sink::examine(&settings.sink, &settings.terms()).await?;
        findings.extend(passthrough(settings).await);
        anyhow::Ok(findings)
    })?;
    runtime.shutdown_background(); // a client's thread may still wait for its broker
    Ok(findings)
}

/// The backend behind the passthrough, if there is one.
async fn passthrough(settings: &Settings) -> Option<Finding> {
    let (verdict, text) = match Passthrough::examine(&settings.passthrough).await? {
        Ok(text) => (Health::Good, text),
        Err(text) => (
            Health::Bad,
            text + ": callbacks of other commands would be answered OK and not forwarded",
        ),
    };
    Some(Finding { point: "passthrough", verdict, text })
}

fn json(finding: &Finding) -> serde_json::Value {
    let Finding { point, verdict, text } = finding;
    serde_json::json!({ "point": point, "verdict": name(*verdict), "text": text })
}

fn name(verdict: Health) -> &'static str {
    match verdict {
        Health::Good => "good",
        Health::Doubtful => "doubtful",
        Health::Bad => "bad",
    }
}
