//! `topic-bridge check`: is the configuration right, and what does it come to?

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Config;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the effective configuration as JSON instead of TOML.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, file: Option<PathBuf>, set: &[String]) -> anyhow::Result<ExitCode> {
    let config = Config::load(file, set)?;
    if args.json {
        super::print(&(config.effective_json() + "\n"))?;
    } else {
        super::print(&config.effective_toml())?;
    }
    eprintln!("the configuration is good");
    Ok(ExitCode::SUCCESS)
}
