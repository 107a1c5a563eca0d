//! `topic-bridge completions`: a script with which a shell completes commands and options.

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Arguments, NAME, print};

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

const EXAMPLES: &str = "\
Examples:
  For the shell at hand:
    source <(topic-bridge completions bash)

  For good, in each new shell:
    topic-bridge completions bash > ~/.local/share/bash-completion/completions/topic-bridge
    topic-bridge completions fish > ~/.config/fish/completions/topic-bridge.fish
    topic-bridge completions zsh > ~/.zfunc/_topic-bridge   # a folder named in $fpath";

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new(); // the generator panics where it cannot write
    clap_complete::generate(args.shell, &mut Arguments::command(), NAME, &mut script);
    // For bash, clap_complete 4.6 looks a command up under another name than it gives it, where the program's own name
    // has a hyphen: no subcommand would be completed.
    let script = String::from_utf8(script)?.replace("topic__subcmd__bridge", "topic__bridge");
    print(&script)?;
    Ok(ExitCode::SUCCESS)
}
