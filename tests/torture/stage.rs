//! What a run takes place on: the bridge, its broker behind a proxy, its disk and its clock.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::bridge::Bridge;
use crate::broker::{Alone, Kind, Target};
use crate::preload::Clock;
use crate::proxy::Proxy;
use crate::small_disk::SmallDisk;

/// Where what is left of a failed run is kept.
pub(crate) const KEPT: &str = "target/torture";

/// Room for some minutes without a broker.
const DISK: &str = "96m";

/// How long the backlog may take once the faults are over.
pub(crate) const BOUND: Duration = Duration::from_secs(60);

pub(crate) struct Stage {
    pub(crate) broker: Alone,
    pub(crate) proxy: Proxy,
    /// None while it is being started.
    bridge: Option<Bridge>,
    /// Where root can mount one.
    pub(crate) disk: Option<SmallDisk>,
    clock: Clock,
    clock_file: PathBuf,
    /// How far the bridge's clock is ahead, in seconds.
    pub(crate) step: Arc<AtomicI64>,
    log: File,
    log_path: PathBuf,
    home: TempDir,
}

impl Stage {
    pub(crate) fn set_up(broker: Alone, seed: u64, answer: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("disk");
        let disk = can_mount().then(|| SmallDisk::mount(&folder, DISK));
        if disk.is_none() {
            fs::create_dir(&folder).unwrap();
        }
        let (proxy, behind) = put_behind_a_proxy(&broker.target);
        let clock_file = home.path().join("clock");
        fs::write(&clock_file, [0; 8]).unwrap();
        let clock = Clock::new(home.path());

        let outbox = folder.join("outbox.db");
        let settings = behind.settings();
        let settings = settings.iter().map(|(key, value)| (*key, value.as_str()));
        let more = [
            ("outbox.path", outbox.to_str().unwrap()),
            ("outbox.max_bytes", "48 MiB"),
            ("outbox.history_events", "5000"),
            ("relay.confirm_timeout", "3s"),
            ("relay.drain_timeout", "2s"),
            ("ingress.max_skew", "36500d"), // the platform's clock is right, and the bridge's is not
            ("ingress.answer", answer),
        ];
        let settings: Vec<_> = settings.chain(more).collect();
        let bridge = Bridge::start_with(&settings, clock.set_by(&clock_file));
        fs::create_dir_all(KEPT).unwrap();
        let log_path = Path::new(KEPT).join(format!("{}-{seed}.log", broker.target.kind.name()));
        let log = File::create(&log_path).unwrap();
        let (step, bridge) = (Arc::default(), Some(bridge));
        Stage { broker, proxy, bridge, disk, clock, clock_file, step, log, log_path, home }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.broker.target.kind
    }

    pub(crate) fn bridge(&self) -> &Bridge {
        self.bridge.as_ref().expect("it could not be started again")
    }

    /// Ends the bridge if it still runs, and starts it on the same outbox.
    pub(crate) fn restart_bridge(&mut self, answer: &str) {
        let bridge = self.bridge.take().expect("it runs, or has run");
        self.log.write_all(bridge.log().as_bytes()).unwrap();
        writeln!(self.log, "--- restarted, ingress.answer = {answer:?}").unwrap();
        let clock = self.clock.set_by(&self.clock_file);
        self.bridge = Some(bridge.restart_with(&[("ingress.answer", answer)], clock));
    }

    /// SIGTERM, to which it has to listen.
    pub(crate) fn stop_bridge(&mut self) {
        self.bridge.as_mut().expect("it runs").stop();
    }

    /// Nobody asked it to end.
    pub(crate) fn has_died(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.bridge().pid()));
        stat.is_ok_and(|stat| stat.rsplit(')').next().unwrap().trim().starts_with('Z'))
    }

    pub(crate) fn move_clock(&self, seconds: i64) {
        let ahead = self.step.fetch_add(seconds, Relaxed) + seconds;
        let file = File::options().write(true).open(&self.clock_file).unwrap();
        file.write_all_at(&ahead.to_ne_bytes(), 0).unwrap();
    }

    /// Waits until all that was accepted is delivered, and the sink says that it works.
    pub(crate) fn drains(&self) -> bool {
        let began = Instant::now();
        loop {
            let (status, readiness) = self.bridge().readiness();
            let is_ready = status == 200 && readiness["status"] == "ready";
            if is_ready && self.bridge().metric("topic_bridge_outbox_pending") == 0.0 {
                return true;
            }
            if began.elapsed() > BOUND {
                println!("torture: after {BOUND:?}: {readiness}");
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// For whoever looks into a failed run.
    pub(crate) fn keep(&mut self, seed: u64) {
        if let Some(bridge) = &self.bridge {
            let _ = self.log.write_all(bridge.log().as_bytes());
            let folder = Path::new(KEPT).join(format!("{}-{seed}", self.kind().name()));
            let _ = fs::create_dir_all(&folder);
            let files = format!("cp -r '{}'/. '{}'", self.home.path().display(), folder.display());
            let _ = Command::new("sh").args(["-c", &files]).status();
            println!("torture: outbox in {}", folder.display());
        }
        println!("torture: log in {}", self.log_path.display());
    }

    /// After a run without a fault of the bridge.
    pub(crate) fn clean_up(self) {
        let _ = fs::remove_file(&self.log_path);
    }
}

/// Only root can.
pub(crate) fn can_mount() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// The proxy, and the target as the bridge reaches it.
fn put_behind_a_proxy(target: &Target) -> (Proxy, Target) {
    let address = target.address.rsplit("://").next().unwrap();
    let address = address.rsplit('@').next().unwrap().split('/').next().unwrap();
    let proxy = match target.kind {
        Kind::Kafka => Proxy::start_for_kafka(address),
        Kind::Rabbitmq | Kind::Nats => Proxy::start(address),
    };
    proxy.open(&[]);
    let address = target.address.replace(address, &proxy.address.to_string());
    (proxy, Target { address, ..target.clone() })
}
