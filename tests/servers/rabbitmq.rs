//! RabbitMQ. TLS options hold for the whole server, so there is one TLS address: a client certificate is not asked
//! for, but one of another authority is refused.

use anyhow::Result;

use super::{Addresses, Place, Probe, Server, Way, ports, version};

// Not those in the path, which change the user.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
pub(super) const CTL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";

pub(super) fn servers(place: &Place) -> Result<(Vec<Server>, Addresses)> {
    let (plain, tls) = (ports::free(), ports::free());
    let (bind, certificates) = (place.bind(), place.certificates.display());
    let config = format!(
        "listeners.tcp.1 = {bind}:{plain}
listeners.ssl.1 = {bind}:{tls}
ssl_options.cacertfile = {certificates}/ca.pem
ssl_options.certfile = {certificates}/server.pem
ssl_options.keyfile = {certificates}/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
# To a container the tests come from another address than its loopback.
loopback_users.guest = false
vm_memory_high_watermark.relative = 0.4
disk_free_limit.absolute = 50MB
heartbeat = 10
log.console = true
"
    );
    let config = place.write("rabbitmq", "rabbitmq.conf", &config)?.display().to_string();
    let mut server = Server {
        name: "rabbitmq",
        image: format!("rabbitmq:{}", version("rabbitmq-image")),
        script: format!(
            "cp '{config}' /etc/rabbitmq/conf.d/20-tests.conf && exec docker-entrypoint.sh rabbitmq-server"
        ),
        env: Vec::new(),
        ports: vec![plain, tls],
        probe: Probe::rabbitmq(plain),
        is_on_demand: false,
    };
    let mut servers = Vec::new();
    if place.is_native {
        let epmd = ports::free();
        server.script = format!("exec {SERVER}");
        server.env = environment(place, plain, epmd, config)?;
        servers.push(name_server(place, epmd)?);
    }
    servers.push(server);
    let address = |scheme, port| format!("{scheme}://guest:guest@localhost:{port}/%2f");
    let plain = format!("amqp://guest:guest@127.0.0.1:{plain}/%2f");
    Ok((servers, Addresses::from([(Way::Plain, plain), (Way::Tls, address("amqps", tls))])))
}

/// Erlang's name server, which RabbitMQ would else start in the background.
fn name_server(place: &Place, port: u16) -> Result<Server> {
    place.write("rabbitmq-epmd", "log", "")?;
    Ok(Server {
        name: "rabbitmq-epmd",
        image: String::new(),
        script: format!("exec epmd -port {port}"),
        env: vec![("ERL_EPMD_ADDRESS", "127.0.0.1".into())],
        ports: vec![port],
        probe: Probe::port(port),
        is_on_demand: false,
    })
}

/// A node, a name server and a cookie of its own, so that it can neither meet nor disturb another RabbitMQ of
/// the machine.
fn environment(
    place: &Place,
    port: u16,
    epmd: u16,
    config: String,
) -> Result<Vec<(&'static str, String)>> {
    let path = |name: &str| place.folder.join("rabbitmq").join(name).display().to_string();
    place.write("rabbitmq", "enabled_plugins", "[].\n")?;
    place.write("rabbitmq", "rabbitmq-env.conf", "")?;
    let loopback = "-kernel inet_dist_use_interface {127,0,0,1}";
    Ok(vec![
        ("HOME", path("")),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        ("ERL_EPMD_PORT", epmd.to_string()),
        ("RABBITMQ_NODENAME", format!("topic-bridge-{port}@localhost")),
        ("RABBITMQ_DIST_PORT", ports::free().to_string()),
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", loopback.into()),
        ("RABBITMQ_CONFIG_FILE", config),
        ("RABBITMQ_CONF_ENV_FILE", path("rabbitmq-env.conf")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
        ("RABBITMQ_MNESIA_BASE", path("data")),
        ("RABBITMQ_LOG_BASE", path("logs")),
        ("RABBITMQ_LOGS", "-".into()),
        // Lets the start script become the server, so that its process id is the server's.
        ("RUNNING_UNDER_SYSTEMD", "true".into()),
    ])
}
