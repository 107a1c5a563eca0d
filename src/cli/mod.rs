//! The command line. One file per subcommand; `serve` is the program itself. Data goes to stdout,
//! everything else to stderr.

pub mod check;
pub mod outbox;
pub mod schema;
pub mod send;
pub mod tail;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::ensure;
use clap::{Parser, Subcommand};

const AFTER_HELP: &str = "\
The configuration comes in layers, each over the one before: built-in defaults, the file named with
--config (or TOPIC_BRIDGE_CONFIG), variables such as TOPIC_BRIDGE_INGRESS__LISTEN, and --set.

Exit codes: 0 asked to stop, or done; 1 failed; 2 usage; 78 configuration.

Examples:
  topic-bridge --config bridge.toml
  topic-bridge check --config bridge.toml --connect
  topic-bridge send --count 1000 --concurrency 8 --token \"$TOKEN\"
  topic-bridge tail --from-start --count 10
  topic-bridge outbox list --quarantined";

/// Takes a chat platform's topic-created callbacks durably, answers at once, and publishes each as a
/// CloudEvent.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Arguments {
    /// The configuration file (TOML).
    #[arg(short, long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One key of the configuration, as section.key=value; may be repeated, and counts most.
    #[arg(short, long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the bridge; the same as no command.
    Serve,
    /// Read and check the configuration, and print the effective one with secrets as ***.
    Check(check::Args),
    /// Play the platform: send signed callbacks to a bridge, and measure its answers.
    Send(Box<send::Args>),
    /// Print what comes out of the configured sink, an event a line.
    Tail(tail::Args),
    /// Look into the outbox, beside a running bridge or without one.
    #[command(subcommand)]
    Outbox(outbox::Args),
    /// Print a contract: the event's JSON Schema, its data's, the AsyncAPI document, the configuration's JSON Schema.
    Schema(schema::Args),
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

/// Writes data to stdout. A reader that stops early, as `head` does, is not an error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
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
