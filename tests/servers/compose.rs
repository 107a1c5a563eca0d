//! Servers as containers of a Compose project of their own, where a Docker engine runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::guard::Guard;
use super::{BOUND, Place, Server, Verb, output};

pub(super) struct Compose {
    /// The arguments of `docker` that name the project.
    project: Vec<String>,
    servers: Vec<Server>,
    _guard: Guard,
}

impl Compose {
    pub(super) fn start(place: &Place, servers: Vec<Server>) -> Result<Self> {
        let file = place.folder.join("compose.json");
        fs::write(&file, project_file(place, &servers).to_string())?;
        let name = project_name(&servers);
        let guard = Guard::new(&place.folder, &end(&name, &servers))?;
        let project = ["compose", "--project-name", &name, "--file", &file.to_string_lossy()];
        let project = project.map(str::to_owned).to_vec();
        eprintln!("starting {name} with Docker Compose; the first time it fetches the image");
        let compose = Compose { project, servers, _guard: guard };
        for server in &compose.servers {
            compose.tell(server.name, Verb::Start)?;
        }
        Ok(compose)
    }

    pub(super) fn tell(&self, name: &str, verb: Verb) -> Result<()> {
        if let Verb::Kill = verb {
            // Docker may refuse to end a paused container.
            let _ = self.compose(&arguments(name, Verb::Resume));
        }
        self.compose(&arguments(name, verb))?;
        if let Verb::Start = verb {
            let server = self.servers.iter().find(|server| server.name == name);
            let server = server.with_context(|| format!("there is no {name} here"))?;
            server.probe.wait(|| self.runs(name), || self.logs(name)).context(server.name)?;
        }
        Ok(())
    }

    fn compose<A: AsRef<str>>(&self, arguments: &[A]) -> Result<String> {
        let arguments = arguments.iter().map(AsRef::as_ref);
        output(Command::new("docker").args(&self.project).args(arguments))
    }

    fn runs(&self, name: &str) -> bool {
        let running = self.compose(&["ps", "--status", "running", "--services"]);
        running.is_ok_and(|names| names.lines().any(|line| line == name))
    }

    pub(super) fn exec(&self, name: &str, program: &str, arguments: &[&str]) -> Result<String> {
        self.compose(&[&["exec", "-T", name, program], arguments].concat())
    }

    pub(super) fn logs(&self, name: &str) -> String {
        self.compose(&["logs", "--no-color", "--no-log-prefix", name]).unwrap_or_default()
    }
}

/// What Compose is told for a verb.
fn arguments(name: &str, verb: Verb) -> Vec<String> {
    let bound = BOUND.as_secs().to_string();
    let words: &[&str] = match verb {
        Verb::Stop => &["stop", "--timeout", &bound],
        Verb::Kill => &["kill"],
        // Makes the container the first time, and starts it again later.
        Verb::Start => &["up", "--detach", "--no-recreate"],
        Verb::Freeze => &["pause"],
        Verb::Resume => &["unpause"],
    };
    words.iter().chain([&name]).map(|word| (*word).to_owned()).collect()
}

/// A port is nobody else's while the project is there.
fn project_name(servers: &[Server]) -> String {
    format!("topic-bridge-{}-{}", servers[0].name, servers[0].ports[0])
}

/// Only the servers that are started, and only their ports. JSON is YAML.
fn project_file(place: &Place, servers: &[Server]) -> Value {
    let service = |server: &Server| {
        let readable = |path: &Path| format!("{0}:{0}:ro", path.display());
        let published = |port: &u16| format!("127.0.0.1:{port}:{port}");
        let service = json!({
            "image": server.image,
            "entrypoint": ["sh", "-c", server.script],
            "environment": server.env.iter().cloned().collect::<BTreeMap<_, _>>(),
            "volumes": [readable(&place.folder.join(server.name)), readable(&place.certificates)],
            "ports": server.ports.iter().map(published).collect::<Vec<_>>(),
        });
        (server.name.to_owned(), service)
    };
    json!({ "services": servers.iter().map(service).collect::<serde_json::Map<_, _>>() })
}

/// For the guard, which runs it in the folder of the project's file.
fn end(project: &str, servers: &[Server]) -> String {
    let docker = format!("docker compose --project-name {project} --file compose.json");
    let keep = |server: &Server| {
        let name = server.name;
        format!("{docker} logs --no-color --no-log-prefix {name} >{name}/log 2>&1\n")
    };
    let logs: String = servers.iter().map(keep).collect();
    format!("{docker} unpause\n{logs}{docker} down --volumes --timeout 0\n")
}
