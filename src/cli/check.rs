//! `topic-bridge check`: is the configuration right, what are the effective values, and (`--connect`)
//! does the sink accept events?

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::runtime::Builder;

use crate::settings::Settings;
use crate::sink::{Finding, Health, Sink};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON instead of TOML. With --connect it holds "configuration" and "findings".
    #[arg(long)]
    json: bool,
    /// Also try the sink: is it there, does it let the bridge in, has it what the bridge needs? Changes
    /// nothing there, and fails if no event could be delivered.
    #[arg(long)]
    connect: bool,
}

pub fn run(args: &Args, file: Option<PathBuf>, set: &[String]) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(file, set)?;
    Sink::new(&settings.sink, &settings.terms())?;
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
    super::print(&text)?;
    eprintln!("the configuration is good");
    for Finding { point, verdict, text } in &findings {
        eprintln!("{:<8} {point}: {text}", name(*verdict));
    }
    let is_bad = findings.iter().any(|finding| finding.verdict == Health::Bad);
    Ok(if is_bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn examine(settings: &Settings) -> anyhow::Result<Vec<Finding>> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let findings = runtime.block_on(Sink::examine(&settings.sink, &settings.terms()))?;
    runtime.shutdown_background(); // a client's thread may still wait for its broker
    Ok(findings)
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
