//! The tests' own servers end with the process that started them, even one that could do nothing about it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::bridge::eventually;
use crate::servers::{self, Kind};

const FOLDER: &str = "BRIDGE_TEST_ENDS_IN";

/// The command lines of all processes that run in this folder, also once it is gone.
fn processes_in(folder: &Path) -> Vec<String> {
    let is_inside = |process: &PathBuf| {
        fs::read_link(process.join("cwd")).is_ok_and(|place| place.starts_with(folder))
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let inside = processes.filter(is_inside);
    inside.map(|process| fs::read_to_string(process.join("cmdline")).unwrap_or_default()).collect()
}

/// RabbitMQ is the hardest: a shell script, Erlang with helpers of its own, and a name server.
#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn servers_end_with_a_process_that_is_killed() {
    if servers::shared(Kind::Rabbitmq).is_none_or(|broker| broker.process_ids().is_empty()) {
        eprintln!("SKIPPED: RabbitMQ is not a child of this process");
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--ignored", "--nocapture", "servers_end::starts_servers_and_waits"]);
    command.env(FOLDER, parent.path()).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "they run"), "it ended before they ran");
    assert!(processes_in(parent.path()).len() >= 2, "a broker and its name server");
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("all processes end", || processes_in(parent.path()).is_empty().then_some(()));
    eventually("their data go", || {
        fs::read_dir(parent.path()).unwrap().next().is_none().then_some(())
    });
}

/// The process that the test above kills; by itself it does nothing.
#[test]
#[ignore = "is the other half of a test"]
fn starts_servers_and_waits() {
    let Some(parent) = std::env::var_os(FOLDER) else { return };
    let _broker = servers::Broker::start(Kind::Rabbitmq, Path::new(&parent)).unwrap();
    eprintln!("they run");
    std::io::stdin().lines().for_each(drop);
}
