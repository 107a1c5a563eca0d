//! The command line. One file per subcommand; `serve` is the program itself. Data goes to stdout,
//! everything else to stderr.

pub mod check;
pub mod completions;
pub mod man;
pub mod outbox;
mod output;
pub mod schema;
pub mod send;
pub mod tail;
mod version;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::ensure;
use clap::{Parser, Subcommand};

pub use output::say;
use output::{print, print_while_read, reader_gone};

const NAME: &str = "topic-bridge";

/// Where `--help` shows the options that each command has: behind its own.
const BEHIND: usize = 100;

const AFTER_HELP: &str = "\
Examples:
  topic-bridge --config bridge.toml
  topic-bridge check --config bridge.toml --connect
  topic-bridge send --count 1000 --concurrency 8 --token \"$TOKEN\"
  topic-bridge tail --config bridge.toml --from-start --count 10
  topic-bridge outbox list --config bridge.toml --quarantined

`--help` says more: environment, files and exit codes.";

/// In parts with a heading each, of which `man` makes sections.
const AFTER_LONG_HELP: &str = "\
Configuration:
  It comes in layers, each over the one before: built-in defaults, the file named with --config,
  environment variables, --set. `topic-bridge check` prints the effective configuration.

Environment:
  TOPIC_BRIDGE_CONFIG        the configuration file, unless --config names one
  TOPIC_BRIDGE_SECTION__KEY  one key, such as TOPIC_BRIDGE_INGRESS__LISTEN=0.0.0.0:8080
  NO_COLOR                   if set and not empty, log and messages have no colors

Files:
  topic-bridge.db            the outbox, unless outbox.path names another file; with -wal, -shm
                             and -reserve appended to its name, the files that belong to it

Exit status:
  0   done, or asked to stop
  1   failed
  2   wrong usage
  78  wrong configuration: a restart will not help

Examples:
  topic-bridge --config bridge.toml
  topic-bridge check --config bridge.toml --connect
  topic-bridge send --count 1000 --concurrency 8 --token \"$TOKEN\"
  topic-bridge tail --config bridge.toml --from-start --count 10
  topic-bridge outbox list --config bridge.toml --quarantined";

/// Takes a chat platform's topic-created callbacks durably, answers at once, and publishes each as a
/// CloudEvent.
#[derive(Debug, Parser)]
#[command(
    version,
    long_version = version::long(),
    after_help = AFTER_HELP,
    after_long_help = AFTER_LONG_HELP,
    max_term_width = 100
)]
pub struct Arguments {
    /// The configuration file (TOML).
    #[arg(short, long, global = true, value_name = "FILE", display_order = BEHIND)]
    pub config: Option<PathBuf>,
    /// One key of the configuration, such as log.level=debug; may be repeated, and overrides every other source.
    #[arg(short, long, global = true, value_name = "KEY=VALUE", display_order = BEHIND)]
    pub set: Vec<String>,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the bridge; the same as no command.
    ///
    /// SIGTERM and SIGINT stop it in order, a second one at once. SIGHUP makes it read apps, tokens and log.level
    /// again.
    Serve,
    /// Read and check the configuration, and print the effective one with secrets as ***.
    Check(check::Args),
    /// Play the platform: send signed callbacks to a bridge, and measure its answers.
    Send(Box<send::Args>),
    /// Print what comes out of the configured sink, one event per line.
    Tail(tail::Args),
    /// Look into the outbox and mend what is in it, with or without a running bridge.
    #[command(subcommand, after_help = outbox::EXAMPLES)]
    Outbox(outbox::Args),
    /// Print a JSON Schema (of the event, its data or the configuration), or the AsyncAPI document.
    Schema(schema::Args),
    /// Print a script that completes commands and options in a shell.
    Completions(completions::Args),
    /// Print the manual page, or write one for each command.
    Man(man::Args),
}

impl Arguments {
    /// Parses the process's arguments. Ends the process where they make no sense, or ask for help.
    pub fn of_process() -> Self {
        let mut arguments = Self::parse();
        arguments.set = every_set(std::env::args()).unwrap_or(arguments.set);
        arguments
    }
}

/// The value of each `--set`, before and after the subcommand: clap forgets the former where there are both. The
/// arguments have passed clap, so each has one.
fn every_set(arguments: impl Iterator<Item = String>) -> Option<Vec<String>> {
    let (mut values, mut arguments) = (Vec::new(), arguments.skip(1));
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--" => break,
            "--set" | "-s" => values.push(arguments.next()?),
            other => {
                let value = other.strip_prefix("--set=").or_else(|| other.strip_prefix("-s"));
                values.extend(value.map(|value| value.trim_start_matches('=').to_owned()));
            }
        }
    }
    Some(values)
}

/// Where to connect to for the private listener, which may be on every address of its host.
fn reachable(listen: SocketAddr) -> anyhow::Result<SocketAddr> {
    ensure!(listen.port() != 0, "admin.listen takes a free port: give it one of its own");
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(SocketAddr::new(ip, listen.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_counts_before_and_after_the_subcommand() {
        let line = "topic-bridge --set a=1 -s b=2 outbox --set=c=3 drop -sd=4 -s=e=5 -- --set f=6";
        let found = every_set(line.split(' ').map(str::to_owned));
        assert_eq!(found.unwrap(), ["a=1", "b=2", "c=3", "d=4", "e=5"]);
    }
}
