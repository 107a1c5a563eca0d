//! A server as a child of this process, and the guard that ends it whatever ends this process.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Place, Verb, installed, output};

/// How long a server may take to start or to stop; they need about ten seconds.
const BOUND: Duration = Duration::from_secs(60);

/// One server as it is to be run.
pub(super) struct Server {
    pub(super) name: &'static str,
    pub(super) image: String,
    /// For `sh`, which becomes the server at its end.
    pub(super) script: String,
    pub(super) env: Vec<(&'static str, String)>,
    /// The same in a container and outside, for Kafka tells its clients where to find it.
    pub(super) ports: Vec<u16>,
    /// How the first port is asked whether the server works, in its own protocol.
    pub(super) question: &'static [u8],
    pub(super) is_ready: fn(&[u8]) -> bool,
    /// Runs only once it is told to start.
    pub(super) is_on_demand: bool,
}

impl Server {
    fn works(&self) -> io::Result<bool> {
        let patience = Duration::from_secs(2);
        let address = SocketAddr::from(([127, 0, 0, 1], self.ports[0]));
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(self.question)?;
        let mut answer = [0; 64];
        let length = if self.question.is_empty() { 0 } else { stream.read(&mut answer)? };
        Ok((self.is_ready)(&answer[..length]))
    }
}

// The folder gets another name first: a server that is just being started writes its process id to a file
// in it, or does not go on. All are killed at once, or RabbitMQ would start another name server.
const GUARD: &str = r#"
cat >/dev/null
mv "$1" "$1.ended" && cd "$1.ended" || exit
for file in */pid; do groups="$groups -$(cat "$file")"; done
kill -KILL $groups
[ ! -e "$COMPOSE_FILE" ] || { docker compose unpause; docker compose down --volumes --timeout 0; }
mkdir -p "$2"
for log in */log; do cp "$log" "$2/$(dirname "$log").log"; done
rm -rf "$1.ended" || { sleep 1; rm -rf "$1.ended"; }
"#;

/// A shell that waits for the end of a pipe, whose other end only this process holds, then ends the broker's
/// servers, keeps their logs, and removes their data.
pub(super) struct Guard(Child);

impl Guard {
    pub(super) fn new(place: &Place) -> Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", GUARD, "sh"]).arg(&place.folder).arg(installed("logs"));
        // Not of this process's group, so that Ctrl-C in the terminal leaves it to its work.
        shell.env("COMPOSE_FILE", "compose.json").process_group(0);
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Guard(shell.spawn()?))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

pub(super) struct Process {
    pub(super) server: Server,
    folder: PathBuf,
    pub(super) is_native: bool,
    /// While it runs.
    child: Mutex<Option<Child>>,
}

impl Process {
    pub(super) fn new(server: Server, place: &Place) -> Self {
        let folder = place.folder.join(server.name);
        Process { server, folder, is_native: place.is_native, child: Mutex::new(None) }
    }

    pub(super) fn id(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id).filter(|_| self.is_native)
    }

    /// What runs, if it does.
    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None))) {
            // Its id may be another's from now on.
            let _ = fs::remove_file(self.folder.join("pid"));
            *child = None;
        }
        child
    }

    pub(super) fn start(&self) -> Result<()> {
        let mut child = self.child();
        if child.is_none() {
            let log = File::options().append(true).create(true).open(self.folder.join("log"))?;
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("echo $$ >pid && {}", self.server.script)]);
            // A group of its own, so that Ctrl-C in the terminal leaves it to the guard.
            shell.envs(self.server.env.clone()).current_dir(&self.folder).process_group(0);
            shell.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            *child = Some(shell.spawn()?);
        }
        drop(child);
        let began = Instant::now();
        loop {
            let answer = self.server.works();
            if matches!(answer, Ok(true)) {
                return Ok(());
            }
            let is_hopeful = self.child().is_some() && began.elapsed() < BOUND;
            ensure!(
                is_hopeful,
                "{0} ended or does not answer ({answer:?}): see target/brokers/logs/{0}.log",
                self.server.name
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    pub(super) fn tell(&self, verb: Verb) -> Result<()> {
        if verb == Verb::Start {
            return self.start();
        }
        let id = self.child().as_ref().map(Child::id);
        let id = id.with_context(|| format!("{} does not run", self.server.name))?;
        let script = command(verb, self.server.name, id, self.is_native);
        self.run(&script, &[])?;
        let began = Instant::now();
        while matches!(verb, Verb::Stop | Verb::Kill) && self.child().is_some() {
            ensure!(began.elapsed() < BOUND, "{} did not end within {BOUND:?}", self.server.name);
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Runs a command to its end in the server's environment, as `rabbitmqctl`.
    pub(super) fn run(&self, command: &str, arguments: &[&str]) -> Result<String> {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{command} \"$@\""), "sh"]).args(arguments);
        output(shell.envs(self.server.env.clone()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child().take() {
            let _ = child.wait();
        }
    }
}

fn command(verb: Verb, name: &str, id: u32, is_native: bool) -> String {
    let (signal, words) = match verb {
        Verb::Start => unreachable!("it has no process to tell"),
        Verb::Stop => ("TERM", format!("stop --timeout {} {name}", BOUND.as_secs())),
        // Docker may refuse to end a paused container.
        Verb::Kill => ("KILL", format!("unpause {name}; docker compose kill {name}")),
        Verb::Pause => ("STOP", format!("pause {name}")),
        Verb::Resume => ("CONT", format!("unpause {name}")),
    };
    if is_native { format!("kill -{signal} {id}") } else { format!("docker compose {words}") }
}

#[test]
fn compose_is_told_of_one_server_only() {
    let rows = [
        (Verb::Stop, "docker compose stop --timeout 60 nats"),
        (Verb::Kill, "docker compose unpause nats; docker compose kill nats"),
        (Verb::Pause, "docker compose pause nats"),
        (Verb::Resume, "docker compose unpause nats"),
    ];
    for (verb, expected) in rows {
        assert_eq!(command(verb, "nats", 1, false), expected);
    }
}
