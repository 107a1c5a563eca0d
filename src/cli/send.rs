//! `topic-bridge send` plays the platform: it posts callbacks, signed as the platform signs them,
//! to any URL, and says how they were answered and how long that took. It knows nothing of the
//! bridge, so it tries other receivers just as well.
//!
//! This file holds the command line and its checks; [`callback`] makes what is sent, [`load`]
//! decides when, [`connection`] carries it, and [`report`] counts what comes back. [`curl`] prints it instead.

mod callback;
mod connection;
mod curl;
mod load;
mod report;

use std::cell::RefCell;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use hyper::Uri;
use hyper::header::HeaderValue;
use hyper::http::uri::Authority;
use indicatif::{ProgressBar, ProgressStyle};

use super::{print, say};
use crate::config::value::{HOUR, secret_file};
use callback::{Bodies, Fields, Signer};
use connection::Dialer;
use curl::{Body, Commands};
use load::Load;

const DEFAULT_URL: &str = "http://127.0.0.1:8080/";
const MAX_RATE: f64 = 1_000_000.0;
const MAX_CONNECTIONS: u32 = 10_000;

const EXAMPLES: &str = "\
Examples:
  One callback to a bridge on this machine:
    topic-bridge send --token my-token

  A topic of one's own, with custom fields:
    topic-bridge send --token-file token.txt --group-id @TGS#1 --topic-id @TOPIC#1 \\
      --name 'Tea & cake' --custom color=blue --custom color=red

  A minute at 100 callbacks a second, the result as JSON:
    topic-bridge send --token my-token --rate 100 --duration 1m --concurrency 16 --json

  As fast as it goes, over 64 connections:
    topic-bridge send --token my-token --duration 10s --concurrency 64

  A stale signature, which a receiver must refuse:
    topic-bridge send --token my-token --request-time 1669872112

  A body from a file, byte for byte, and each answer as a line of JSON:
    topic-bridge send --token my-token --body-file broken.json --answers

  The same callback by hand, or from a host without topic-bridge:
    topic-bridge send --token my-token --print-curl | sh";

/// Play the platform: send callbacks, and count the answers
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where to send, http or https; may have a path and a query of its own, to which the
    /// platform's parameters are appended [default: http://127.0.0.1:8080/]
    #[arg(value_name = "URL", conflicts_with = "url")]
    to: Option<String>,

    /// The same as the argument URL
    #[arg(long)]
    url: Option<String>,

    /// The app that the callbacks come from
    #[arg(long, value_name = "ID", default_value_t = 1_400_000_000)]
    sdk_app_id: u64,

    /// Sign with this token; with no token the callbacks go unsigned
    #[arg(long, conflicts_with = "token_file")]
    token: Option<String>,

    /// Sign with the token in this file; a line break at its end is not part of it
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// End after this many callbacks [default: 1, or unlimited with --duration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// End after this time, such as 10s or 5m
    #[arg(long, value_parser = humantime::parse_duration)]
    duration: Option<Duration>,

    /// Callbacks a second, due at fixed times however slow the answers are; without it, as fast as
    /// the answers come
    #[arg(long, value_name = "PER_SECOND", value_parser = parse_rate)]
    rate: Option<f64>,

    /// Keep-alive connections, with one callback at a time on each
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CONNECTIONS)))]
    concurrency: u32,

    /// How long to wait for an answer; the platform waits two seconds
    #[arg(long, value_name = "DURATION", default_value = "2s",
          value_parser = humantime::parse_duration)]
    timeout: Duration,

    #[command(flatten)]
    fields: Fields,

    /// The address of the user's client
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    client_ip: String,

    /// The platform of the user's client, such as iOS, Android, Web or RESTAPI
    #[arg(long, default_value = "RESTAPI")]
    platform: String,

    /// Send this file as the body, byte for byte; - reads the standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "group_id", "topic_id", "operator", "owner", "group_type", "name", "custom", "event_time",
    ])]
    body_file: Option<PathBuf>,

    /// Sign and send this RequestTime, in seconds since 1970, not the current one
    #[arg(long, value_name = "SECONDS")]
    request_time: Option<String>,

    /// Trust the certificates in this PEM file too, over https
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Print every answer on stdout as a line of JSON, at once; the summary goes to stderr
    #[arg(long)]
    answers: bool,

    /// Print the summary as one JSON object on stdout
    #[arg(long)]
    json: bool,

    /// Send nothing, but print a curl command for each callback, one a line, quoted for a POSIX
    /// shell and signed now; the token is not in it
    #[arg(long, conflicts_with_all = [
        "duration", "rate", "concurrency", "timeout", "answers", "json",
    ])]
    print_curl: bool,
}

/// Sends what was asked for. The exit code is 0 when every callback was answered 200, OK, 0.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.print_curl {
        let count = args.count.unwrap_or(1);
        return commands(args)?.print(count).map(|()| ExitCode::SUCCESS);
    }
    let (json, answers) = (args.json, args.answers);
    let load = plan(args)?;
    let summary = load.run()?;
    let text = if json { summary.json() + "\n" } else { summary.to_string() };
    if json || !answers {
        print(&text)?;
    } else {
        say(text.trim_end());
    }
    Ok(if summary.all_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whom the callbacks are for, and how they are signed.
fn addressed(args: &Args) -> anyhow::Result<(Uri, Signer)> {
    let file = args.token_file.as_deref().map(secret_file).transpose();
    let file = file.map_err(anyhow::Error::msg).context("--token-file")?;
    let token = args.token.clone().or(file);
    ensure!(token.as_deref() != Some(""), "the token is empty; leave it out to send unsigned");
    let url = args.to.as_deref().or(args.url.as_deref()).unwrap_or(DEFAULT_URL);
    let receiver = callback::receiver(url)?;
    let query = [
        ("SdkAppid", args.sdk_app_id.to_string()),
        ("CallbackCommand", args.fields.callback_command.clone()),
        ("contenttype", "json".to_owned()),
        ("ClientIP", args.client_ip.clone()),
        ("OptPlatform", args.platform.clone()),
    ];
    let signer = Signer::new(&receiver, &query, token, args.request_time.clone())?;
    Ok((receiver, signer))
}

fn commands(args: Args) -> anyhow::Result<Commands> {
    let (receiver, signer) = addressed(&args)?;
    let body = match args.body_file {
        Some(path) => Body::File(path),
        None => Body::Made(Bodies::new(args.fields)),
    };
    Ok(Commands { receiver, signer, body, ca_file: args.ca_file })
}

/// Checks the arguments together and reads the files they name.
fn plan(args: Args) -> anyhow::Result<Load> {
    ensure!(!args.timeout.is_zero(), "--timeout is 0, nothing can be answered in that time");
    ensure!(args.timeout <= HOUR, "--timeout is longer than an hour, the limit");
    let (receiver, signer) = addressed(&args)?;
    // Where the limit cannot be raised the connections that find no descriptor are reported refused.
    let _ = rlimit::increase_nofile_limit(u64::from(args.concurrency) + 64);
    let count = args.count.or(if args.duration.is_some() { None } else { Some(1) });
    Ok(Load {
        progress: progress(count),
        count,
        duration: args.duration,
        rate: args.rate,
        concurrency: args.concurrency as usize,
        print_answers: args.answers,
        timeout: args.timeout,
        host: HeaderValue::from_str(receiver.authority().map_or("", Authority::as_str))?,
        dialer: Dialer::new(&receiver, args.ca_file.as_deref())?,
        signer: RefCell::new(signer),
        bodies: match args.body_file {
            Some(path) => Bodies::verbatim(read_body(&path)?),
            None => Bodies::new(args.fields),
        },
    })
}

fn read_body(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut body).context("cannot read the body from stdin")?;
        return Ok(body);
    }
    std::fs::read(path).with_context(|| format!("cannot read the body file {}", path.display()))
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= MAX_RATE => Ok(rate),
        Ok(rate) => Err(format!("rate is {rate}, it must be above 0 and at most {MAX_RATE}")),
        Err(_) => Err("not a number".to_owned()),
    }
}

/// For whoever watches: a bar where the number of callbacks is known, else the number so far.
fn progress(count: Option<u64>) -> ProgressBar {
    if count == Some(1) || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match count {
        Some(count) => {
            (ProgressBar::new(count), "{bar:40} {human_pos}/{human_len} {per_sec} {eta} left")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {elapsed} {human_pos} callbacks {per_sec}"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("both templates are constants"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        use clap::Parser as _;
        let line = std::iter::once("send").chain(line.iter().copied());
        Command::try_parse_from(line).map(|command| command.args)
    }

    #[test]
    fn a_run_ends_after_one_callback_unless_told_otherwise() {
        let check = |line: &[&str], expected: Option<u64>| {
            assert_eq!(plan(parse(line).unwrap()).unwrap().count, expected, "{line:?}");
        };
        check(&[], Some(1));
        check(&["--count", "7"], Some(7));
        check(&["--duration", "1s"], None);
        check(&["--duration", "1s", "--count", "7"], Some(7));
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in [
            &["--rate", "0"][..],
            &["--rate", "-1"],
            &["--rate", "NaN"],
            &["--rate", "inf"],
            &["--count", "0"],
            &["--concurrency", "0"],
            &["--concurrency", "10001"],
            &["--custom", "no-equals-sign"],
            &["--token", "a", "--token-file", "b"],
            &["http://a/", "--url", "http://b/"],
            &["--body-file", "a", "--topic-id", "b"],
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn a_token_file_may_end_in_a_line_break() {
        let file = std::env::temp_dir().join(format!("topic-bridge-send-{}", std::process::id()));
        std::fs::write(&file, " a token \r\n").unwrap();
        let token = secret_file(&file);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(token.unwrap(), " a token ");
    }
}
