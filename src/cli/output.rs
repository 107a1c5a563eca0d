//! What the commands print: data to stdout, everything else to stderr. A reader that has had enough, as `head` has, is
//! never an error.

use std::fmt::Display;
use std::fs::File;
use std::future::pending;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;

use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;

/// Writes all there is to print. What a command does or finds counts, whether it is read or not.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    print_while_read(text).map(drop)
}

/// Writes a part of it, and says whether anybody reads on.
pub(super) fn print_while_read(text: &str) -> anyhow::Result<ControlFlow<()>> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to stdout")),
    }
}

/// Writes a line to stderr. `eprintln` panics where nobody reads it, as in `2>&1 | head`.
pub fn say(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Waits until nobody reads stdout any more, for a command that may have nothing to print for a long time. Never ends
/// where that cannot happen, as with a file. Must be called inside a tokio runtime.
pub(super) async fn reader_gone() {
    let watched = io::stdout().as_fd().try_clone_to_owned();
    // Nothing is written to it, so it need not be a pipe, nor be switched to non-blocking, which everybody who has it
    // open would notice. A file cannot be waited for.
    let Ok(stdout) = watched.and_then(|fd| Sender::from_file_unchecked(File::from(fd))) else {
        return pending().await;
    };
    if stdout.ready(Interest::ERROR).await.is_err() {
        pending().await
    }
}
