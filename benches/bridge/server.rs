//! What is measured and what it is loaded with: the floor and the bridge as processes of their own,
//! each with a fresh outbox on the disk in question, and `topic-bridge send`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, read_to_string};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::sleep;

use super::machine::{self, Usage};
use super::servers::Kind;

pub(crate) const APP: u64 = 1_400_000_000;
pub(crate) const TOKEN: &str = "bench-token";
/// This build of the bridge, which sends the load in any case.
const PROGRAM: &str = env!("CARGO_BIN_EXE_topic-bridge");
pub(crate) const RATED_CONNECTIONS: u32 = 16;
/// How often the bridge is asked how far it is; each time costs it some 0.2 ms.
const ASK_EVERY: Duration = Duration::from_millis(50);
const START: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(30);
/// Seconds for which a server is loaded before it is measured: allocations, connections and the
/// outbox's first pages are not the steady state.
const WARM_UP: f64 = 0.5;

/// Environment variables of the bridge, without their prefix.
pub(crate) type Settings = Vec<(&'static str, String)>;

/// The floor, or a build of the bridge.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) name: String,
    /// None is the floor.
    pub(crate) program: Option<PathBuf>,
}

/// How much `send` sends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) seconds: f64,
    pub(crate) connections: u32,
    pub(crate) rate: Option<u32>,
}

/// What is read of the summary of `send`.
#[derive(Debug, Deserialize)]
pub(crate) struct Sent {
    pub(crate) answered: f64,
    pub(crate) rate: f64,
    latency_ms: BTreeMap<String, f64>,
}

impl Sent {
    pub(crate) fn quantiles(&self) -> [(&'static str, f64); 3] {
        ["p50", "p99", "p99.9"].map(|name| (name, self.latency_ms[name]))
    }
}

/// What the parts measure with.
pub(crate) struct Bench {
    pub(crate) folder: PathBuf,
    pub(crate) seconds: f64,
    /// Of a backlog.
    pub(crate) events: u64,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) bridges: Vec<Subject>,
    /// What disturbed each load: a compiler beside it can halve a rate and look like a slow bridge.
    pub(crate) disturbances: RefCell<Vec<Value>>,
}

impl Bench {
    pub(crate) fn bridges(against: Option<PathBuf>) -> Vec<Subject> {
        let programs = [("bridge", Some(PROGRAM.into())), ("against", against)];
        let subject = |(name, program): (&str, _)| Subject { name: name.to_owned(), program };
        programs.into_iter().map(subject).filter(|subject| subject.program.is_some()).collect()
    }

    /// The floor and the bridges, to take turns.
    pub(crate) fn subjects(&self) -> Vec<Subject> {
        let floor = Subject { name: "floor".to_owned(), program: None };
        [vec![floor], self.bridges.clone()].concat()
    }

    /// At a steady rate; a percentile of few callbacks says little, so it runs for longer.
    pub(crate) fn rated(&self, rate: u32) -> Load {
        Load { seconds: self.seconds * 2.0, connections: RATED_CONNECTIONS, rate: Some(rate) }
    }

    /// Later settings overrule those before them.
    pub(crate) async fn start(
        &self,
        subject: &Subject,
        settings: Settings,
    ) -> anyhow::Result<Server> {
        let folder = tempfile::tempdir_in(&self.folder)?;
        let log = File::create(folder.path().join("log"))?;
        let mut command = match &subject.program {
            Some(program) => Command::new(program),
            None => Command::new(std::env::current_exe()?),
        };
        command.arg(if subject.program.is_some() { "serve" } else { "--floor" });
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TOPIC_BRIDGE_")) {
            command.env_remove(name);
        }
        let usual = vec![
            ("APPS", format!("[{{sdk_app_id={APP},tokens=[\"{TOKEN}\"]}}]")),
            ("SINK", "embedded".to_owned()),
            ("INGRESS__LISTEN", "127.0.0.1:0".to_owned()),
            ("ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
            ("OUTBOX__PATH", folder.path().join("outbox.db").display().to_string()),
            ("OUTBOX__SYNC", "full".to_owned()),
            ("LOG__FORMAT", "json".to_owned()),
        ];
        let variables = usual.into_iter().chain(settings);
        command.envs(variables.map(|(name, value)| (format!("TOPIC_BRIDGE_{name}"), value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("cannot start {subject:?}"))?;
        let mut server = Server { child, folder, url: String::new(), admin: String::new() };
        server.url = server.announced("listening for callbacks").await?;
        server.admin = server.announced("private listener ready").await?;
        Ok(server)
    }

    /// A load whose numbers count for nothing, so that nothing can disturb it.
    pub(crate) async fn warm_up(&self, server: &Server, load: Load) -> anyhow::Result<Sent> {
        send(server, &Load { seconds: WARM_UP, ..load }.arguments()).await
    }

    /// Loads a server; whatever is not answered OK spoils it.
    pub(crate) async fn send(&self, server: &Server, load: Load) -> anyhow::Result<Sent> {
        self.watched(format!("{load:?}"), send(server, &load.arguments())).await
    }

    /// Notes how much of the machine others took meanwhile.
    pub(crate) async fn watched<T>(
        &self,
        load: String,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let before = Usage::now()?;
        let result = work.await?;
        let (others, stolen) = Usage::now()?.others_since(&before);
        let note = json!({"load": load, "others": others, "stolen": stolen});
        self.disturbances.borrow_mut().push(note);
        Ok(result)
    }
}

impl Load {
    fn arguments(&self) -> Vec<String> {
        let milliseconds = (self.seconds * 1000.0).round();
        let mut arguments = vec![
            format!("--duration={milliseconds}ms"),
            format!("--concurrency={}", self.connections),
        ];
        arguments.extend(self.rate.map(|rate| format!("--rate={rate}")));
        arguments
    }
}

pub(crate) async fn send(server: &Server, arguments: &[String]) -> anyhow::Result<Sent> {
    let mut command = Command::new(PROGRAM);
    command.args(["send", "--json", "--sdk-app-id", &APP.to_string(), "--token", TOKEN]);
    let output = run(command.arg(&server.url).args(arguments)).await?;
    serde_json::from_slice(&output).context("not a summary of `send`")
}

pub(crate) async fn run(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let output = command.kill_on_drop(true).stdin(Stdio::null()).output().await?;
    let text = [&*output.stdout, &*output.stderr].map(String::from_utf8_lossy).concat();
    ensure!(output.status.success(), "{command:?} failed:\n{text}");
    Ok(output.stdout)
}

/// A process under measurement, stopped in order when it is dropped.
pub(crate) struct Server {
    child: Child,
    folder: TempDir,
    pub(crate) url: String,
    pub(crate) admin: String,
}

impl Server {
    /// The URL in the line of the log that begins with this message.
    async fn announced(&mut self, message: &str) -> anyhow::Result<String> {
        let started = Instant::now();
        loop {
            let lines: Vec<Value> =
                self.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            let said = |line: &&Value| {
                let text = line["fields"]["message"].as_str();
                text.is_some_and(|text| text.starts_with(message))
            };
            if let Some(address) = lines.iter().find(said).map(|line| &line["fields"]["address"]) {
                return Ok(format!("http://{}/", address.as_str().unwrap_or_default()));
            }
            let waits = self.child.try_wait()?.is_none() && started.elapsed() < START;
            ensure!(waits, "the server did not say {message:?}:\n{}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn log(&self) -> String {
        read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn id(&self) -> anyhow::Result<u32> {
        self.child.id().with_context(|| format!("the server ended:\n{}", self.log()))
    }

    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        machine::cpu_seconds(self.id()?)
    }

    /// What is resident now and at the most, in MiB.
    pub(crate) fn memory(&self) -> anyhow::Result<[(&'static str, f64); 2]> {
        let status = read_to_string(format!("/proc/{}/status", self.id()?))?;
        let mib = |field: &str| {
            let line = status.lines().find(|line| line.starts_with(field));
            let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
            kib.map_or(f64::NAN, |kib| kib / 1024.0)
        };
        Ok([("resident", mib("VmRSS:")), ("peak", mib("VmHWM:"))])
    }

    /// What the bridge does after its answers belongs to the callbacks' cost too.
    pub(crate) async fn wait_until_quiet(&self) -> anyhow::Result<()> {
        let mut before = self.cpu_seconds()?;
        for _ in 0..40 {
            sleep(Duration::from_millis(250)).await;
            let now = self.cpu_seconds()?;
            if now - before < 0.02 {
                break;
            }
            before = now;
        }
        Ok(())
    }

    async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
        let (head, body) = client.get(format!("{}{path}", self.admin).parse()?).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok((head.status.as_u16(), String::from_utf8_lossy(&body).into_owned()))
    }

    /// Until the bridge's sink takes events.
    pub(crate) async fn wait_until_ready(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.get("readyz").await?.0 != 200 {
            ensure!(started.elapsed() < START, "the bridge is not ready:\n{}", self.log());
            sleep(ASK_EVERY).await;
        }
        Ok(())
    }

    /// The events that the bridge's sink has confirmed.
    pub(crate) async fn published(&self) -> anyhow::Result<f64> {
        let (_, metrics) = self.get("metrics").await?;
        let mut lines = metrics.lines();
        let line = lines.find(|line| line.starts_with("topic_bridge_published_total"));
        Ok(line.and_then(|line| line.rsplit(' ').next()).map_or(Ok(0.0), str::parse)?)
    }

    /// Returns when the first event was seen delivered, how many were by then, and the CPU seconds.
    pub(crate) async fn wait_until_published(
        &self,
        count: f64,
    ) -> anyhow::Result<(Instant, f64, f64)> {
        let (started, limit) = (Instant::now(), Duration::from_secs_f64(60.0 + count / 500.0));
        let mut first = None;
        loop {
            let published = self.published().await?;
            if first.is_none() && published > 0.0 {
                first = Some((Instant::now(), published, self.cpu_seconds()?));
            }
            if published >= count {
                return first.context("no event to wait for");
            }
            let waits = started.elapsed() < limit;
            ensure!(waits, "{published} of {count} events delivered:\n{}", self.log());
            sleep(ASK_EVERY).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(id) = self.child.id() else { return };
        let _ = std::process::Command::new("kill").arg(id.to_string()).status();
        let deadline = Instant::now() + STOP;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
