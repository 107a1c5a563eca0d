//! Real Kafka, RabbitMQ and NATS servers for the tests and the benchmark, on free ports of loopback with their
//! data in a temporary folder: children of this process, or containers where a Docker engine runs. They
//! end with this process whatever ends it. What they need is installed by `tests/brokers/install`.

mod certificates;
mod compose;
mod kafka;
mod nats;
pub(crate) mod ports;
mod process;
mod rabbitmq;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};

use process::{Guard, Process};

/// Whom the servers let in where they ask for a password, and the name in the client's certificate.
pub(crate) const USER: &str = "bridge";
pub(crate) const PASSWORD: &str = "bridge-secret";

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
}

/// How a client connects: `Mtls` with a certificate of its own, `Sasl` over TLS with a password.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Way {
    Plain,
    Tls,
    Mtls,
    Sasl,
}

type Addresses = Vec<(Way, String)>;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Verb {
    /// In order (SIGTERM); waits for the end, as does `Kill`.
    Stop,
    Kill,
    /// On the same ports and data; waits until it works.
    Start,
    /// Connections stay open and nothing answers (SIGSTOP).
    Pause,
    Resume,
}

/// Where the servers of a broker have their files.
struct Place {
    folder: PathBuf,
    certificates: String,
    /// In a container it is the container's address, whose ports are published on loopback.
    bind: &'static str,
    is_native: bool,
}

impl Place {
    fn new(folder: PathBuf, is_native: bool) -> Self {
        let certificates = folder.join("certificates").display().to_string();
        let bind = if is_native { "127.0.0.1" } else { "0.0.0.0" };
        Place { folder, certificates, bind, is_native }
    }

    /// Writes a server's configuration into a folder of its own.
    fn write(&self, server: &str, file: &str, content: &str) -> Result<String> {
        let folder = self.folder.join(server);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(file), content)?;
        Ok(folder.join(file).display().to_string())
    }

    /// In a container's own file system, which stays over stop and start and goes with the container.
    fn data(&self, server: &str) -> String {
        let native = self.folder.join(server).join("data");
        if self.is_native { native.display().to_string() } else { "/tmp/data".into() }
    }
}

/// A broker that works. It ends when it is dropped, and with this process, unless it was given by its address.
pub(crate) struct Broker {
    kind: Kind,
    addresses: Addresses,
    certificates: PathBuf,
    // The guard first: it ends the processes, which are waited for.
    _guard: Option<Guard>,
    processes: Vec<Process>,
}

/// The broker of this kind for all that this process tests: the one whose address is in the environment, or one
/// started at the first call. Nothing where this run is told to leave it out.
pub(crate) fn shared(kind: Kind) -> Option<&'static Broker> {
    // If a start fails, all further calls fail at once.
    static BROKERS: [LazyLock<Broker>; 3] = [
        LazyLock::new(|| Broker::given_or_started(Kind::Kafka)),
        LazyLock::new(|| Broker::given_or_started(Kind::Rabbitmq)),
        LazyLock::new(|| Broker::given_or_started(Kind::Nats)),
    ];
    if setting("WITHOUT").split_whitespace().any(|name| name == kind.name()) {
        eprintln!("SKIPPED: this run is without {}", kind.name());
        return None;
    }
    Some(&BROKERS[kind as usize])
}

impl Broker {
    fn given_or_started(kind: Kind) -> Self {
        if setting(kind.name()).is_empty() {
            let started = Broker::start(kind, &env::temp_dir());
            return started.unwrap_or_else(|error| panic!("cannot start {kind:?}: {error:#}"));
        }
        let certificates = setting("CERTS").into();
        Broker { kind, addresses: vec![], certificates, _guard: None, processes: vec![] }
    }

    /// A broker of one's own with nothing in it yet, whose data are in a new folder inside this one.
    pub(crate) fn start(kind: Kind, parent: &Path) -> Result<Self> {
        let prefix = format!("topic-bridge-{}-", kind.name());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent)?.keep();
        let place = Place::new(folder, !compose::works());
        let guard = Some(Guard::new(&place)?);
        certificates::write(Path::new(&place.certificates))?;
        let (mut servers, addresses) = match kind {
            Kind::Kafka => kafka::servers(&place)?,
            Kind::Rabbitmq => rabbitmq::servers(&place)?,
            Kind::Nats => nats::servers(&place)?,
        };
        if !place.is_native {
            servers = compose::contain(&place, servers)?;
        }
        let processes = servers.into_iter().map(|server| Process::new(server, &place)).collect();
        let certificates = place.certificates.into();
        let broker = Broker { kind, addresses, certificates, _guard: guard, processes };
        let mut at_once = broker.processes.iter().filter(|process| !process.server.is_on_demand);
        at_once.try_for_each(Process::start)?;
        Ok(broker)
    }

    pub(crate) fn address(&self, way: Way) -> String {
        let own = self.addresses.iter().find(|(own, _)| *own == way);
        let given = || match way {
            Way::Plain => setting(self.kind.name()),
            _ => setting(&format!("{}_{way:?}", self.kind.name())),
        };
        let address = own.map_or_else(given, |(_, address)| address.clone());
        assert!(!address.is_empty(), "there is no address of {:?} for {way:?}", self.kind);
        address
    }

    /// `ca.pem`; `other-ca.pem`, which no server knows; `client.pem` and `client.key`, by the first; `rogue.pem` and
    /// `rogue.key`, by the other.
    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.certificates.join(name)
    }

    /// Whether there is such a server: `kafka-2` is a second one beside `kafka`, which runs only once it is told
    /// to start.
    pub(crate) fn has(&self, server: &str) -> bool {
        self.process(server).is_some() || !setting(&server.replace('-', "_")).is_empty()
    }

    pub(crate) fn tell(&self, server: &str, verb: Verb) -> Result<()> {
        match self.process(server) {
            Some(process) => process.tell(verb),
            None => outer(&[server, &format!("{verb:?}").to_lowercase()]).map(drop),
        }
    }

    fn process(&self, server: &str) -> Option<&Process> {
        self.processes.iter().find(|process| process.server.name == server)
    }

    /// Runs `rabbitmqctl` on it.
    pub(crate) fn rabbitmqctl(&self, arguments: &[&str]) -> Result<String> {
        match self.process("rabbitmq") {
            Some(process) if process.is_native => process.run(rabbitmq::CTL, arguments),
            Some(process) => process.run("docker compose exec -T rabbitmq rabbitmqctl", arguments),
            None => outer(&[&["rabbitmq", "ctl"], arguments].concat()),
        }
    }

    /// Of the servers that run as children of this process.
    pub(crate) fn process_ids(&self) -> Vec<u32> {
        self.processes.iter().filter_map(Process::id).collect()
    }
}

/// Runs the command that controls brokers given by their address.
fn outer(arguments: &[&str]) -> Result<String> {
    let command = setting("CONTROL");
    ensure!(!command.is_empty(), "set BRIDGE_TEST_CONTROL to a command that takes {arguments:?}");
    output(Command::new("sh").args(["-c", &format!("{command} \"$@\""), "sh"]).args(arguments))
}

/// `BRIDGE_TEST_…` of the environment, empty where it is not set.
pub(crate) fn setting(name: &str) -> String {
    env::var(format!("BRIDGE_TEST_{}", name.to_uppercase())).unwrap_or_default()
}

/// What `tests/brokers/install` has put there.
pub(crate) fn installed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/brokers").join(name)
}

/// Of a server, as `tests/brokers/versions` has it for packages and container images alike.
fn version(name: &str) -> &'static str {
    let mut lines = include_str!("../brokers/versions").lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).expect("the file names it")
}

/// Runs a command to its end; what it wrote on standard error is told only when it fails.
fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output();
    let done = done.with_context(|| format!("cannot run {command:?}: is it installed?"))?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
