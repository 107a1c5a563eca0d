//! NATS. A server has one address for clients: there is one server for each way to connect.

use anyhow::Result;

use super::process::Server;
use super::{Addresses, PASSWORD, Place, USER, Way, installed, ports, version};

pub(super) fn servers(place: &Place) -> Result<(Vec<Server>, Addresses)> {
    // The one that was built from source, else the distribution's.
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}:/usr/sbin:/usr/local/sbin", installed("bin").display());
    let (mut servers, mut addresses) = (Vec::new(), Vec::new());
    for (name, way) in [("nats", Way::Plain), ("nats-tls", Way::Tls), ("nats-mtls", Way::Mtls)] {
        let (port, monitor) = (ports::free(), ports::free());
        let config = place.write(name, "nats.conf", &config(place, name, way, port, monitor))?;
        servers.push(Server {
            name,
            image: format!("nats:{}-alpine", version("nats")),
            script: format!("exec nats-server -c '{config}'"),
            env: if place.is_native { vec![("PATH", path.clone())] } else { vec![] },
            // It says itself whether it serves, with JetStream and all streams restored.
            ports: vec![monitor, port],
            question: b"GET /healthz HTTP/1.0\r\n\r\n",
            is_ready: |answer| answer.starts_with(b"HTTP/1.0 200"),
            is_on_demand: false,
        });
        let start = if way == Way::Plain { "nats://127.0.0.1" } else { "tls://localhost" };
        addresses.push((way, format!("{start}:{port}")));
    }
    Ok((servers, addresses))
}

fn config(place: &Place, name: &str, way: Way, port: u16, monitor: u16) -> String {
    let (bind, data) = (place.bind, place.data(name));
    let (certificates, verify) = (&place.certificates, way == Way::Mtls);
    let mut config = format!(
        r#"
server_name: "{name}"
listen: "{bind}:{port}"
http: "{bind}:{monitor}"
jetstream {{ store_dir: "{data}" }}
"#
    );
    if way != Way::Plain {
        config += &format!(
            r#"
tls {{
  cert_file: "{certificates}/server.pem"
  key_file: "{certificates}/server.key"
  ca_file: "{certificates}/ca.pem"
  verify: {verify}
}}
"#
        );
    }
    if way == Way::Tls {
        config += &format!(r#"authorization {{ user: "{USER}", password: "{PASSWORD}" }}"#);
    }
    config
}
