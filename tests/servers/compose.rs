//! Servers as containers of a Compose project, where a Docker engine runs. Each has a child of this process
//! that follows it: it ends with the container, and has its log.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::process::Server;
use super::{Place, output};

/// Whether there is an engine, not just the client, and the Compose plugin.
pub(super) fn works() -> bool {
    let mut docker = Command::new("sh");
    docker.args(["-c", "docker info && docker compose version"]);
    docker.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|it| it.success())
}

/// Writes the project's file, and makes the servers such that run by it.
pub(super) fn contain(place: &Place, mut servers: Vec<Server>) -> Result<Vec<Server>> {
    let file = place.folder.join("compose.json");
    fs::write(&file, project(place, &servers).to_string())?;
    for server in &mut servers {
        server.script = format!(
            "exec docker compose up --no-recreate --no-color --no-log-prefix {}",
            server.name
        );
        server.env = vec![("COMPOSE_FILE", file.display().to_string())];
    }
    eprintln!("making containers with Docker Compose; the first time it fetches their images");
    let prepare = "chmod -R a+rX */ && docker compose create"; // a container's user reads its files
    let mut shell = Command::new("sh");
    shell.args(["-c", prepare]).current_dir(&place.folder).env("COMPOSE_FILE", file);
    output(&mut shell)?;
    Ok(servers)
}

/// Only the servers that are started, and only their ports. JSON is YAML.
fn project(place: &Place, servers: &[Server]) -> Value {
    let service = |server: &Server| {
        let readable = |name: &str| format!("{0}/{name}:{0}/{name}:ro", place.folder.display());
        let published = |port: &u16| format!("127.0.0.1:{port}:{port}");
        let service = json!({
            "image": server.image,
            "entrypoint": ["sh", "-c", server.script],
            "environment": server.env.iter().cloned().collect::<BTreeMap<_, _>>(),
            "volumes": [readable(server.name), readable("certificates")],
            "ports": server.ports.iter().map(published).collect::<Vec<_>>(),
        });
        (server.name.to_owned(), service)
    };
    // A port is nobody else's while the project is there.
    let name = format!("topic-bridge-{}-{}", servers[0].name, servers[0].ports[0]);
    json!({ "name": name, "services": servers.iter().map(service).collect::<Map<_, _>>() })
}

/// No engine is needed to see that a project holds what is started, all of that, and nothing else.
#[test]
fn a_project_has_the_image_and_the_ports_of_its_servers() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path().to_owned(), false);
    let version = super::version;
    let rows = [
        (super::kafka::servers(&place), format!("apache/kafka:{}", version("kafka")), 1, 4),
        (super::rabbitmq::servers(&place), format!("rabbitmq:{}", version("rabbitmq_image")), 1, 2),
        (super::nats::servers(&place), format!("nats:{}-alpine", version("nats")), 3, 2),
    ];
    for (servers, image, count, ports) in rows {
        let project = project(&place, &servers.unwrap().0);
        // Compose would take it for a variable.
        assert!(!project.to_string().contains('$'), "{project}");
        let services = project["services"].as_object().unwrap();
        assert_eq!(services.len(), count, "{project}");
        for service in services.values() {
            assert_eq!(service["image"], image);
            assert_eq!(service["ports"].as_array().unwrap().len(), ports, "{service}");
            assert!(!service.to_string().contains(":0\""), "{service}");
        }
    }
}
