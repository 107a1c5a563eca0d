//! `send --print-curl`: a callback as a command for curl, which any POSIX shell takes as it is.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use hyper::Uri;
use hyper::http::uri::Authority;

use super::callback::{Bodies, Signer, now};
use crate::cli::{print_while_read, say};

/// What curl is to send, and to whom.
pub(super) struct Commands {
    pub(super) receiver: Uri,
    pub(super) signer: Signer,
    pub(super) body: Body,
    pub(super) ca_file: Option<PathBuf>,
}

pub(super) enum Body {
    Made(Bodies),
    /// curl reads it itself.
    File(PathBuf),
}

impl Commands {
    /// Prints so many, one a line, each signed when it is printed.
    pub(super) fn print(mut self, count: u64) -> anyhow::Result<()> {
        if self.signer.expires() {
            say(
                "RequestTime is the time of printing: send it soon, a bridge takes it for ingress.max_skew (60s unless \
                 configured)",
            );
        }
        for number in 0..count {
            let line = self.line(number)? + "\n";
            if print_while_read(&line)? == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn line(&mut self, number: u64) -> anyhow::Result<String> {
        let Self { receiver, signer, body, ca_file } = self;
        let body = match body {
            Body::Made(bodies) => typed(&String::from_utf8(bodies.body(number).to_vec())?),
            Body::File(path) => format!("@{}", text(path)?),
        };
        let (scheme, host) = (receiver.scheme_str(), receiver.authority().map(Authority::as_str));
        let target = signer.uri(now());
        let url = format!("{}://{}{target}", scheme.unwrap_or("http"), host.unwrap_or_default());
        // Brackets and braces in a URL would be patterns.
        let mut words = vec!["curl", "--globoff", "--header", "Content-Type: application/json"];
        if let Some(file) = ca_file {
            words.extend(["--cacert", text(file)?]);
        }
        words.extend(["--data-binary", &body, &url]);
        Ok(shlex::try_join(words)?)
    }
}

/// JSON without the characters that a terminal takes for keys when they are pasted. JSON escapes some of them itself,
/// and has the others only inside of strings.
fn typed(json: &str) -> String {
    let escaped = |char: char| match char.is_control() {
        true => format!("\\u{:04x}", u32::from(char)),
        false => char.to_string(),
    };
    json.chars().map(escaped).collect()
}

fn text(path: &Path) -> anyhow::Result<&str> {
    ensure!(path != Path::new("-"), "curl cannot read stdin for --print-curl: name a file");
    path.to_str().with_context(|| format!("the name of {} is not UTF-8", path.display()))
}
