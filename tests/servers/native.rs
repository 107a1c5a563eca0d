//! Servers as children of this process.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::guard::Guard;
use super::{BOUND, Server, Verb, output};

/// All at once, or RabbitMQ would start another name server for the one that is gone.
const END: &str = r#"
for file in */pid; do groups="$groups -$(cat "$file")"; done
kill -KILL -- $groups
"#;

pub(super) struct Native {
    guard: Option<Guard>,
    processes: Vec<Process>,
}

impl Native {
    pub(super) fn start(folder: &Path, servers: Vec<Server>) -> Result<Self> {
        let guard = Some(Guard::new(folder, END)?);
        let process = |server: Server| {
            let folder = folder.join(server.name);
            Process { server, folder, child: Mutex::new(None) }
        };
        let native = Native { guard, processes: servers.into_iter().map(process).collect() };
        for process in native.processes.iter().filter(|process| !process.server.is_on_demand) {
            process.start()?;
        }
        Ok(native)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.processes.iter().any(|process| process.server.name == name)
    }

    fn process(&self, name: &str) -> Result<&Process> {
        let found = self.processes.iter().find(|process| process.server.name == name);
        found.with_context(|| format!("there is no {name} here"))
    }

    pub(super) fn tell(&self, name: &str, verb: Verb) -> Result<()> {
        let process = self.process(name)?;
        match verb {
            Verb::Start => process.start(),
            Verb::Stop => process.signal("TERM").and_then(|()| process.wait_for_end()),
            Verb::Kill => process.signal("KILL").and_then(|()| process.wait_for_end()),
            Verb::Freeze => process.signal("STOP"),
            Verb::Resume => process.signal("CONT"),
        }
    }

    /// Runs another program as the server runs, in its environment.
    pub(super) fn run(&self, name: &str, program: &str, arguments: &[&str]) -> Result<String> {
        let environment = self.process(name)?.server.env.clone();
        output(Command::new(program).args(arguments).envs(environment))
    }

    pub(super) fn logs(&self, name: &str) -> String {
        self.process(name).map(Process::logs).unwrap_or_default()
    }

    pub(super) fn process_ids(&self) -> Vec<u32> {
        self.processes.iter().filter_map(|process| Some(process.child().as_ref()?.id())).collect()
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.guard = None;
        for process in &self.processes {
            if let Some(mut child) = process.child().take() {
                let _ = child.wait();
            }
        }
    }
}

struct Process {
    server: Server,
    folder: PathBuf,
    /// While it runs.
    child: Mutex<Option<Child>>,
}

impl Process {
    /// What runs, if it does.
    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let has_ended = child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
        if has_ended {
            // Its id may be another's from now on.
            let _ = fs::remove_file(self.folder.join("pid"));
            *child = None;
        }
        child
    }

    fn start(&self) -> Result<()> {
        let mut child = self.child();
        if child.is_none() {
            let log = File::options().append(true).create(true).open(self.folder.join("log"))?;
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("echo $$ >\"$0\" && {}", self.server.script)]);
            shell.arg(self.folder.join("pid")).envs(self.server.env.clone());
            shell.current_dir(&self.folder);
            // A group of its own, so that Ctrl-C in the terminal leaves it to the guard.
            shell.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            *child = Some(shell.spawn()?);
        }
        drop(child);
        let is_running = || self.child().is_some();
        self.server.probe.wait(is_running, || self.logs()).context(self.server.name)
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let child = self.child();
        let Some(child) = child.as_ref() else { bail!("{} does not run", self.server.name) };
        let script = format!("kill -{signal} {}", child.id());
        output(Command::new("sh").args(["-c", &script])).map(drop)
    }

    fn wait_for_end(&self) -> Result<()> {
        let began = Instant::now();
        while self.child().is_some() {
            if began.elapsed() > BOUND {
                bail!("{} did not end within {BOUND:?}: is it frozen?", self.server.name);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn logs(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }
}
