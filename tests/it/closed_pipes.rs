//! `| head`: a reader that has had enough is not an error, and nobody goes on for it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, pipe};
use std::process::{Child, Command, Stdio};

use crate::bridge::{Bridge, TOKEN, body, eventually, is_delivered};
use crate::calls::call_many;
use crate::outbox_file::beside;

struct KilledWhenDropped(Child);

impl Drop for KilledWhenDropped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl KilledWhenDropped {
    fn code(&mut self, what: &str) -> Option<i32> {
        eventually(&format!("{what} ends"), || self.0.try_wait().unwrap()).code()
    }
}

/// Runs it with nobody to read what it prints.
fn check_unread(command: &mut Command) {
    let what = format!("{command:?}");
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    command.stdin(Stdio::null()).stdout(writer.try_clone().unwrap()).stderr(Stdio::piped());
    let mut child = KilledWhenDropped(command.spawn().unwrap());
    let code = child.code(&what);
    let mut stderr = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(code, Some(0), "{what}: {stderr}");
    for word in ["panicked", "ipe", "os error", "topic-bridge: "] {
        assert!(!stderr.contains(word), "{what}: {stderr}");
    }

    // The same with `2>&1`.
    let mut child = KilledWhenDropped(command.stderr(writer).spawn().unwrap());
    assert_eq!(child.code(&what), Some(0), "{what}, with stderr");
}

#[test]
fn a_command_whose_output_is_not_read_ends_quietly() {
    for line in [
        "--help",
        "-h",
        "--version",
        "-V",
        "help outbox",
        "send --help",
        "outbox list -h",
        "schema",
        "schema data",
        "schema asyncapi",
        "schema config",
        "completions bash",
        "completions elvish",
        "completions fish",
        "completions powershell",
        "completions zsh",
        "man",
        "send http://127.0.0.1:9/ --token x --count 1000000000 --print-curl",
    ] {
        check_unread(crate::bridge::program().args(line.split(' ')));
    }
}

/// A bridge with more events than fit into a pipe, and its commands.
fn bridge() -> Bridge {
    let bridge = Bridge::start(&[]);
    call_many(&bridge, "topic", 300);
    is_delivered(&bridge);
    assert_eq!(bridge.call("not json").status, 400);
    bridge
}

fn command(bridge: &Bridge, line: &str) -> Command {
    let mut command = bridge.command("--set");
    command.arg(format!("admin.listen={}", bridge.admin)).args(line.split(' '));
    command
}

#[test]
fn a_command_beside_a_bridge_whose_output_is_not_read_ends_quietly() {
    let bridge = bridge();
    let send = format!("send http://{}/ --token {TOKEN}", bridge.ingress);
    let sends = ["", " --json", " --count 100000000 --answers"].map(|more| send.clone() + more);
    for line in sends.iter().map(String::as_str).chain([
        "check",
        "check --json",
        "check --ready",
        "tail",
        "tail --from-start",
        "tail --requests",
        "tail --requests --from-start",
        "outbox status",
        "outbox status --json",
        "outbox list",
        "outbox list --json --limit 1000000",
        "outbox list --quarantined",
        "outbox show 1",
        "outbox show 1 --json",
        "outbox show 1 --quarantined",
        "outbox export",
        "outbox export --quarantined",
        "outbox check",
        "outbox check --json",
        "outbox drop --dead --dry-run",
        "outbox retry --quarantined --dry-run",
    ]) {
        check_unread(&mut command(&bridge, line));
    }
}

#[test]
fn what_a_command_has_to_do_is_done_whether_its_report_is_read_or_not() {
    let mut bridge = bridge();
    bridge.stop();
    let (all, new) = (bridge.home().join("all.ndjson"), bridge.home().join("new.db"));
    let exported =
        command(&bridge, "outbox export").stdout(fs::File::create(&all).unwrap()).status();
    assert!(exported.unwrap().success());
    let unread = |line: &str| check_unread(command(&bridge, line).stderr(Stdio::null()));
    let salvage = format!("outbox salvage {}", new.display());
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    assert!(command(&bridge, &salvage).stdout(writer).status().unwrap().success());
    assert!(new.exists() && !beside(&new, "-journal").exists());
    unread(&format!("outbox import {} --path {}", all.display(), new.display()));
    let bridge = bridge.restart(&[("outbox.path", new.to_str().unwrap())]);
    assert_eq!(bridge.topic_ids().len(), 300);
}

/// The first line is read, and then nothing more: what is printed later, or never, need not be waited for.
#[test]
fn a_command_ends_when_its_reader_has_had_enough() {
    let bridge = bridge();
    for line in [
        "tail --from-start",
        "tail --requests --from-start",
        "outbox export",
        "outbox list --limit 1000000",
        "outbox list --json --limit 1000000",
    ] {
        let mut command = command(&bridge, line);
        let mut child = KilledWhenDropped(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let mut first = String::new();
        let mut stdout = BufReader::new(child.0.stdout.take().unwrap());
        assert!(stdout.read_line(&mut first).unwrap() > 0, "{line}");
        drop(stdout);
        assert_eq!(child.code(line), Some(0), "{line}");
    }
    assert_eq!(bridge.call(&body("still here")).status, 200);
}
