//! Real Kafka, RabbitMQ and NATS servers for the tests and the benchmark, on free ports of loopback with their
//! data in a temporary folder: children of this process, or containers where a Docker engine runs. They
//! end with this process whatever ends it. What they need is installed by `tests/brokers/install`.

mod certificates;
mod compose;
mod guard;
mod kafka;
mod native;
mod nats;
mod ports;
mod probe;
mod rabbitmq;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use compose::Compose;
use native::Native;
use probe::Probe;

/// Whom the servers let in where they ask for a password, and the name in the client's certificate.
pub(crate) const USER: &str = "bridge";
pub(crate) const PASSWORD: &str = "bridge-secret";

/// How long a server may take to start or to stop; they need about ten seconds.
const BOUND: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Kafka,
    Rabbitmq,
    Nats,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Kafka => "kafka",
            Kind::Rabbitmq => "rabbitmq",
            Kind::Nats => "nats",
        }
    }

    fn servers(self, place: &Place) -> Result<(Vec<Server>, Addresses)> {
        match self {
            Kind::Kafka => kafka::servers(place),
            Kind::Rabbitmq => rabbitmq::servers(place),
            Kind::Nats => nats::servers(place),
        }
    }
}

/// How a client connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Plain,
    Tls,
    /// TLS with a certificate of the client.
    Mtls,
    /// TLS with a password.
    Sasl,
}

type Addresses = BTreeMap<Way, String>;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Verb {
    /// Ends it in order (SIGTERM), and waits until it ended.
    Stop,
    /// Ends it at once (SIGKILL).
    Kill,
    /// On the same ports and data; waits until it works.
    Start,
    /// Connections stay open and nothing answers (SIGSTOP).
    Freeze,
    Resume,
}

/// One server as it is to be run.
struct Server {
    name: &'static str,
    image: String,
    /// For `sh`, which becomes the server at its end.
    script: String,
    env: Vec<(&'static str, String)>,
    /// Those that clients know. A port is the same in a container and outside, for Kafka tells its clients
    /// where to find it.
    ports: Vec<u16>,
    probe: Probe,
    /// Runs only once it is told to start.
    is_on_demand: bool,
}

/// Where the servers of a broker have their files.
struct Place {
    folder: PathBuf,
    certificates: PathBuf,
    is_native: bool,
}

impl Place {
    /// Writes a server's configuration into a folder of its own.
    fn write(&self, server: &str, file: &str, content: &str) -> Result<PathBuf> {
        let folder = self.folder.join(server);
        fs::create_dir_all(&folder)?;
        // A container's user reads it; the folder around it is private.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        let path = folder.join(file);
        fs::write(&path, content)?;
        Ok(path)
    }

    /// In a container's own file system, which stays over stop and start and goes with the container.
    fn data(&self, server: &str) -> PathBuf {
        if self.is_native { self.folder.join(server).join("data") } else { "/tmp/data".into() }
    }

    /// In a container it is the container's address, whose ports are published on loopback.
    fn bind(&self) -> &'static str {
        if self.is_native { "127.0.0.1" } else { "0.0.0.0" }
    }
}

enum Control {
    Native(Native),
    Compose(Compose),
    /// Whoever gave the broker's address.
    Outer,
}

/// A broker that works. Ends when it is dropped, and with this process, unless it was given by its address.
pub(crate) struct Broker {
    kind: Kind,
    addresses: Addresses,
    certificates: PathBuf,
    control: Control,
}

/// The broker of this kind for all that this process tests: the one whose address is in the environment, or one
/// started at the first call. Nothing where this run is told to leave it out.
pub(crate) fn shared(kind: Kind) -> Option<&'static Broker> {
    static BROKERS: [OnceLock<Result<Broker>>; 3] = [const { OnceLock::new() }; 3];
    if setting("WITHOUT").split_whitespace().any(|name| name == kind.name()) {
        eprintln!("SKIPPED: this run is without {}", kind.name());
        return None;
    }
    let is_given = !setting(&kind.name().to_uppercase()).is_empty();
    let start =
        || if is_given { Ok(Broker::given(kind)) } else { Broker::start(kind, &env::temp_dir()) };
    match BROKERS[kind as usize].get_or_init(start) {
        Ok(broker) => Some(broker),
        // Once and for all, or each test would wait anew for a server that cannot start.
        Err(error) => panic!("cannot start {}: {error:#}", kind.name()),
    }
}

impl Broker {
    /// A broker of one's own with nothing in it yet, whose data are in a new folder inside this one.
    pub(crate) fn start(kind: Kind, parent: &Path) -> Result<Self> {
        let prefix = format!("topic-bridge-{}-", kind.name());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent)?.keep();
        let is_native = !docker_runs();
        let certificates = folder.join("certificates");
        certificates::write(&certificates)?;
        let place = Place { folder, certificates, is_native };
        let (servers, addresses) = kind.servers(&place)?;
        let control = if is_native {
            Control::Native(Native::start(&place.folder, servers)?)
        } else {
            Control::Compose(Compose::start(&place, servers)?)
        };
        Ok(Broker { kind, addresses, certificates: place.certificates, control })
    }

    fn given(kind: Kind) -> Self {
        let prefix = kind.name().to_uppercase();
        let mut addresses = Addresses::from([(Way::Plain, setting(&prefix))]);
        for way in [Way::Tls, Way::Mtls, Way::Sasl] {
            let name = format!("{prefix}_{way:?}").to_uppercase();
            addresses.insert(way, setting(&name));
        }
        Broker { kind, addresses, certificates: setting("CERTS").into(), control: Control::Outer }
    }

    pub(crate) fn address(&self, way: Way) -> &str {
        let address = self.addresses.get(&way).map_or("", |address| address);
        assert!(!address.is_empty(), "{} has no address for {way:?}", self.kind.name());
        address
    }

    /// `ca.pem`; `other-ca.pem`, which no server knows; `client.pem` and `client.key`, by the first; `rogue.pem` and
    /// `rogue.key`, by the other.
    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.certificates.join(name)
    }

    pub(crate) fn tell(&self, verb: Verb) -> Result<()> {
        self.tell_server(self.kind.name(), verb)
    }

    /// Whether a second server can be started beside the first.
    pub(crate) fn has_second(&self) -> bool {
        match &self.control {
            Control::Native(native) => native.has(&self.second()),
            Control::Compose(_) => false,
            Control::Outer => {
                !setting(&format!("{}_2", self.kind.name()).to_uppercase()).is_empty()
            }
        }
    }

    /// It runs only once it is told to start.
    pub(crate) fn tell_second(&self, verb: Verb) -> Result<()> {
        self.tell_server(&self.second(), verb)
    }

    fn second(&self) -> String {
        format!("{}-2", self.kind.name())
    }

    fn tell_server(&self, server: &str, verb: Verb) -> Result<()> {
        match &self.control {
            Control::Native(native) => native.tell(server, verb),
            Control::Compose(compose) => compose.tell(server, verb),
            Control::Outer => {
                let verb = match verb {
                    Verb::Freeze => "pause".to_owned(),
                    verb => format!("{verb:?}").to_lowercase(),
                };
                outer(&[server, &verb]).map(drop)
            }
        }
    }

    /// Runs `rabbitmqctl` on it.
    pub(crate) fn rabbitmqctl(&self, arguments: &[&str]) -> Result<String> {
        let name = self.kind.name();
        match &self.control {
            Control::Native(native) => native.run(name, rabbitmq::CTL, arguments),
            Control::Compose(compose) => compose.exec(name, "rabbitmqctl", arguments),
            Control::Outer => outer(&[&[name, "ctl"], arguments].concat()),
        }
    }

    pub(crate) fn logs(&self) -> String {
        match &self.control {
            Control::Native(native) => native.logs(self.kind.name()),
            Control::Compose(compose) => compose.logs(self.kind.name()),
            Control::Outer => String::new(),
        }
    }

    /// Of the servers that run as children of this process.
    pub(crate) fn process_ids(&self) -> Vec<u32> {
        match &self.control {
            Control::Native(native) => native.process_ids(),
            Control::Compose(_) | Control::Outer => Vec::new(),
        }
    }
}

/// Runs the command that controls brokers given by their address.
fn outer(arguments: &[&str]) -> Result<String> {
    let command = setting("CONTROL");
    ensure!(
        !command.is_empty(),
        "{arguments:?}: this broker was given by its address: set BRIDGE_TEST_CONTROL to a command that takes that"
    );
    let script = format!("{command} \"$@\"");
    output(Command::new("sh").args(["-c", &script, "control"]).args(arguments))
}

/// `BRIDGE_TEST_…` of the environment, empty where it is not set.
pub(crate) fn setting(name: &str) -> String {
    env::var(format!("BRIDGE_TEST_{name}")).unwrap_or_default()
}

/// What `tests/brokers/install` has put there.
pub(crate) fn installed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/brokers").join(name)
}

/// A version that `tests/brokers/versions` names, for packages and container images alike.
fn version(name: &str) -> &'static str {
    let lines = include_str!("../brokers/versions").lines();
    let mut pairs = lines.filter_map(|line| line.split_once('='));
    pairs.find(|(key, _)| *key == name).expect("it is in the file").1
}

/// An engine, not just the client, and the Compose plugin.
fn docker_runs() -> bool {
    let works = |arguments: &[&str]| {
        let mut command = Command::new("docker");
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    works(&["info"]) && works(&["compose", "version"])
}

/// Runs a command to its end; what it wrote on standard error is told only when it fails.
fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output();
    let done = done.with_context(|| format!("cannot run {command:?}: is it installed?"))?;
    if !done.status.success() {
        bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
