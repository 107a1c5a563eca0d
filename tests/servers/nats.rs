//! NATS. A server has one address for clients: there is one server for each way to connect.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Addresses, PASSWORD, Place, Probe, Server, USER, Way, installed, ports, version};

pub(super) fn servers(place: &Place) -> Result<(Vec<Server>, Addresses)> {
    let (mut servers, mut addresses) = (Vec::new(), Addresses::new());
    for (name, way) in [("nats", Way::Plain), ("nats-tls", Way::Tls), ("nats-mtls", Way::Mtls)] {
        let (port, monitor) = (ports::free(), ports::free());
        let config = place.write(name, "nats.conf", &config(place, name, way, port, monitor))?;
        servers.push(Server {
            name,
            image: format!("nats:{}-alpine", version("nats")),
            script: format!("exec '{}' -c '{}'", program(place)?, config.display()),
            env: Vec::new(),
            ports: vec![port, monitor],
            probe: Probe::nats(monitor),
            is_on_demand: false,
        });
        let start = if way == Way::Plain { "nats://127.0.0.1" } else { "tls://localhost" };
        addresses.insert(way, format!("{start}:{port}"));
    }
    Ok((servers, addresses))
}

fn program(place: &Place) -> Result<String> {
    if !place.is_native {
        return Ok("nats-server".into());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/usr/local/sbin"]);
    let packaged = folders.map(|folder| Path::new(folder).join("nats-server"));
    let mut all = std::iter::once(installed("bin/nats-server")).chain(packaged);
    let found = all.find(|path| path.exists());
    let found = found.context("there is no nats-server: run tests/brokers/install")?;
    Ok(found.display().to_string())
}

fn config(place: &Place, name: &str, way: Way, port: u16, monitor: u16) -> String {
    let (bind, certificates) = (place.bind(), place.certificates.display());
    let data = place.data(name);
    let verify = way == Way::Mtls;
    let tls = format!(
        r#"tls {{
  cert_file: "{certificates}/server.pem"
  key_file: "{certificates}/server.key"
  ca_file: "{certificates}/ca.pem"
  verify: {verify}
}}"#
    );
    let password = format!(r#"authorization {{ user: "{USER}", password: "{PASSWORD}" }}"#);
    format!(
        r#"server_name: "{name}"
listen: "{bind}:{port}"
http: "{bind}:{monitor}"
jetstream {{ store_dir: "{data}" }}
{tls}
{password}
"#,
        data = data.display(),
        tls = if way == Way::Plain { "" } else { &tls },
        password = if way == Way::Tls { &password } else { "" },
    )
}
