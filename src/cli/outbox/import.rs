//! `topic-bridge outbox import`: events from a file into the queue. A file is read twice: nothing is imported of one
//! with a faulty line. A pipe is imported as it comes, up to its first faulty line.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::act::tell;
use super::agent::{Agent, AgentArgs};
use crate::cli::say;
use crate::settings::ForOutbox;

#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    #[command(flatten)]
    agent: AgentArgs,
    /// The file, a CloudEvent a line as `outbox export` and the pages of /events write them; - for stdin.
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
}

pub(super) fn run(args: &ImportArgs, settings: ForOutbox) -> anyhow::Result<ExitCode> {
    let file = open(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    super::on_runtime(async {
        let agent = Agent::find(&args.agent, settings)?;
        let ended = carry_out(&agent, file, &args.agent).await;
        agent.close().await?;
        ended
    })
}

fn open(path: &Path) -> io::Result<File> {
    if path == Path::new("-") {
        return Ok(File::from(io::stdin().as_fd().try_clone_to_owned()?));
    }
    File::open(path)
}

async fn carry_out(agent: &Agent, mut file: File, args: &AgentArgs) -> anyhow::Result<ExitCode> {
    match file.stream_position() {
        Err(_) if args.dry_run => {} // a pipe, and this is all that there is to do
        Err(_) => say("imported as it comes, because it can be read only once"),
        Ok(start) => {
            let counted = agent.import(file.try_clone()?, true).await?;
            say(format_args!(
                "{} events, {} of them known already",
                counted.matched, counted.duplicates
            ));
            if args.dry_run || counted.stopped.is_some() || counted.done == 0 {
                let would = if args.dry_run { "would be " } else { "" };
                let text = format!("{} events {would}imported\n", counted.done);
                return tell("import", &counted, args, &text);
            }
            file.seek(SeekFrom::Start(start))?;
        }
    }
    let tally = agent.import(file, args.dry_run).await?;
    let verb = if args.dry_run { "would be imported" } else { "imported" };
    let text = format!("{} events {verb}, {} known already\n", tally.done, tally.duplicates);
    tell("import", &tally, args, &text)
}
