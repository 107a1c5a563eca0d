//! Ends a broker with the process that started it, whatever ends that: a shell waits for the end of a pipe that only
//! this process holds, then ends the servers, keeps their logs, and removes their data.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Result;

use super::installed;

// The folder gets another name first: a server that is just being started writes its process id to a file
// in it, or does not go on.
const BEFORE: &str = r#"
cat >/dev/null
mv "$1" "$1.ended" && cd "$1.ended" || exit
"#;

const AFTER: &str = r#"
mkdir -p "$2"
for log in */log; do cp "$log" "$2/$(dirname "$log").log"; done
rm -rf "$1.ended" || { sleep 1; rm -rf "$1.ended"; }
"#;

pub(super) struct Guard(Child);

impl Guard {
    /// `end` is a script that ends the servers, which runs in the broker's folder.
    pub(super) fn new(folder: &Path, end: &str) -> Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", &[BEFORE, end, AFTER].concat(), "guard"]).arg(folder);
        shell.arg(installed("logs"));
        // Not of this process's group, so that Ctrl-C in the terminal leaves it to its work.
        shell.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Guard(shell.spawn()?))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
