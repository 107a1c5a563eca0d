//! The program under test, and a client that acts as the platform.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::http::{self, Connection, Reply};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_topic-bridge");
pub(crate) const APP: u64 = 1_400_000_000;
pub(crate) const TOKEN: &str = "0012345678";
pub(crate) const TOPIC_CREATED: &str = "Group.CallbackAfterCreateTopic";

/// The app of the tests: one token, all digits.
pub(crate) const APPS: &str = r#"[{sdk_app_id=1400000000,tokens=["0012345678"]}]"#;

/// The platform's documented sample, but for its comments, which are not JSON.
pub(crate) const SAMPLE: &str = r#" {
    "CallbackCommand": "Group.CallbackAfterCreateTopic",
    "GroupId" : "@TGS#2J4SZEAEL",
    "TopicId"	: "@TGS#_@TGS#cQVLVHIM62CJ@TOPIC#_@TOPIC#cRTE3HIM62C5",
    "Operator_Account": "group_root",
    "Owner_Account": "leckie",
    "Type": "Community",
    "Name": "MyFirstTopic",
    "UserDefinedDataList": [
        {
            "Key": "UserDefined1",
            "Value": "hello"
        },
        {
            "Key": "UserDefined2",
            "Value": "world"
        }
    ]
}
"#;

/// Waits for a condition for as long as a slow machine may need, then fails with its name.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The program without the configuration of whoever runs the tests.
pub(crate) fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOPIC_BRIDGE_") {
            command.env_remove(name);
        }
    }
    command
}

/// What comes out of a pipe, line by line, and the thread that reads it to its end.
fn follow(pipe: impl Read + Send + 'static) -> (Arc<Mutex<String>>, thread::JoinHandle<()>) {
    let text = Arc::new(Mutex::new(String::new()));
    let lines = text.clone();
    let reader = thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = String::new();
        while pipe.read_line(&mut line).unwrap() > 0 {
            lines.lock().unwrap().push_str(&std::mem::take(&mut line));
        }
    });
    (text, reader)
}

fn configured(settings: &[(String, String)]) -> Command {
    let mut command = program();
    for (key, value) in settings {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    command
}

/// A running bridge on an outbox in a folder of its own. Killed when dropped.
pub(crate) struct Bridge {
    child: Child,
    pub(crate) ingress: SocketAddr,
    pub(crate) admin: SocketAddr,
    log: Arc<Mutex<String>>,
    /// Reads the log, to its end.
    log_reader: Option<thread::JoinHandle<()>>,
    settings: Vec<(String, String)>,
    home: Arc<TempDir>,
}

impl Bridge {
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_with(settings, |_| {})
    }

    /// The same with a last word on the command: an environment, say.
    pub(crate) fn start_with(
        settings: &[(&str, &str)],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let home = Arc::new(tempfile::tempdir().unwrap());
        let outbox = home.path().join("outbox.db");
        let defaults = [
            ("apps", APPS),
            ("ingress.listen", "127.0.0.1:0"),
            ("admin.listen", "127.0.0.1:0"),
            ("log.format", "json"),
            ("outbox.path", outbox.to_str().unwrap()),
        ];
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let settings = defaults.iter().chain(settings).map(owned).collect();
        Self::launch(settings, home, prepare)
    }

    fn launch(
        settings: Vec<(String, String)>,
        home: Arc<TempDir>,
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let mut command = configured(&settings);
        prepare(&mut command);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let (log, log_reader) = follow(child.stderr.take().unwrap());
        let address = |message: &str| {
            let log = log.lock().unwrap();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let fields = lines.map(|mut line| line["fields"].take());
            let mut found = fields.filter(|fields| fields["message"] == message);
            found.next()?["address"].as_str()?.parse().ok()
        };
        let both = eventually("the bridge listens", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {ended:?}\n{}", log.lock().unwrap());
            Some((address("listening for callbacks")?, address("private listener ready")?))
        });
        let log_reader = Some(log_reader);
        Bridge { child, ingress: both.0, admin: both.1, log, log_reader, settings, home }
    }

    /// Starts again, on the same outbox, after the end of this one.
    pub(crate) fn restart(self, changed: &[(&str, &str)]) -> Self {
        self.restart_with(changed, |_| {})
    }

    pub(crate) fn restart_with(
        self,
        changed: &[(&str, &str)],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let (mut settings, home) = (self.settings.clone(), self.home.clone());
        self.kill();
        settings.extend(changed.iter().map(|(key, value)| ((*key).into(), (*value).into())));
        Self::launch(settings, home, prepare)
    }

    /// Another subcommand with the configuration of this bridge.
    pub(crate) fn command(&self, subcommand: &str) -> Command {
        let mut command = configured(&self.settings);
        command.arg(subcommand);
        command
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn outbox(&self) -> PathBuf {
        let (_, path) = self.settings.iter().rfind(|(key, _)| key == "outbox.path").unwrap();
        path.into()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it in order.
    pub(crate) fn stop(&mut self) {
        self.signal("TERM");
        assert_eq!(self.ended().code(), Some(0), "{}", self.log());
    }

    /// Waits for its end, and that of its log.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let status = eventually("the bridge ends", || self.child.try_wait().unwrap());
        if let Some(log_reader) = self.log_reader.take() {
            log_reader.join().unwrap();
        }
        status
    }

    /// The lines of its log with such a message, each with its level.
    pub(crate) fn logged(&self, words: &str) -> Vec<Value> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let says = |line: &Value| {
            line["fields"]["message"].as_str().is_some_and(|message| message.contains(words))
        };
        lines.filter(says).collect()
    }

    /// A topic-created callback, signed as the platform signs.
    pub(crate) fn call(&self, body: &str) -> Reply {
        http::post(self.ingress, &signed(TOPIC_CREATED, &[]), body.as_bytes())
    }

    pub(crate) fn get(&self, target: &str) -> Reply {
        http::get(self.admin, target, &[])
    }

    /// Every event in the stream, page by page.
    pub(crate) fn events(&self) -> Vec<Value> {
        let (mut events, mut after) = (Vec::new(), String::new());
        loop {
            let page = self.page(&after);
            if page.body.is_empty() {
                return events;
            }
            let lines = page.body.lines().map(|line| serde_json::from_str(line).unwrap());
            events.extend(lines.collect::<Vec<Value>>());
            after = format!("?after={}", page.header("next-after").unwrap());
        }
    }

    /// A page of the stream as lines; `query` with its question mark.
    pub(crate) fn page(&self, query: &str) -> Reply {
        let target = format!("/events{query}");
        let page = http::get(self.admin, &target, &["Accept: application/x-ndjson"]);
        assert_eq!(page.status, 200, "{page:?}");
        page
    }

    pub(crate) fn topic_ids(&self) -> Vec<String> {
        let topic_id = |event: &Value| event["data"]["topic_id"].as_str().unwrap().to_owned();
        self.events().iter().map(topic_id).collect()
    }

    /// The endless stream, open and with its headers read.
    pub(crate) fn stream(&self, target: &str, headers: &[&str]) -> Connection {
        let mut stream = Connection::open(self.admin);
        stream.send(&http::head("GET", target, headers, 0));
        let head = stream.read_head();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        stream
    }

    /// A metric's value; the name with its labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no metric {name} in\n{text}")).parse().unwrap()
    }

    pub(crate) fn readiness(&self) -> (u16, Value) {
        let reply = self.get("/readyz");
        (reply.status, reply.json())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The target of a callback, signed now.
pub(crate) fn signed(command: &str, more: &[&str]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let sign = sign(TOKEN, &now.to_string());
    let more: String = more.iter().map(|parameter| format!("&{parameter}")).collect();
    format!(
        "/?SdkAppid={APP}&CallbackCommand={command}&contenttype=json&ClientIP=127.0.0.1\
         &OptPlatform=iOS&RequestTime={now}&Sign={sign}{more}"
    )
}

pub(crate) fn sign(token: &str, request_time: &str) -> String {
    hex::encode(Sha256::digest(format!("{token}{request_time}")))
}

/// A body that has all that is required, about a topic of one's own.
pub(crate) fn body(topic_id: &str) -> String {
    json!({
        "CallbackCommand": TOPIC_CREATED,
        "GroupId": "@TGS#2J4SZEAEL",
        "TopicId": topic_id,
        "Operator_Account": "group_root",
        "Owner_Account": "leckie",
        "Type": "Community",
        "Name": "MyFirstTopic",
    })
    .to_string()
}

impl Bridge {
    /// Without the app of the tests: `prepare` brings what is to be tried.
    pub fn start_without_apps(prepare: impl FnOnce(&mut Command)) -> Self {
        let home = Arc::new(tempfile::tempdir().unwrap());
        let outbox = home.path().join("outbox.db");
        let settings = [
            ("ingress.listen", "127.0.0.1:0"),
            ("admin.listen", "127.0.0.1:0"),
            ("log.format", "json"),
            ("outbox.path", outbox.to_str().unwrap()),
        ];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
        Self::launch(settings.into(), home, prepare)
    }

    /// How many callbacks ended like this.
    pub fn counted(&self, outcome: &str) -> f64 {
        self.metric(&format!("topic_bridge_callbacks_total{{outcome={outcome:?}}}"))
    }
}

/// Unix time in seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The target of a topic-created callback of any app, with any token, at any time.
pub fn signed_by(app: u64, token: &str, request_time: u64) -> String {
    let sign = sign(token, &request_time.to_string());
    format!(
        "/?SdkAppid={app}&CallbackCommand={TOPIC_CREATED}&contenttype=json&ClientIP=127.0.0.1\
         &OptPlatform=iOS&RequestTime={request_time}&Sign={sign}"
    )
}

/// What the program said before it ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program to its end, which has to come by itself.
pub fn run(command: &mut Command) -> Ended {
    run_and(command, "", || {})
}

/// The same, and does something once the program has said `word` on stderr.
pub fn run_and(command: &mut Command, word: &str, act: impl FnOnce()) -> Ended {
    struct KilledWhenDropped(Child);
    impl Drop for KilledWhenDropped {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = KilledWhenDropped(command.spawn().unwrap());
    let (stdout, stdout_reader) = follow(child.0.stdout.take().unwrap());
    let (stderr, stderr_reader) = follow(child.0.stderr.take().unwrap());
    eventually("the program says the word", || {
        let ended = child.0.try_wait().unwrap();
        let has_said = stderr.lock().unwrap().contains(word);
        assert!(has_said || ended.is_none(), "it ended without: {}", stderr.lock().unwrap());
        has_said.then_some(())
    });
    act();
    let status = eventually("the program ends", || child.0.try_wait().unwrap());
    stdout_reader.join().unwrap();
    stderr_reader.join().unwrap();
    let text = |text: Arc<Mutex<String>>| std::mem::take(&mut *text.lock().unwrap());
    Ended { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

pub(crate) fn is_delivered(bridge: &Bridge) {
    eventually("all is delivered", || {
        (bridge.metric("topic_bridge_outbox_pending") == 0.0).then_some(())
    });
}

/// Events that are there already are not shown, and of those that come then none is missed.
pub fn check_tail(bridge: &Bridge) {
    let call = |topic: &str| assert_eq!(bridge.call(&body(topic)).status, 200);
    ["old-1", "old-2"].into_iter().for_each(call);
    is_delivered(bridge);
    let new = ["new-1", "new-2", "new-3"];
    let ended = run_and(bridge.command("tail").args(["--count", "3"]), "reading", || {
        new.into_iter().for_each(call);
    });
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let event = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let mut topics: Vec<_> =
        ended.stdout.lines().map(|line| event(line)["subject"].take()).collect();
    topics.sort_by_key(Value::to_string);
    assert_eq!(topics, new, "{ended:?}");
}
