//! `topic-bridge man`: the manual pages, made of the same texts as `--help`. What stands after the options there, in
//! parts with a heading each, becomes sections of the page.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::builder::Resettable;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{Arguments, NAME, print};
use crate::version;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Write a page for the program and one for each of its commands into this directory, which is created.
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  Read the program's page:
    topic-bridge man | man -l -

  Install all pages, for `man topic-bridge` and `man topic-bridge-outbox`:
    topic-bridge man --dir /usr/local/share/man/man1";

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut program = Arguments::command().disable_help_subcommand(true);
    program.build();
    match &args.dir {
        None => print(&String::from_utf8(page(&program, &[])?)?)?,
        Some(folder) => {
            let cannot = || format!("cannot write to {}", folder.display());
            std::fs::create_dir_all(folder).with_context(cannot)?;
            write_all(&program, &[], folder).with_context(cannot)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the page of a command, and those of its subcommands.
fn write_all(command: &Command, above: &[String], folder: &Path) -> anyhow::Result<()> {
    let name = name(command);
    std::fs::write(folder.join(format!("{name}.1")), page(command, above)?)?;
    let above = [above, &[name]].concat();
    command.get_subcommands().try_for_each(|below| write_all(below, &above, folder))
}

/// With the names of the commands above it, such as `topic-bridge-outbox` for one in it.
fn name(command: &Command) -> String {
    command.get_display_name().unwrap_or(command.get_name()).to_owned()
}

fn page(command: &Command, above: &[String]) -> anyhow::Result<Vec<u8>> {
    let rest = command.get_after_long_help().or_else(|| command.get_after_help());
    let rest = rest.map(ToString::to_string).unwrap_or_default();
    // The sections behind the options are made here.
    let bare = command
        .clone()
        .after_help(Resettable::Reset)
        .after_long_help(Resettable::Reset)
        .version(Resettable::Reset)
        .long_version(Resettable::Reset);
    let mut page = Vec::new();
    let source = format!("{NAME} {}", version::NUMBER);
    // A date would differ from build to build; clap_mangen leaves out an empty one, and the rest takes its place.
    Man::new(bare).date(" ").source(source).manual("topic-bridge").render(&mut page)?;

    let mut sections = Roff::new();
    for part in rest.split("\n\n").filter(|part| !part.is_empty()) {
        section(&mut sections, part);
    }
    let below = command.get_subcommands().map(name);
    let others: Vec<_> = above.iter().cloned().chain(below).collect();
    if !others.is_empty() {
        sections.control("SH", ["SEE ALSO"]);
        let others = others.iter().flat_map(|name| [roman(", "), bold(name), roman("(1)")]);
        sections.text(others.skip(1).collect::<Vec<_>>());
    }
    sections.to_writer(&mut page)?;
    Ok(page)
}

/// Lines as they are, below a heading where the first one is such.
fn section(page: &mut Roff, part: &str) {
    let mut lines = part.lines().peekable();
    if let Some(heading) = lines.next_if(|line| line.ends_with(':') && !line.starts_with(' ')) {
        page.control("SH", [&*heading.trim_end_matches(':').to_uppercase()]);
    } else {
        page.control("PP", []);
    }
    page.control("nf", []);
    for line in lines {
        page.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
    }
    page.control("fi", []);
}
